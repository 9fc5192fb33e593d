"""Tell apart: are the kept synthetic images of a fold known from real ones, and are they copies? Answers as rows."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.records import Ref
from storage.store import Store
from tasks import track
from tasks.connect import open_store
from tasks.ingest import kept_scans
from tasks.quality import copies, detector
from tasks.quality.degradation import damaged
from tasks.quality.detector import Params as DetectorParams
from tasks.quality.resampling import group_halves
from tasks.reuse import Done, reuse
from tasks.study import Fold, kept_samples, lesions_of
from tasks.train_judges import pictures_of

DETECT_ALGORITHM = 3
COPIES_ALGORITHM = 2
DETECT, COPIES = "study-detect", "study-copies"
POSITIVE_CONTROL, NEGATIVE_CONTROL = "damaged on purpose", "real vs real"


@task(name="study detection", task_run_name="detect: {what}")
def detect(store_url: str, fold: Fold, what: str, params: DetectorParams, seed: int) -> Done:
    """Tell the kept synthetic images from the real ones with a mask of the test groups, out of fold.

    Detectors also learn from the real images that the generator saw, but do not judge them. `what` is the view, or
    one of the two controls: the synthetic images damaged on purpose, which must be found, and one half of the
    real images outside the training split against the other, which must not.

    The Ref is a table: side (real, synthetic), id, group, probability of being synthetic, fold of the detector.
    It is blank where there are fewer than two images a side.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, fold.scans)
        ids, synthetic = kept_samples(store, fold)
        judged, known = lesions_of(kept, "test"), pictures_of(lesions_of(kept, "train", "val"), "train", "val")
        real = pictures_of(judged, "test")
        real_ids = [scan.id for scan in judged]
        if what == POSITIVE_CONTROL:
            synthetic = damaged(synthetic, seed, whole=params.view == "full")
        elif what == NEGATIVE_CONTROL:
            judged, known = lesions_of(kept, "val", "test"), None
            everyone = pictures_of(judged, "val", "test")
            halves = group_halves(everyone.groups, len(everyone), 1, np.random.default_rng([seed, 4]))
            a, b = halves[0] if halves else (np.zeros(0, np.intp), np.zeros(0, np.intp))
            real, synthetic = everyone.select(a), everyone.select(b)
            real_ids, ids = [judged[row].id for row in a.tolist()], [judged[row].id for row in b.tolist()]
        if min(len(real), len(synthetic)) < 2 or len({*real.groups, *synthetic.groups}) < 2:
            return _written(store, DETECT, key, _sides([], [], [], [], []), {})
        with track.track(DETECT, params.folds * params.steps, "steps"):
            moved = lambda steps: track.advance(DETECT, steps)  # noqa: E731
            found = detector.out_of_fold(real, synthetic, params, seed, moved, known)
        table = _sides(
            ["real"] * len(real) + ["synthetic"] * len(synthetic),
            [*real_ids, *ids],
            [*real.groups, *synthetic.groups],
            np.concatenate([found.real, found.synthetic]),
            np.concatenate([found.real_fold, found.synthetic_fold]),
        )
        return _written(store, DETECT, key, table, {})

    control = what if what in (POSITIVE_CONTROL, NEGATIVE_CONTROL) else ""
    described = {"control": control, "params": params, "seed": seed}
    inputs = [fold.scans.sha256] if what == NEGATIVE_CONTROL else fold.digests
    return reuse(store, DETECT, DETECT_ALGORITHM, described, inputs, make)


@task(name="study copies", task_run_name="study copies")
def find_copies(store_url: str, fold: Fold) -> Done:
    """Nearest training lesion of every kept and every held-out real lesion; the Ref is a table: side (synthetic,
    real), id, group, similarity, nearest (id), is_copy: more alike than 95 % of the held-out real ones are."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, fold.scans)
        trained, unseen = lesions_of(kept, "train"), lesions_of(kept, "val", "test")
        ids, synthetic = kept_samples(store, fold)
        known, real = pictures_of(trained, "train"), pictures_of(unseen, "val", "test")
        held_out, made = copies.nearest(real, known), copies.nearest(synthetic, known)
        similar = held_out.similarity[np.isfinite(held_out.similarity)]
        limit = float(np.quantile(similar, 0.95)) if len(similar) else np.inf
        rows = np.concatenate([held_out.row, made.row]).tolist()
        similarity = np.concatenate([held_out.similarity, made.similarity])
        table = pa.table(
            {
                "side": pa.array(["real"] * len(real) + ["synthetic"] * len(synthetic), pa.string()),
                "id": pa.array([*(scan.id for scan in unseen), *ids], pa.string()),
                "group": pa.array([*real.groups, *synthetic.groups], pa.string()),
                "similarity": pa.array(similarity, pa.float32()),
                "nearest": pa.array([trained[row].id if row >= 0 else None for row in rows], pa.string()),
                "is_copy": pa.array(similarity > limit, pa.bool_()),
            }
        )
        return _written(store, COPIES, key, table, {})

    return reuse(store, COPIES, COPIES_ALGORITHM, {}, fold.digests, make)


def _sides(
    side: Sequence[str],
    ids: Sequence[str],
    groups: Sequence[str],
    answers: NDArray[np.float32] | list[float],
    fold: NDArray[np.intp] | list[int],
) -> pa.Table:
    return pa.table(
        {
            "side": pa.array(list(side), pa.string()),
            "id": pa.array(list(ids), pa.string()),
            "group": pa.array(list(groups), pa.string()),
            "probability": pa.array(answers, pa.float32()),
            "fold": pa.array(fold, pa.int64()),
        }
    )


def _written(store: Store, step: str, key: str, table: pa.Table, counts: dict[str, int]) -> Ref:
    file = keys.step_file(step, key, "answers.parquet")
    return Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows, counts=counts)
