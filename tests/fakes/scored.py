"""Made-up score tables of a dataset: what curation reads, without a network that scored anything."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.records import Ref
from storage.store import Store
from tasks.score import Origins, with_origins

IMAGE_SCORES = ["segmenter_dice", "lesion_contrast", "synthetic_probability"]
ORIGINS = Origins(features="toy@1", spaces={}, classifier="classifier@1", labels=["benign", "malignant"])
D = 6


@dataclass(frozen=True)
class Tables:
    """References as the steps before curation hand them on."""

    shards: list[Ref]
    real: Ref
    detection: Ref


def write(store: Store, made: int, real: int = 120, shard: int = 50, outliers: float = 0.0, seed: int = 0) -> Tables:
    """Tables of `made` samples and `real` scans, half of which trained; every tenth sample failed.

    Labels alternate, margins come in threes, segmenter_dice is uniform in 0..1. The share `outliers` of the samples
    lies far from the real ones in feature space.
    """
    rng = np.random.default_rng([seed, made])
    shards: list[Ref] = []
    for first in range(0, made, shard):
        rows = np.arange(first, min(first + shard, made))
        features = rng.normal(size=(len(rows), D)) + 4 * (rng.random(len(rows)) < outliers)[:, None]
        table = _table("syn", rows, features, rng).sort_by("id")
        key = f"builds/score/{first}/scores.parquet"
        shards.append(Ref(key=key, sha256=store.put_table(key, table), rows=len(rows)))
    rows = np.arange(real)
    split = ["train" if row % 4 < 2 else "test" for row in rows]
    described = _table("real", rows, rng.normal(size=(real, D)), rng, split)
    key = "builds/describe-real/x/real.parquet"
    reals = Ref(key=key, sha256=store.put_table(key, described), rows=real)
    key = "builds/detect/x/detection.parquet"
    judged = pa.concat_tables([_judged("real", "real", rows, rng), _judged("synthetic", "syn", np.arange(made), rng)])
    return Tables(shards, reals, Ref(key=key, sha256=store.put_table(key, judged), rows=judged.num_rows))


def _table(
    kind: str,
    rows: NDArray[np.intp],
    features: NDArray[np.float64],
    rng: np.random.Generator,
    split: list[str] | None = None,
) -> pa.Table:
    failed = [kind == "syn" and row % 10 == 9 for row in rows]
    p = rng.random(len(rows))
    columns: dict[str, pa.Array] = {
        "id": pa.array([f"{kind}-{row:06d}" for row in rows]),
        "label": pa.array([("benign", "malignant")[row % 2] for row in rows]),
        "group": pa.array([f"{kind[0]}{row // 2}" for row in rows]),
        "split": pa.array(split or ["train"] * len(rows)),
        "failure": pa.array(["no place for the mask" if bad else None for bad in failed], pa.string()),
        "margin": pa.array([("circumscribed", "microlobulated", "spiculated")[row // 3 % 3] for row in rows]),
        "orientation": pa.array(["parallel"] * len(rows)),
        "mask_kind": pa.array(["donor"] * len(rows)),
        "background_kind": pa.array(["real"] * len(rows)),
        "features": _vectors(features, failed),
        "answers": _vectors(np.stack([p, 1 - p], 1), failed),
        "segmenter_dice": pa.array(
            [None if bad else x for bad, x in zip(failed, rng.random(len(rows)), strict=True)], pa.float32()
        ),
        "lesion_contrast": pa.array(rng.gamma(4, 0.3, len(rows)), pa.float32()),
    }
    return with_origins(pa.table(columns), ORIGINS)


def _vectors(values: NDArray[np.float64], failed: list[bool]) -> pa.Array:
    listed = [None if bad else value for bad, value in zip(failed, values, strict=True)]
    return pa.array(listed, pa.list_(pa.float64()))


def _judged(side: str, kind: str, rows: NDArray[np.intp], rng: np.random.Generator) -> pa.Table:
    rows = rows[rows % 4 < 2] if side == "real" else rows[rows % 10 != 9]
    return pa.table(
        {
            "side": pa.array([side] * len(rows)),
            "id": pa.array([f"{kind}-{row:06d}" for row in rows]),
            "group": pa.array([f"{kind[0]}{row // 2}" for row in rows]),
            "probability": pa.array(rng.random(len(rows)), pa.float32()),
            "fold": pa.array(rows // 2 % 3, pa.int64()),
        }
    )
