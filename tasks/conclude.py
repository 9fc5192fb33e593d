"""Conclude: from the answers of all folds to a study's numbers, each with N and interval."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.records import Record, Ref
from storage.store import Store
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.ingest import kept_scans
from tasks.quality import SET_SCORES, features, gain
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.quality.separability import area_with_interval, permutation_p
from tasks.report.study import Estimate, FoldFacts, Study, markdown
from tasks.reuse import Done, reuse
from tasks.score import EXTRACTOR
from tasks.study import Fold, StudyParams, kept_samples

ALGORITHM = 1
STEP = "study"
SET_MEASURES = ("kid", "fid")
DICE, F1, AREA = "segmentation, mean Dice", "segmentation, pixel F1", "classification, AUC"
DETECTED, COPIED = "real or synthetic, AUC", "copies, share"


class Answers(Record):
    """What was answered on one fold. The arms' tables are listed by seed."""

    made: Fold
    real: Ref
    scores: list[Ref]
    segmented: dict[str, list[Ref]]
    classified: dict[str, list[Ref]]
    detected: dict[str, Ref]
    copied: Ref
    facts: FoldFacts

    @property
    def digests(self) -> list[str]:
        """Of everything."""
        arms = [ref for refs in (*self.segmented.values(), *self.classified.values()) for ref in refs]
        refs = [self.real, *self.scores, *arms, *self.detected.values(), self.copied]
        return [*self.made.digests, *(ref.sha256 for ref in refs)]


@task(name="conclude study")
def conclude(
    store_url: str, recipe: str, recipe_digest: str, answers: Sequence[Answers], params: StudyParams, seed: int
) -> Done:
    """Work out the numbers of all folds; the Ref is study.json, with study.md and answers.parquet beside it."""
    store = open_store(store_url)
    seeds = max(len(refs) for refs in answers[0].segmented.values())

    def make(key: str) -> Ref:
        tables = {
            "segmentation": _arms(store, answers, "segmented"),
            "classification": _arms(store, answers, "classified"),
            "detection": _detected(store, answers),
            "copies": _copied(store, answers),
        }
        estimates: list[Estimate] = []
        for fold in (None, *(answer.facts.fold for answer in answers)):
            own = {name: _of_fold(table, fold) for name, table in tables.items()}
            names = [arm.name for arm in params.arms]
            estimates += _detection(own["detection"], list(answers[0].detected), fold, params, seed)
            estimates += _set_scores(store, answers, fold, seed)
            estimates += _segmentation(own["segmentation"], names, fold, params, seed)
            estimates += _classification(own["classification"], names, fold, params, seed)
            estimates += _copies(own["copies"], fold, params, seed)
        study = Study(
            recipe=recipe,
            recipe_digest=recipe_digest,
            params=params.model_dump(mode="json"),
            folds=len(answers),
            seeds=seeds,
            facts=[answer.facts for answer in answers],
            estimates=estimates,
        )
        everything = pd.concat([table.assign(task=name) for name, table in tables.items()], ignore_index=True)
        table = pa.Table.from_pandas(everything, preserve_index=False)
        store.put_table(keys.step_file(STEP, key, "answers.parquet"), table)
        store.put(keys.step_file(STEP, key, "study.md"), markdown(study).encode())
        data, where = keys.canonical_json(study), keys.step_file(STEP, key, "study.json")
        store.put(where, data)
        return Ref(key=where, sha256=hashlib.sha256(data).hexdigest(), rows=len(estimates))

    described = {"recipe": recipe, "digest": recipe_digest, "params": params, "seed": seed,
                 "facts": [answer.facts.model_dump(mode="json") for answer in answers]}  # fmt: skip
    inputs = [digest for answer in answers for digest in answer.digests]
    return reuse(store, STEP, ALGORITHM, described, inputs, make)


def _arms(store: Store, answers: Sequence[Answers], which: str) -> pd.DataFrame:
    """All rows of one task, with fold, seed and arm."""
    return pd.concat(
        [
            store.open_table(ref.key).to_pandas().assign(fold=answer.facts.fold, seed=seed, arm=arm)
            for answer in answers
            for arm, refs in getattr(answer, which).items()
            for seed, ref in enumerate(refs)
        ],
        ignore_index=True,
    )


