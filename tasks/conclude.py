"""Conclude: from the answers of all folds to a study's numbers, each with N and interval."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

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
from tasks.quality import SET_SCORES, gain, sam
from tasks.quality.arms import Trial
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.quality.measures import Measure, complete, measures_of
from tasks.quality.separability import area_with_interval, permutation_p
from tasks.report import study_page
from tasks.report.study import CLAIMS, Estimate, FoldFacts, Study, markdown
from tasks.reuse import Done, reuse
from tasks.score import origins
from tasks.study import EXTERNAL, HELD_OUT, Fold, StudyParams, kept_samples
from tasks.synthesis.attributes import HEAD

ALGORITHM = 3
STEP = "study"
SET_MEASURES = ("kid", "fid")
DETECTED, COPIED = "real or synthetic, AUC", "copies, share"


class Answered(Record):
    """A trial and the table of what its network answered."""

    trial: Trial
    ref: Ref


class Answers(Record):
    """What was answered on one fold; `answered` by task."""

    made: Fold
    real: Ref
    scores: list[Ref]
    answered: dict[str, list[Answered]]
    detected: dict[str, Ref]
    copied: Ref
    facts: FoldFacts

    @property
    def digests(self) -> list[str]:
        """Of everything."""
        arms = [one.ref for several in self.answered.values() for one in several]
        refs = [self.real, *self.scores, *arms, *self.detected.values(), self.copied]
        return [*self.made.digests, *(ref.sha256 for ref in refs)]


@task(name="conclude study", task_run_name="conclude study")
def conclude(
    store_url: str, recipe: str, recipe_digest: str, answers: Sequence[Answers], params: StudyParams, seed: int
) -> Done:
    """Work out the numbers of all folds; the Ref is study.json, with study.html, study.md and answers.parquet
    beside it."""
    store = open_store(store_url)
    seeds = len({one.trial.seed for one in answers[0].answered["segmentation"]})
    plain = params.model_dump(mode="json", exclude={"external": {"root"}, "sam": {"weights"}})
    networks = [] if params.sam is None else [sam.described(params.sam)]

    def make(key: str) -> Ref:
        subject = _subject(store, answers)
        tables = {
            **{name: _trials(store, answers, name) for name in answers[0].answered},
            "detection": _detected(store, answers),
            "copies": _copied(store, answers),
        }
        estimates: list[Estimate] = []
        for fold in (None, *(answer.facts.fold for answer in answers)):
            own = {name: _of_fold(table, fold) for name, table in tables.items()}
            estimates += _detection(own["detection"], list(answers[0].detected), fold, params, seed)
            estimates += _set_scores(store, answers, fold, seed)
            for name in answers[0].answered:
                estimates += compare(own[name], name, fold, params, seed)
            estimates += _copies(own["copies"], subject, fold, params, seed)
        study = Study(
            recipe=recipe,
            recipe_digest=recipe_digest,
            params=plain,
            folds=len(answers),
            seeds=seeds,
            facts=[answer.facts for answer in answers],
            estimates=estimates,
            subject=subject,
            networks=networks,
            to_beat=CLAIMS[subject],
        )
        everything = pd.concat([table.assign(task=name) for name, table in tables.items()], ignore_index=True)
        table = pa.Table.from_pandas(everything, preserve_index=False)
        store.put_table(keys.step_file(STEP, key, "answers.parquet"), table)
        store.put(keys.step_file(STEP, key, "study.md"), markdown(study).encode())
        store.put(keys.step_file(STEP, key, "study.html"), study_page.render(study).encode())
        data, where = keys.canonical_json(study), keys.step_file(STEP, key, "study.json")
        store.put(where, data)
        return Ref(key=where, sha256=hashlib.sha256(data).hexdigest(), rows=len(estimates))

    described = {"recipe": recipe, "digest": recipe_digest, "params": plain, "networks": networks, "seed": seed,
                 "facts": [answer.facts.model_dump(mode="json") for answer in answers]}  # fmt: skip
    inputs = [digest for answer in answers for digest in answer.digests]
    return reuse(store, STEP, ALGORITHM, described, inputs, make)


def _subject(store: Store, answers: Sequence[Answers]) -> Literal["lesion", "head"]:
    """What masks outline."""
    labels = {scan.label for scan in kept_scans(store, answers[0].made.scans) if scan.mask is not None}
    return "head" if labels == {HEAD} else "lesion"


def _trials(store: Store, answers: Sequence[Answers], task: str) -> pd.DataFrame:
    """All rows of one task, with fold and seed, arm and regime, and how many images were learned from."""
    frames = [
        store.open_table(one.ref.key)
        .to_pandas()
        .assign(
            fold=answer.facts.fold,
            seed=one.trial.seed,
            arm=one.trial.arm.name,
            regime=one.trial.regime.real_images if one.trial.arm.real else 0.0,
            n_real=one.ref.counts["real"],
            n_synthetic=one.ref.counts["synthetic"],
        )
        for answer in answers
        for one in answer.answered[task]
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["fold", "arm", "regime", "tested"])


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


def compare(table: pd.DataFrame, task: str, fold: int | None, params: StudyParams, seed: int) -> Iterator[Estimate]:
    """Every arm's numbers in every regime, then the paired difference of each with the first arm of the regime."""
    for tested in (HELD_OUT, EXTERNAL):
        rows = table[table["tested"] == tested]
        if tested == EXTERNAL and not len(rows):
            continue
        for regime in sorted({0.0, *(regime.real_images for regime in params.regimes)}, key=_images_of(rows)):
            arms = {
                arm.name: rows[(rows["arm"] == arm.name) & (rows["regime"] == regime)]
                for arm in params.arms
                if arm.real == (regime > 0)
            }
            for measure in measures_of(task, rows):
                about: dict[str, Any] = {
                    "measure": f"{task}, {measure.name}",
                    "less_is_better": measure.less_is_better,
                    "fold": fold,
                    "tested": tested,
                    "regime": regime,
                }
                yield from _compared(measure, arms, about, params, seed)


