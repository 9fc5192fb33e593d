"""Score: numbers for every image, by judges that saw the training split alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.images import decode_grey, decode_mask
from storage.records import Ref
from storage.store import Store
from tasks import track
from tasks.connect import open_store
from tasks.ingest import kept_scans
from tasks.quality import IMAGE_SCORES, Evidence, detector, features
from tasks.quality.judge import Pictures
from tasks.quality.resampling import group_halves
from tasks.reuse import Done, reuse
from tasks.train import pictures_of

ALGORITHM = 1
STEP, REAL, DETECT = "score", "describe-real", "detect"
EXTRACTOR = Path(__file__).parent.parent / "models" / "extractor"
WHOLE_SET = "synthetic_probability"
"""The one image score that needs the whole set at once: its detector learns from all synthetic images."""


@task(name="score")
def score_shard(
    store_url: str, shard: Ref, scans: Ref, judges: Mapping[str, Ref], names: Sequence[str], seed: int
) -> Done:
    """Score one shard of synthetic samples; the Ref is a table: id, label, group, failure, features, scores."""
    store = open_store(store_url)
    extractor = features.load(EXTRACTOR)

    def make(key: str) -> Ref:
        rows = store.open_table(shard.key).to_pylist()
        made = [row for row in rows if row["failure"] is None]
        train = pictures_of(kept_scans(store, scans), "train")
        scored = pictures_of_rows(made)
        columns = _scores(_evidence(store, scored, train, judges, seed), names)
        described = _table(made, extractor.features(scored.images), columns)
        failed = [
            {"id": r["id"], "label": r["label"], "group": r["group"], "failure": r["failure"]}
            for r in rows
            if r["failure"]
        ]
        table = pa.concat_tables([described, pa.Table.from_pylist(failed, schema=described.schema)])
        track.advance(STEP, len(rows))
        return _written(store, STEP, key, "scores.parquet", table.sort_by("id"))

    inputs = [shard.sha256, scans.sha256, extractor.digest, *(judges[name].sha256 for name in sorted(judges))]
    done = reuse(store, STEP, ALGORITHM, {"names": list(names), "seed": seed}, inputs, make)
    if done.reused:
        track.advance(STEP, shard.rows)
    return done


@task(name="describe real scans")
def describe_real(
    store_url: str,
    scans: Ref,
    judges: Mapping[str, Ref],
    labels: Sequence[str],
    names: Sequence[str],
    seed: int,
) -> Done:
    """Score the real scans of `labels` in the same way, for floors and quantiles; the Ref is a like table."""
    store = open_store(store_url)
    extractor = features.load(EXTRACTOR)

    def make(key: str) -> Ref:
        kept = [scan for scan in kept_scans(store, scans) if scan.label in labels]
        pictures = pictures_of(kept, "train", "val", "test")
        train = pictures_of(kept, "train")
        rows = [{"id": s.id, "label": s.label, "group": s.group, "split": s.split, "failure": None} for s in kept]
        columns = _scores(_evidence(store, pictures, train, judges, seed), names)
        return _written(store, REAL, key, "real.parquet", _table(rows, extractor.features(pictures.images), columns))

    inputs = [scans.sha256, extractor.digest, *(judges[name].sha256 for name in sorted(judges))]
    params = {"labels": list(labels), "names": list(names), "seed": seed}
    return reuse(store, REAL, ALGORITHM, params, inputs, make)


@task(name="detect synthetic")
def detect_synthetic(
    store_url: str,
    shards: Sequence[Ref],
    scans: Ref,
    labels: Sequence[str],
    params: detector.Params,
    seed: int,
) -> Done:
    """Judge every synthetic and every real training image out of fold: which is real?

    The Ref is a table: side (real, synthetic, and floor a, floor b: the same detector between two halves of the
    real images that share no group), id, group, probability, fold.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = [scan for scan in kept_scans(store, scans) if scan.split == "train" and scan.label in labels]
        real = pictures_of(kept, "train")
        rows = [row for shard in shards for row in store.open_table(shard.key).to_pylist() if row["failure"] is None]
        synthetic = pictures_of_rows(rows)
        real_ids, made_ids = [scan.id for scan in kept], [row["id"] for row in rows]
        parts: list[pa.Table] = []
        with track.track(DETECT, 2 * params.folds * params.steps, "steps"):
            moved = lambda steps: track.advance(DETECT, steps)  # noqa: E731
            if len(rows) >= 2:
                found = detector.out_of_fold(real, synthetic, params, seed, moved)
                parts.append(_sides("real", real_ids, real.groups, found.real, found.real_fold))
                parts.append(_sides("synthetic", made_ids, synthetic.groups, found.synthetic, found.synthetic_fold))
            rng = np.random.default_rng([seed, 3])
            for a, b in group_halves(real.groups, max(2, len(rows)), 1, rng):
                floor = detector.out_of_fold(real.select(a), real.select(b), params, seed, moved)
                for side, at, answers, fold in (
                    ("floor a", a, floor.real, floor.real_fold),
                    ("floor b", b, floor.synthetic, floor.synthetic_fold),
                ):
                    own = [kept[row] for row in at]
                    parts.append(_sides(side, [s.id for s in own], [s.group for s in own], answers, fold))
        return _written(store, DETECT, key, "detection.parquet", pa.concat_tables(parts))

    described = {"detector": params.model_dump(mode="json"), "labels": list(labels), "seed": seed}
    inputs = [scans.sha256, *(shard.sha256 for shard in shards)]
    return reuse(store, DETECT, ALGORITHM, described, inputs, make)


