"""Detect: which images are real? All synthetic and all real training images judged out of fold, with two baselines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
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
from tasks.quality import detector
from tasks.quality.detector import Detection, Jury, Params
from tasks.quality.judge import Pictures
from tasks.quality.resampling import bounded_rows
from tasks.reuse import Done, reuse
from tasks.train_judges import pictures_of

ALGORITHM = 3
STEP = "detect"
WHOLE_SET = "synthetic_probability"
"""The one image score that needs the whole set at once: its detectors learn from all synthetic images."""
SIDES = ("real", "synthetic")
FLOOR = ("floor a", "floor b")
CONTROL = ("control a", "control b")
_EACH = "by_"
"""Prefix of the columns with the answers of one network alone."""


@task(name="detect synthetic", task_run_name="detect synthetic")
def detect_synthetic(
    store_url: str, shards: Sequence[Ref], scans: Ref, labels: Sequence[str], params: Params, seed: int
) -> Done:
    """Judge every synthetic and every real training image out of fold: which is real?

    The Ref is a table: side, id, group, probability of being synthetic, fold, and by_NETWORK, the probability that each
    network alone gives. Sides are real and synthetic; floor a and floor b, two halves of the real images that share no
    group; control a and control b, the same halves, b damaged on purpose.

    Only the pictures that teach (`params.sample` of each side) and one shard are in memory at a time.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = [scan for scan in kept_scans(store, scans) if scan.split == "train" and scan.label in labels]
        real, real_ids = pictures_of(kept, "train"), [scan.id for scan in kept]
        groups = [_made(store, shard, ["group"])["group"].to_pylist() for shard in shards]
        count = sum(map(len, groups))
        parts: list[pa.Table] = []
        with track.track(STEP, 3 * params.folds * len(params.networks) * params.steps, "steps"):
            moved = lambda steps: track.advance(STEP, steps)  # noqa: E731
            if count >= 2:
                parts += _judged(store, shards, groups, real, real_ids, params, seed, moved)
            baselines = detector.baselines(real, count, params, seed, moved)
            if baselines is not None:
                halves = [[kept[row] for row in half] for half in (baselines.a, baselines.b)]
                named = [([scan.id for scan in half], [scan.group for scan in half]) for half in halves]
                parts += _sides(FLOOR, named, baselines.floor) + _sides(CONTROL, named, baselines.control)
        file = keys.step_file(STEP, key, "detection.parquet")
        table = pa.concat_tables(parts)
        return Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows)

    described = {"detector": params.model_dump(mode="json"), "labels": list(labels), "seed": seed}
    return reuse(store, STEP, ALGORITHM, described, [scans.sha256, *(shard.sha256 for shard in shards)], make)


@dataclass(frozen=True)
class Detections:
    """What `detect_synthetic` found, as set scores take it."""

    detection: Detection | None
    floor: Detection | None
    control: Detection | None


def detections_of(judged: pd.DataFrame, real: Sequence[str], synthetic: Sequence[str]) -> Detections:
    """The answers of the table `judged` to the images of these ids, in their order, and the baselines. None where
    nothing was judged."""
    return Detections(
        _detection(judged, dict(zip(SIDES, (real, synthetic), strict=True))),
        _detection(judged, dict.fromkeys(FLOOR)),
        _detection(judged, dict.fromkeys(CONTROL)),
    )


def with_detection(rows: pd.DataFrame, judged: pd.DataFrame, side: str) -> pd.DataFrame:
    """`rows` with their out-of-fold probability of being synthetic; NaN where the detectors never saw them."""
    own = judged[judged["side"] == side].set_index("id")["probability"]
    return rows.assign(**{WHOLE_SET: rows["id"].map(own).astype(np.float32)})


def pictures_of_rows(rows: Sequence[Mapping[str, Any]]) -> Pictures:
    """Rows of made samples as the judges take them; a blank mask where a picture was drawn without one."""
    if not rows:
        return Pictures(np.zeros((0, 8, 8), np.uint8), np.zeros((0, 8, 8), np.bool_), [], [])
    images = np.stack([decode_grey(row["image"]["bytes"]) for row in rows])
    blank = np.zeros(images.shape[1:], np.bool_)
    masks = [row["mask"] and row["mask"]["bytes"] for row in rows]
    return Pictures(
        images=images,
        masks=np.stack([blank if png is None else decode_mask(png) for png in masks]),
        labels=[str(row["label"]) for row in rows],
        groups=[str(row["group"]) for row in rows],
    )