def _compared(
    measure: Measure, arms: dict[str, pd.DataFrame], about: dict[str, Any], params: StudyParams, seed: int
) -> Iterator[Estimate]:
    """One measure of all arms of a regime; differences where they learn from real images too."""
    own = {name: complete(measure, rows) for name, rows in arms.items()}
    for name, rows in own.items():
        yield _estimated(_statistic(measure, rows), rows, params, seed, arm=name, **about)
    if about["regime"] == 0:
        return
    first, *others = own
    for other in others:
        before, after = _paired(own[first], own[other])
        gained = gain.difference(_statistic(measure, after), _statistic(measure, before))
        yield _estimated(gained, after, params, seed, arm=other, over=first, **about)


def _statistic(measure: Measure, rows: pd.DataFrame) -> gain.Statistic:
    return measure.statistic(rows) if len(rows) else _nothing


def _nothing(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(len(weights), np.nan)


def _images_of(table: pd.DataFrame) -> Callable[[float], float]:
    """From a regime to the mean number of real images in it, for sorting; none at all comes last."""
    found = table.groupby("regime")["n_real"].mean().to_dict() if len(table) else {}
    return lambda regime: float(found.get(regime, regime)) if regime else np.inf


def _paired(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of two arms about the same images by the same folds and seeds, in the same order: one draw of weights
    serves both."""
    by = ["fold", "seed", "id"]
    common = before[by].merge(after[by])
    return common.merge(before, on=by), common.merge(after, on=by)


def _estimated(statistic: gain.Statistic, rows: pd.DataFrame, params: StudyParams, seed: int, **about: Any) -> Estimate:
    if not len(rows):
        return Estimate(value=None, n=0, note="nothing to learn from, or no test image that it applies to", **about)
    groups = [str(group) for group in rows["group"]]
    trainings = [f"{fold}-{number}" for fold, number in zip(rows["fold"], rows["seed"], strict=True)]
    found = gain.bootstrap(statistic, groups, params.resamples, np.random.default_rng([seed, 20]), trainings)
    value, low, high = (number if np.isfinite(number) else None for number in found)
    sign = -1 if about["less_is_better"] else 1
    better = int((sign * gain.by_training(statistic, trainings) > 0).sum()) if "over" in about else None
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=int(rows["id"].nunique()),
        trainings=len(set(trainings)),
        better=better,
        real_images=float(rows["n_real"].mean()),
        synthetic_images=float(rows["n_synthetic"].mean()),
        note="" if value is not None else "one label alone",
        **about,
    )


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


def _copies(table: pd.DataFrame, subject: str, fold: int | None, params: StudyParams, seed: int) -> Iterator[Estimate]:
    """Share of the kept images whose lesion, or head, is one of the training split."""
    made = table[table["side"] == "synthetic"]
    unseen = int((table["side"] == "real").sum())
    if not len(made):
        yield Estimate(measure=COPIED, arm="kept", fold=fold, value=None, n=unseen, note="nothing was kept")
        return
    copied = made["is_copy"].to_numpy(np.float64)
    groups = [str(group) for group in made["group"]]
    found = gain.bootstrap(gain.mean(copied), groups, params.resamples, np.random.default_rng([seed, 22]))
    note = (
        f"{int(copied.sum())} of {len(made)} kept {subject}s are more like a training {subject} than 95 % of "
        f"held-out real {subject}s are: 0.05 is what chance gives"
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
        extractor=origins(store.open_table(answers[0].real.key, [])).features,
        seed=seed,
    )


def _estimate(measure: str, arm: str, fold: int | None, found: tuple[float, float, float], n: int) -> Estimate:
    """Of value and interval; a NaN is no number."""
    value, low, high = (number if np.isfinite(number) else None for number in found)
    return Estimate(measure=measure, arm=arm, fold=fold, value=value, low=low, high=high, n=n)