def pictures_of_rows(rows: Sequence[Mapping[str, dict[str, bytes]]]) -> Pictures:
    """Rows of made samples as the judges take them."""
    if not rows:
        return Pictures(np.zeros((0, 8, 8), np.uint8), np.zeros((0, 8, 8), np.bool_), [], [])
    return Pictures(
        images=np.stack([decode_grey(row["image"]["bytes"]) for row in rows]),
        masks=np.stack([decode_mask(row["mask"]["bytes"]) for row in rows]),
        labels=[str(row["label"]) for row in rows],
        groups=[str(row["group"]) for row in rows],
    )


def _evidence(store: Store, scored: Pictures, train: Pictures, judges: Mapping[str, Ref], seed: int) -> Evidence:
    return Evidence(
        scored=scored,
        train=train,
        classifier=store.read(judges["classifier"].key),
        segmenter=store.read(judges["segmenter"].key),
        detector=detector.Params(),  # never trained here: WHOLE_SET is scored by `detect_synthetic`
        seed=seed,
    )


def _scores(evidence: Evidence, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    return {name: IMAGE_SCORES[name](evidence) for name in names if name != WHOLE_SET}


def _table(
    rows: Sequence[Mapping[str, object]],
    vectors: NDArray[np.float64],
    scores: Mapping[str, NDArray[np.float32]],
) -> pa.Table:
    names = ("id", "label", "group", "split", "failure")
    columns: dict[str, pa.Array] = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
    columns["features"] = pa.array(list(vectors), pa.list_(pa.float64()))
    columns |= {name: pa.array(values, pa.float32()) for name, values in scores.items()}
    return pa.table(columns)


def _sides(
    side: str, ids: Sequence[str], groups: Sequence[str], answers: NDArray[np.float32], fold: NDArray[np.intp]
) -> pa.Table:
    return pa.table(
        {
            "side": pa.array([side] * len(ids), pa.string()),
            "id": pa.array(list(ids), pa.string()),
            "group": pa.array(list(groups), pa.string()),
            "probability": pa.array(answers, pa.float32()),
            "fold": pa.array(fold, pa.int64()),
        }
    )


def _written(store: Store, step: str, key: str, name: str, table: pa.Table) -> Ref:
    file = keys.step_file(step, key, name)
    return Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows)