def _detected(store: Store, answers: Sequence[Answers]) -> pd.DataFrame:
    """All rows of the detectors; `model` is the number of the one that answered."""
    frames: list[pd.DataFrame] = []
    for answer in answers:
        for what, ref in answer.detected.items():
            rows = store.open_table(ref.key).to_pandas()
            model = rows["fold"] + 1000 * answer.facts.fold
            frames.append(rows.assign(fold=answer.facts.fold, model=model, arm=what))
    return pd.concat(frames, ignore_index=True)


def _copied(store: Store, answers: Sequence[Answers]) -> pd.DataFrame:
    return pd.concat(
        [store.open_table(answer.copied.key).to_pandas().assign(fold=answer.facts.fold) for answer in answers],
        ignore_index=True,
    )


def _of_fold(table: pd.DataFrame, fold: int | None) -> pd.DataFrame:
    return table if fold is None else table[table["fold"] == fold]


def _segmentation(
    table: pd.DataFrame, names: Sequence[str], fold: int | None, params: StudyParams, seed: int
) -> Iterator[Estimate]:
    """Mean Dice and pooled F1 of every arm, and what each is better by than the first."""
    arms = _aligned(table, names)
    measures: dict[str, Callable[[pd.DataFrame], gain.Statistic]] = {DICE: _mean_dice, F1: _pixel_f1}
    for measure, statistic in measures.items():
        yield from _compared(measure, {name: statistic(rows) for name, rows in arms.items()}, arms, fold, params, seed)


def _mean_dice(rows: pd.DataFrame) -> gain.Statistic:
    hit, total = _numbers(rows, "hit"), _numbers(rows, "drawn") + _numbers(rows, "truth")
    return gain.mean(2 * hit / np.maximum(total, 1))


def _pixel_f1(rows: pd.DataFrame) -> gain.Statistic:
    return gain.pooled_f1(_numbers(rows, "hit"), _numbers(rows, "drawn"), _numbers(rows, "truth"))


def _classification(
    table: pd.DataFrame, names: Sequence[str], fold: int | None, params: StudyParams, seed: int
) -> Iterator[Estimate]:
    """AUC of every arm, and what each is better by than the first."""
    arms = _aligned(table, names)
    statistics = {
        name: gain.area(
            _numbers(rows, "probability"),
            rows["positive"].to_numpy(np.bool_),
            (1000 * rows["fold"] + rows["seed"]).to_numpy(np.intp),
        )
        for name, rows in arms.items()
    }
    return _compared(AREA, statistics, arms, fold, params, seed)


