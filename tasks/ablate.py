"""Ablate: one row of numbers for one variant of a recipe."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.records import Ref
from storage.store import Store
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.quality import SET_SCORES, gain
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.quality.separability import area_with_interval
from tasks.report.ablation import Ablation, Interval, Row, markdown
from tasks.reuse import Done, reuse
from tasks.score import origins
from tasks.synthesize import MILLISECONDS

ALGORITHM = 1
ROW, TABLE = "ablate-variant", "ablate"
RESAMPLES = 1000


@task(name="describe variant", task_run_name="describe {variant}")
def describe_variant(
    store_url: str,
    variant: str,
    changes: Sequence[str],
    shards: Sequence[Ref],
    scores: Sequence[Ref],
    real: Ref,
    detected: Ref,
    curated: Ref,
    seed: int,
) -> Done:
    """Summarise a variant that was made up to its curation; the Ref is a `Row`."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        curation = Curation.model_validate_json(store.read(curated.key))
        described = pd.concat([store.open_table(ref.key).to_pandas() for ref in scores])
        made = described[described["failure"].isna()].sort_values("id")
        verdicts = store.open_table(curation.table.key).to_pandas().set_index("id").loc[list(made["id"])]
        groups = [str(group) for group in made["group"]]
        kept = (verdicts["verdict"] == "kept").to_numpy(np.float64)
        times = [shard.counts[MILLISECONDS] / 1000 / shard.rows for shard in shards if MILLISECONDS in shard.counts]
        row = Row(
            variant=variant,
            changes=list(changes),
            made=len(made),
            acceptance=_interval(gain.mean(kept), groups, seed),
            detector_auc=_detector(store.open_table(detected.key).to_pandas(), seed),
            kid=_kid(store.open_table(real.key), made, seed),
            segmenter_dice=_median(verdicts, "segmenter_dice", groups, seed),
            contrast=_median(verdicts, "lesion_contrast", groups, seed),
            seconds=float(np.median(times)) if times else None,  # the first shard also loads the model
        )
        return _written(store, ROW, key, "row.json", keys.canonical_json(row))

    inputs = [ref.sha256 for ref in (*shards, *scores, real, detected, curated)]
    described = {"variant": variant, "changes": list(changes), "seed": seed}
    return reuse(store, ROW, ALGORITHM, described, inputs, make)


@task(name="tabulate ablation", task_run_name="tabulate ablation")
def tabulate(store_url: str, recipe: str, recipe_digest: str, rows: Sequence[Ref]) -> Done:
    """All variants in one table; the Ref is ablation.json, with ablation.md beside it."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        found = [Row.model_validate_json(store.read(ref.key)) for ref in rows]
        ablation = Ablation(recipe=recipe, recipe_digest=recipe_digest, rows=found)
        store.put(keys.step_file(TABLE, key, "ablation.md"), markdown(ablation).encode())
        return _written(store, TABLE, key, "ablation.json", keys.canonical_json(ablation))

    described = {"recipe": recipe, "digest": recipe_digest}
    return reuse(store, TABLE, ALGORITHM, described, [ref.sha256 for ref in rows], make)


def _detector(judged: pd.DataFrame, seed: int) -> Interval:
    """The gate's detector on real training images against all made ones."""
    real, made = judged[judged["side"] == "real"], judged[judged["side"] == "synthetic"]
    if not set(real["fold"]) & set(made["fold"]):
        return Interval()
    found = Detection(
        real["probability"].to_numpy(np.float32),
        made["probability"].to_numpy(np.float32),
        real["fold"].to_numpy(np.intp),
        made["fold"].to_numpy(np.intp),
    )
    groups = [str(group) for group in real["group"]], [str(group) for group in made["group"]]
    value, low, high = area_with_interval(found, *groups, RESAMPLES, np.random.default_rng([seed, 30]))
    return Interval(value=value, low=low, high=high)


def _kid(described: pa.Table, made: pd.DataFrame, seed: int) -> Interval:
    real = described.to_pandas()
    held_out = real[real["split"] != "train"]
    if min(len(held_out), len(made)) < 2:
        return Interval()
    evidence = SetEvidence(
        real=_features(held_out),
        synthetic=_features(made),
        real_groups=[str(group) for group in held_out["group"]],
        synthetic_groups=[str(group) for group in made["group"]],
        extractor=origins(described).features,
        seed=seed,
    )
    score = SET_SCORES["kid"](evidence)
    return Interval(value=score.value, low=score.low, high=score.high)


def _features(rows: pd.DataFrame) -> NDArray[np.float64]:
    return np.stack([np.asarray(vector, np.float64) for vector in rows["features"]])


def _median(rows: pd.DataFrame, name: str, groups: Sequence[str], seed: int) -> Interval:
    if name not in rows:
        return Interval()
    values = rows[name].to_numpy(np.float64)
    known = np.isfinite(values)
    own = [group for group, good in zip(groups, known, strict=True) if good]
    return _interval(gain.median(values[known]), own, seed) if own else Interval()


def _interval(statistic: gain.Statistic, groups: Sequence[str], seed: int) -> Interval:
    if not len(groups):
        return Interval()
    value, low, high = gain.bootstrap(statistic, groups, RESAMPLES, np.random.default_rng([seed, 31]))
    return Interval(value=value, low=low, high=high)


def _written(store: Store, step: str, key: str, name: str, data: bytes) -> Ref:
    where = keys.step_file(step, key, name)
    store.put(where, data)
    return Ref(key=where, sha256=hashlib.sha256(data).hexdigest(), rows=1)