def _judged(
    store: Store,
    shards: Sequence[Ref],
    groups: Sequence[Sequence[str]],
    real: Pictures,
    real_ids: Sequence[str],
    params: Params,
    seed: int,
    advance: detector.Advance,
) -> list[pa.Table]:
    """The rows of both sides; `groups` are those of the made samples of each shard."""
    everyone = [group for shard in groups for group in shard]
    fold = detector.assign_folds([*real.groups, *everyone], params.folds, seed)
    folds = fold[: len(real)], fold[len(real) :]
    taught = bounded_rows(real.groups, params.sample, seed), bounded_rows(everyone, params.sample, seed)
    teaching = _selected(store, shards, groups, taught[1])
    of_taught = folds[0][taught[0]], folds[1][taught[1]]
    jury = detector.convene(real.select(taught[0]), teaching, of_taught, params, seed, advance)
    parts = [_side("real", real_ids, real.groups, folds[0], jury.logits(real, folds[0]), jury)]
    at = 0
    for shard, own in zip(shards, groups, strict=True):
        rows = _made(store, shard).to_pylist()
        these, at = folds[1][at : at + len(own)], at + len(own)
        logits = jury.logits(pictures_of_rows(rows), these)
        parts.append(_side("synthetic", [row["id"] for row in rows], own, these, logits, jury))
    return parts


def _selected(
    store: Store, shards: Sequence[Ref], groups: Sequence[Sequence[str]], chosen: NDArray[np.intp]
) -> Pictures:
    """The made samples of these numbers, counted through all shards."""
    starts = np.cumsum([0, *map(len, groups)])

    def parts() -> Iterator[Pictures]:
        for shard, first, last in zip(shards, starts[:-1], starts[1:], strict=True):
            own = chosen[(chosen >= first) & (chosen < last)] - first
            if len(own):
                yield pictures_of_rows(_made(store, shard).take(own).to_pylist())

    found = list(parts())
    return Pictures(
        np.concatenate([part.images for part in found]),
        np.concatenate([part.masks for part in found]),
        [label for part in found for label in part.labels],
        [group for part in found for group in part.groups],
    )


def _made(store: Store, shard: Ref, columns: Sequence[str] = ("id", "group", "label", "image", "mask")) -> pa.Table:
    """The samples of a shard that did not fail, in their order."""
    table = store.open_table(shard.key, [*columns, "failure"])
    return table.filter(table["failure"].is_null())


def _detection(judged: pd.DataFrame, sides: Mapping[str, Sequence[str] | None]) -> Detection | None:
    """The answers of the rows of each side, those of the ids in their order; None where a side has none."""
    found: list[pd.DataFrame] = []
    for side, ids in sides.items():
        rows = judged[judged["side"] == side]
        found.append(rows if ids is None else rows.set_index("id", drop=False).loc[list(ids)])
    if not all(len(rows) for rows in found):
        return None
    a, b = found
    names = [str(name) for name in judged.columns if str(name).startswith(_EACH)]
    return Detection(
        _numbers(a, "probability"),
        _numbers(b, "probability"),
        a["fold"].to_numpy(np.intp),
        b["fold"].to_numpy(np.intp),
        {name.removeprefix(_EACH): (_numbers(a, name), _numbers(b, name)) for name in names},
    )


def _numbers(rows: pd.DataFrame, name: str) -> NDArray[np.float32]:
    return rows[name].to_numpy(np.float32)


def _side(
    side: str,
    ids: Sequence[str],
    groups: Sequence[str],
    fold: NDArray[np.intp],
    logits: NDArray[np.float32],
    jury: Jury,
) -> pa.Table:
    found = detector.detection_of(logits, logits[:, :0], (fold, fold[:0]), jury.params)
    return _rows(side, ids, groups, fold, found.real, {name: real for name, (real, _) in found.each.items()})


def _sides(
    sides: tuple[str, str], named: Sequence[tuple[Sequence[str], Sequence[str]]], found: Detection
) -> list[pa.Table]:
    each = {name: real for name, (real, _) in found.each.items()}, {name: s for name, (_, s) in found.each.items()}
    return [
        _rows(sides[0], *named[0], found.real_fold, found.real, each[0]),
        _rows(sides[1], *named[1], found.synthetic_fold, found.synthetic, each[1]),
    ]


def _rows(
    side: str,
    ids: Sequence[str],
    groups: Sequence[str],
    fold: NDArray[np.intp],
    answers: NDArray[np.float32],
    each: Mapping[str, NDArray[np.float32]],
) -> pa.Table:
    columns = {
        "side": pa.array([side] * len(ids), pa.string()),
        "id": pa.array(list(ids), pa.string()),
        "group": pa.array(list(groups), pa.string()),
        "probability": pa.array(answers, pa.float32()),
        "fold": pa.array(fold, pa.int64()),
    }
    columns |= {f"{_EACH}{name}": pa.array(own, pa.float32()) for name, own in each.items()}
    return pa.table(columns)
