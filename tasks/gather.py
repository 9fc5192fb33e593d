"""Gather: from score tables to what set scores are computed from, features a table at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.records import Ref, SetScore
from storage.store import Store
from tasks.detect import detections_of
from tasks.quality import SET_SCORES
from tasks.quality.evidence import ClassAnswers, SetEvidence, Space
from tasks.quality.resampling import bounded_rows
from tasks.score import ANSWERS, FEATURES, Origins, origins

MOST = 8192
"""Images of each side that a set score sees: whole groups, drawn at random. Their features are in memory."""

_DETECTED = "detector_auc"


@dataclass(frozen=True)
class Scored:
    """The score tables of a dataset: of its shards, of the real scans, and of the detectors."""

    store: Store
    shards: Sequence[Ref]
    real: Ref
    detection: Ref
    seed: int

    @cached_property
    def origins(self) -> Origins:
        """What made their columns."""
        return origins(self.store.open_table(self.real.key, []))

    @cached_property
    def judged(self) -> pd.DataFrame:
        """What the detectors said."""
        return self.store.open_table(self.detection.key).to_pandas()

    def samples(self, columns: Sequence[str]) -> pd.DataFrame:
        """Every planned sample without its features, in order of id."""
        return _thin(self.store, self.shards, columns)

    def reals(self, columns: Sequence[str]) -> pd.DataFrame:
        """Every real scan without its features, in order of id."""
        return _thin(self.store, [self.real], columns)

    def holding(self, rows: NDArray[np.intp]) -> list[Ref]:
        """The shards that hold these rows of `samples`: their ids ascend from each shard to the next."""
        ends = np.cumsum([ref.rows for ref in self.shards])
        return [self.shards[number] for number in np.unique(np.searchsorted(ends, rows, side="right"))]

    def vectors(self, refs: Sequence[Ref], ids: Sequence[str], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """The vectors of these images in each of the columns `names`, (ids, d); the ids ascend."""
        wanted = pc.SetLookupOptions(value_set=pa.array(list(ids), pa.string()))
        parts: list[pa.Table] = []
        for ref in refs:
            table = self.store.open_table(ref.key, ["id", *names])
            parts.append(table.filter(pc.call_function("is_in", [table["id"]], wanted)))
        found = pa.concat_tables(parts).sort_by("id").combine_chunks()
        assert found.num_rows == len(ids), f"found {found.num_rows} of {len(ids)} images"
        return {name: np.asarray(found[name].combine_chunks().flatten()).reshape(len(ids), -1) for name in names}

    def features(self, refs: Sequence[Ref], ids: Sequence[str]) -> NDArray[np.float64]:
        """What the recipe's extractor sees of these images, (ids, d)."""
        return self.vectors(refs, ids, [FEATURES])[FEATURES]


def score_set(
    scored: Scored, names: Sequence[str], kept: pd.DataFrame, held_out: pd.DataFrame, train: pd.DataFrame
) -> list[SetScore]:
    """Every set score of the kept samples, against held-out scans; the detector's against training scans.

    The tables have id, label and group. Of more than `MOST` images a side whole groups are drawn; the note says so.
    """
    drawn = _drawn(kept, scored.seed)
    compared = {False: _drawn(held_out, scored.seed), True: _drawn(train, scored.seed)}
    evidence: dict[bool, SetEvidence] = {}
    scores: list[SetScore] = []
    for name in names:
        detected = name == _DETECTED
        real, few = compared[detected], min(len(drawn), len(compared[detected])) < 2
        if few:
            scores.append(_refused(name, len(real), len(drawn), scored.origins.features))
            continue
        if detected not in evidence:
            evidence[detected] = _detected(scored, real, drawn) if detected else _compared(scored, real, drawn)
        score = SET_SCORES[name](evidence[detected])
        whole = train if detected else held_out
        if (len(drawn), len(real)) != (len(kept), len(whole)):
            note = f"of whole groups drawn from {len(kept)} kept and {len(whole)} real images"
            score = score.model_copy(update={"note": f"{score.note}; {note}" if score.note else note})
        scores.append(score)
    return scores


def _compared(scored: Scored, real: pd.DataFrame, made: pd.DataFrame) -> SetEvidence:
    """Both sides as the extractors and the classifier see them."""
    made_by = scored.origins
    names = [FEATURES, *([ANSWERS] if made_by.labels else []), *made_by.spaces]
    a = scored.vectors([scored.real], list(real["id"]), names)
    b = scored.vectors(scored.shards, list(made["id"]), names)
    answers = None
    if made_by.labels and set(made_by.labels).issuperset(real["label"]):
        answers = ClassAnswers(a[ANSWERS], b[ANSWERS], list(real["label"]), made_by.labels, made_by.classifier)
    return SetEvidence(
        a[FEATURES],
        b[FEATURES],
        list(real["group"]),
        list(made["group"]),
        made_by.features,
        scored.seed,
        radiomic=_space(a, b, made_by, "radiomics"),
        speckle=_space(a, b, made_by, "speckle"),
        answers=answers,
    )


def _space(
    real: Mapping[str, NDArray[np.float64]], made: Mapping[str, NDArray[np.float64]], made_by: Origins, name: str
) -> Space | None:
    return Space(real[name], made[name], made_by.spaces[name]) if name in made_by.spaces else None


def _detected(scored: Scored, real: pd.DataFrame, made: pd.DataFrame) -> SetEvidence:
    """Both sides as the detectors see them."""
    found = detections_of(scored.judged, list(real["id"]), list(made["id"]))
    return SetEvidence(
        scored.features([scored.real], list(real["id"])),
        scored.features(scored.shards, list(made["id"])),
        list(real["group"]),
        list(made["group"]),
        scored.origins.features,
        scored.seed,
        detection=found.detection,
        floor_detection=found.floor,
        control_detection=found.control,
    )


def _drawn(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    return rows.iloc[bounded_rows(list(rows["group"]), MOST, seed)]


def _thin(store: Store, refs: Sequence[Ref], columns: Sequence[str]) -> pd.DataFrame:
    parts = [store.open_table(ref.key, ["id", *columns]) for ref in refs]
    return pa.concat_tables(parts).sort_by("id").to_pandas()


def _refused(name: str, real: int, synthetic: int, extractor: str) -> SetScore:
    return SetScore(
        name=name,
        value=None,
        low=None,
        high=None,
        n_real=real,
        n_synthetic=synthetic,
        extractor=extractor,
        note=f"refused: {synthetic} kept and {real} real images, at least 2 of each are needed",
    )