def _aligned(table: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Rows of every arm in the same order, so that one draw of weights serves all."""
    by = ["fold", "seed", "id"]
    return {name: table[table["arm"] == name].sort_values(by, ignore_index=True) for name in names}


def _compared(
    measure: str,
    statistics: Mapping[str, gain.Statistic],
    arms: Mapping[str, pd.DataFrame],
    fold: int | None,
    params: StudyParams,
    seed: int,
) -> Iterator[Estimate]:
    """Every arm's number, then the paired difference of each with the first."""
    first, *others = statistics
    asked = {name: statistics[name] for name in statistics}
    asked |= {_named(other, others): gain.difference(statistics[other], statistics[first]) for other in others}
    rows = arms[first]
    groups, images = [str(group) for group in rows["group"]], int(rows["id"].nunique())
    for arm, statistic in asked.items():
        if not len(rows):
            yield Estimate(
                measure=measure, arm=arm, fold=fold, value=None, n=0, note="no test image that it applies to"
            )
            continue
        found = gain.bootstrap(statistic, groups, params.resamples, np.random.default_rng([seed, 20]))
        yield _estimate(measure, arm, fold, found, images)


def _named(other: str, others: Sequence[str]) -> str:
    return "difference" if len(others) == 1 else f"{other}, difference"


def _detection(
    table: pd.DataFrame, looked: Sequence[str], fold: int | None, params: StudyParams, seed: int
) -> Iterator[Estimate]:
    """AUC of real against synthetic by what the detector looked at, with permutation p-value."""
    for what in looked:
        rows = table[table["arm"] == what]
        real, synthetic = rows[rows["side"] == "real"], rows[rows["side"] == "synthetic"]
        shared = set(real["model"]) & set(synthetic["model"])
        n, made = int(real["id"].nunique()), len(synthetic)
        if not shared:
            note = "no detector judged images of both sides"
            yield Estimate(measure=DETECTED, arm=what, fold=fold, value=None, n=n, n_synthetic=made, note=note)
            continue
        found = Detection(_answered(real), _answered(synthetic), _model(real), _model(synthetic))
        groups = [str(group) for group in real["group"]], [str(group) for group in synthetic["group"]]
        rng = np.random.default_rng([seed, 21])
        value, low, high = area_with_interval(found, *groups, params.resamples, rng)
        p = permutation_p(found, *groups, params.permutations, rng)
        yield Estimate(
            measure=DETECTED, arm=what, fold=fold, value=value, low=low, high=high, p=p, n=n, n_synthetic=made
        )


def _answered(rows: pd.DataFrame) -> NDArray[np.float32]:
    return rows["probability"].to_numpy(np.float32)


def _model(rows: pd.DataFrame) -> NDArray[np.intp]:
    return rows["model"].to_numpy(np.intp)


def _copies(table: pd.DataFrame, fold: int | None, params: StudyParams, seed: int) -> Iterator[Estimate]:
    """Share of the kept images whose lesion is a training lesion."""
    made = table[table["side"] == "synthetic"]
    unseen = int((table["side"] == "real").sum())
    if not len(made):
        yield Estimate(measure=COPIED, arm="kept", fold=fold, value=None, n=unseen, note="nothing was kept")
        return
    copied = made["is_copy"].to_numpy(np.float64)
    groups = [str(group) for group in made["group"]]
    found = gain.bootstrap(gain.mean(copied), groups, params.resamples, np.random.default_rng([seed, 22]))
    note = (
        f"{int(copied.sum())} of {len(made)} kept lesions are more like a training lesion than 95 % of "
        "held-out real lesions are: 0.05 is what chance gives"
    )
    yield _estimate(COPIED, "kept", fold, found, unseen).model_copy(update={"n_synthetic": len(made), "note": note})


def _set_scores(store: Store, answers: Sequence[Answers], fold: int | None, seed: int) -> Iterator[Estimate]:
    """KID and FID with floors. A fold's are against the real images outside its training split; pooled, against
    every real lesion, once, as the test image of its fold."""
    if fold is not None:
        answer = next(answer for answer in answers if answer.facts.fold == fold)
        scored = Curation.model_validate_json(store.read(answer.made.curated.key)).scores
    else:
        evidence = _pooled_evidence(store, answers, seed)
        scored = [] if evidence is None else [SET_SCORES[name](evidence) for name in SET_MEASURES]
    for score in scored:
        if score.name in SET_MEASURES:
            note = score.note
            if fold is None:
                note += (
                    "; pooled: an image tested in one fold was trained on in others, the folds' own numbers hold out"
                )
            yield Estimate(
                measure=score.name.upper(),
                arm="kept",
                fold=fold,
                value=score.value,
                low=score.low,
                high=score.high,
                n=score.n_real,
                n_synthetic=score.n_synthetic,
                floor=score.floor,
                floor_low=score.floor_low,
                floor_high=score.floor_high,
                note=note,
            )


def _pooled_evidence(store: Store, answers: Sequence[Answers], seed: int) -> SetEvidence | None:
    reals: list[pd.DataFrame] = []
    kept: list[pd.DataFrame] = []
    for answer in answers:
        described = store.open_table(answer.real.key).to_pandas()
        lesions = {scan.id for scan in kept_scans(store, answer.made.scans) if scan.mask is not None}
        reals.append(described[(described["split"] == "test") & described["id"].isin(lesions)])
        ids, _ = kept_samples(store, answer.made)
        scored = pd.concat([store.open_table(ref.key).to_pandas() for ref in answer.scores])
        kept.append(scored[scored["id"].isin(set(ids))])
    real, made = pd.concat(reals), pd.concat(kept)
    if min(len(real), len(made)) < 2:
        return None
    return SetEvidence(
        real=np.stack([np.asarray(vector, np.float64) for vector in real["features"]]),
        synthetic=np.stack([np.asarray(vector, np.float64) for vector in made["features"]]),
        real_groups=[str(group) for group in real["group"]],
        synthetic_groups=[str(group) for group in made["group"]],
        extractor=features.load(EXTRACTOR).identity,
        seed=seed,
    )


def _numbers(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return rows[column].to_numpy(np.float64)


def _estimate(measure: str, arm: str, fold: int | None, found: tuple[float, float, float], n: int) -> Estimate:
    """Of value and interval; a NaN is no number."""
    value, low, high = (number if np.isfinite(number) else None for number in found)
    return Estimate(measure=measure, arm=arm, fold=fold, value=value, low=low, high=high, n=n)
