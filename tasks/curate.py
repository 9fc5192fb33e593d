"""Curate: keep or reject every sample with its reasons, score what is kept, and gate the set."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.records import LEDGER_FIELDS, Outcome, Ref, SetScore
from tasks.connect import open_store
from tasks.quality import SET_SCORES, curate, features
from tasks.quality.curate import GateParams, Threshold
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.reuse import Done, reuse
from tasks.score import EXTRACTOR, WHOLE_SET

ALGORITHM = 2
STEP = "curate"
FLOOR_SIDES = ("floor a", "floor b")


class Curation(Outcome):
    """What curation decided. `table` has one row a planned sample: id, image scores, verdict, reasons.

    `thresholds` are values: quantiles of real scans are worked out. `problems` says what keeps the set from
    publication.
    """

    table: Ref
    thresholds: list[Threshold]
    problems: list[str]


@task(name="curate")
def curate_set(
    store_url: str,
    scores: Sequence[Ref],
    detection: Ref,
    real: Ref,
    thresholds: list[Threshold],
    gate: GateParams,
    set_scores: Sequence[str],
    image_scores: Sequence[str],
    seed: int,
) -> Done:
    """Decide on every sample, then on the set; the Ref is a `Curation`."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        samples = pd.concat([store.open_table(ref.key).to_pandas() for ref in scores]).sort_values("id")
        judged = store.open_table(detection.key).to_pandas()
        reals = store.open_table(real.key).to_pandas()
        samples, reals = _with_detection(samples, judged, "synthetic"), _with_detection(reals, judged, "real")
        resolved = _resolved(reals, thresholds, image_scores)
        decided = _decide(samples, resolved, image_scores)
        kept = decided[decided["verdict"] == "kept"]
        scored = _score_set(set_scores, kept, reals, judged, seed)
        problems = curate.gate(scored, gate, len(kept))
        rejected = Counter(
            reasons[0].split(" ")[0] for reasons in decided.loc[decided["verdict"] == "rejected", "reasons"]
        )
        file = keys.step_file(STEP, key, "verdicts.parquet")
        table = _table(decided, image_scores)
        curation = Curation(
            table=Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows),
            planned=len(decided),
            kept=len(kept),
            rejected=dict(sorted(rejected.items())),
            failed=int((decided["verdict"] == "failed").sum()),
            scores=scored,
            thresholds=resolved,
            problems=problems,
        )
        data = keys.canonical_json(curation)
        where = keys.step_file(STEP, key, "curation.json")
        store.put(where, data)
        return Ref(key=where, sha256=hashlib.sha256(data).hexdigest(), rows=len(decided), counts={"kept": len(kept)})

    params: dict[str, object] = {
        "thresholds": [threshold.model_dump(mode="json") for threshold in thresholds],
        "gate": gate.model_dump(mode="json"),
        "set_scores": list(set_scores),
        "image_scores": list(image_scores),
        "seed": seed,
    }
    inputs = [real.sha256, detection.sha256, *(ref.sha256 for ref in scores)]
    return reuse(store, STEP, ALGORITHM, params, inputs, make)


def _with_detection(rows: pd.DataFrame, judged: pd.DataFrame, side: str) -> pd.DataFrame:
    """`rows` with their out-of-fold probability of being synthetic; NaN where the detector never saw them."""
    own = judged[judged["side"] == side].set_index("id")["probability"]
    return rows.assign(**{WHOLE_SET: rows["id"].map(own).astype(np.float32)})


def _resolved(reals: pd.DataFrame, thresholds: list[Threshold], names: Sequence[str]) -> list[Threshold]:
    """The thresholds with quantiles of held-out real scans turned into values."""
    held_out = reals[reals["split"] != "train"]
    values = {name: held_out[name].to_numpy(np.float32) for name in names if name != WHOLE_SET}
    if WHOLE_SET in names:  # the detector's numbers on real images exist for the training split alone
        values[WHOLE_SET] = reals[WHOLE_SET].to_numpy(np.float32)
    return curate.resolve(thresholds, values)


def _decide(samples: pd.DataFrame, thresholds: list[Threshold], names: Sequence[str]) -> pd.DataFrame:
    """`samples` with `verdict` and `reasons`."""
    reasons = curate.judge({name: samples[name].to_numpy(np.float32) for name in names}, thresholds)
    failures = [failure if isinstance(failure, str) else None for failure in samples["failure"]]
    verdicts = ["failed" if f else "rejected" if r else "kept" for f, r in zip(failures, reasons, strict=True)]
    listed = [[f] if f else r for f, r in zip(failures, reasons, strict=True)]
    return samples.assign(verdict=verdicts, reasons=pd.Series(listed, index=samples.index, dtype=object))


def _score_set(
    names: Sequence[str], kept: pd.DataFrame, reals: pd.DataFrame, judged: pd.DataFrame, seed: int
) -> list[SetScore]:
    """Every set score of the kept samples, against held-out scans; the detector's against training scans."""
    held_out, train = reals[reals["split"] != "train"], reals[reals["split"] == "train"]
    identity = features.load(EXTRACTOR).identity
    scored: list[SetScore] = []
    for name in names:
        real = train if name == "detector_auc" else held_out
        if min(len(kept), len(real)) < 2:
            note = f"refused: {len(kept)} kept and {len(real)} real images, at least 2 of each are needed"
            scored.append(
                SetScore(
                    name=name,
                    value=None,
                    low=None,
                    high=None,
                    n_real=len(real),
                    n_synthetic=len(kept),
                    extractor=identity,
                    note=note,
                )
            )
            continue
        detected = name == "detector_auc"
        evidence = SetEvidence(
            real=_features(real),
            synthetic=_features(kept),
            real_groups=list(real["group"]),
            synthetic_groups=list(kept["group"]),
            extractor=identity,
            seed=seed,
            detection=_detection(judged, {"real": real, "synthetic": kept}) if detected else None,
            floor_detection=_floor(judged) if detected else None,
        )
        scored.append(SET_SCORES[name](evidence))
    return scored


def _features(rows: pd.DataFrame) -> NDArray[np.float64]:
    return np.stack([np.asarray(vector, np.float64) for vector in rows["features"]])


def _detection(judged: pd.DataFrame, sides: Mapping[str, pd.DataFrame]) -> Detection:
    """The detector's answers on the rows of each side, in their order."""
    answers: list[NDArray[np.float32]] = []
    folds: list[NDArray[np.intp]] = []
    for side, rows in sides.items():
        own = judged[judged["side"] == side].set_index("id").loc[list(rows["id"])]
        answers.append(own["probability"].to_numpy(np.float32))
        folds.append(own["fold"].to_numpy(np.intp))
    return Detection(answers[0], answers[1], folds[0], folds[1])


def _floor(judged: pd.DataFrame) -> Detection | None:
    sides = {side: judged[judged["side"] == side] for side in FLOOR_SIDES}
    return _detection(judged, sides) if all(len(rows) for rows in sides.values()) else None


def _table(decided: pd.DataFrame, names: Sequence[str]) -> pa.Table:
    columns: dict[str, pa.Array] = {"id": pa.array(list(decided["id"]), pa.string())}
    columns |= {name: pa.array(decided[name].to_numpy(np.float32), pa.float32(), from_pandas=True) for name in names}
    columns |= {name: pa.array(list(decided[name]), kind) for name, kind in LEDGER_FIELDS}
    return pa.table(columns)
