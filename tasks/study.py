"""Study: train and test downstream networks on one fold of a dataset; every answer stays as a row."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task
from pydantic import Field

from storage import keys
from storage.records import Record, Ref
from storage.store import Store
from tasks import track
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import classifier, copies, detector, unet
from tasks.quality.classifier import Params as ClassifierParams
from tasks.quality.degradation import DEGRADATIONS, degrade_inside
from tasks.quality.detector import Params as DetectorParams
from tasks.quality.detector import View
from tasks.quality.judge import HEALTHY, Pictures
from tasks.quality.resampling import group_halves
from tasks.quality.unet import Params as UNetParams
from tasks.reuse import Done, reuse
from tasks.score import pictures_of_rows
from tasks.train import pictures_of

SEGMENT_ALGORITHM = CLASSIFY_ALGORITHM = DETECT_ALGORITHM = COPIES_ALGORITHM = 1
SEGMENT, CLASSIFY, DETECT, COPIES = "study-segment", "study-classify", "study-detect", "study-copies"
POSITIVE_CONTROL, NEGATIVE_CONTROL = "damaged on purpose", "real vs real"


class Arm(Record):
    """What a downstream network is trained on."""

    name: str = Field(description="how tables call it")
    real: bool = Field(default=True, description="with the real training scans")
    synthetic: bool = Field(default=True, description="with the kept synthetic images")
    ratio: float | None = Field(
        default=None, gt=0, description="synthetic images for each real lesion at most; null: all that were kept"
    )


class StudyParams(Record):
    """How the utility study trains and tests; the defaults suit two CPU cores, a GPU deserves more steps."""

    arms: list[Arm] = Field(
        default=[Arm(name="real", synthetic=False), Arm(name="real + synthetic")],
        min_length=1,
        description="What is compared; differences are against the first",
    )
    unet: UNetParams = Field(default=UNetParams(), description="segmentation")
    classifier: ClassifierParams = Field(default=ClassifierParams(), description="benign or malignant")
    detector: DetectorParams = Field(
        default=DetectorParams(network="resnet18", folds=2, steps=120), description="real or synthetic"
    )
    views: list[View] = Field(
        default=["window", "full", "lesion", "surroundings"], description="what detectors look at, one each"
    )
    controls: bool = Field(default=True, description="also detect damaged images, and real ones against real ones")
    resamples: int = Field(default=2000, ge=50, le=1_000_000, description="bootstrap samples of an interval")
    permutations: int = Field(default=500, ge=20, le=1_000_000, description="relabellings of a p-value")


class Fold(Record):
    """What one fold's dataset was made of, as far as a study reads it."""

    scans: Ref
    shards: list[Ref]
    curated: Ref

    @property
    def digests(self) -> list[str]:
        """Of everything, for the keys of steps."""
        return [self.scans.sha256, self.curated.sha256, *(shard.sha256 for shard in self.shards)]


@task(name="study segmentation", task_run_name="segment: {arm.name}")
def segment(store_url: str, fold: Fold, arm: Arm, params: UNetParams, seed: int) -> Done:
    """Train the U-Net of an arm; the Ref is a table of the test lesions: id, group, label and, in pixels, hit (drawn
    and true), drawn, truth."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, fold.scans)
        examples = _examples(store, fold, arm, kept, healthy=True)
        with track.track(SEGMENT, params.steps, "steps"):
            network = unet.train(examples, params, seed, lambda steps: track.advance(SEGMENT, steps))
        tested = _lesions(kept, "test")
        pictures = pictures_of(tested, "test")
        drawn = unet.draw(network, pictures.images)
        columns = {
            "hit": (drawn & pictures.masks).sum((1, 2)),
            "drawn": drawn.sum((1, 2)),
            "truth": pictures.masks.sum((1, 2)),
        }
        return _written(store, SEGMENT, key, _answers(tested, columns), {"trained on": len(examples)})

    described = {"arm": arm.model_dump(mode="json", exclude={"name"}), "params": params, "seed": seed}
    return reuse(store, SEGMENT, SEGMENT_ALGORITHM, described, _inputs(fold, arm), make)


@task(name="study classification", task_run_name="classify: {arm.name}")
def classify(store_url: str, fold: Fold, arm: Arm, params: ClassifierParams, seed: int) -> Done:
    """Train the classifier of an arm; the Ref is a table of the test lesions: id, group, label, probability (of the
    label that sorts last, `malignant`), positive (whether it is that). It is blank unless there are two labels."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, fold.scans)
        tested = _lesions(kept, "test")
        examples = _examples(store, fold, arm, kept, healthy=False)
        labels = sorted({scan.label for scan in _lesions(kept, "train", "val", "test")})
        if len(labels) != 2 or set(examples.labels) != set(labels):
            return _written(store, CLASSIFY, key, _answers([], {"probability": [], "positive": []}), {})
        with track.track(CLASSIFY, params.steps, "steps"):
            nobody = examples.select(np.zeros(len(examples), np.bool_))
            judge = classifier.train(
                examples, nobody, params, seed, lambda steps: track.advance(CLASSIFY, steps)
            )  # fmt: skip
        answers = classifier.load(judge.weights).probabilities(pictures_of(tested, "test").images)[:, 1]
        positive = [scan.label == labels[1] for scan in tested]
        table = _answers(tested, {"probability": answers, "positive": positive})
        return _written(store, CLASSIFY, key, table, {"trained on": len(examples)})

    described = {"arm": arm.model_dump(mode="json", exclude={"name"}), "params": params, "seed": seed}
    return reuse(store, CLASSIFY, CLASSIFY_ALGORITHM, described, _inputs(fold, arm), make)


@task(name="study detection", task_run_name="detect: {what}")
def detect(store_url: str, fold: Fold, what: str, params: DetectorParams, seed: int) -> Done:
    """Tell the kept synthetic images from the real lesions of the test groups, out of fold.

    Detectors also learn from the real lesions that the generator saw, but do not judge them. `what` is the view, or
    one of the two controls: the synthetic images damaged on purpose, which must be found, and one half of the
    real images outside the training split against the other, which must not.

    The Ref is a table: side (real, synthetic), id, group, probability of being synthetic, fold of the detector.
    It is blank where there are fewer than two images a side.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, fold.scans)
        ids, synthetic = kept_samples(store, fold)
        judged, known = _lesions(kept, "test"), pictures_of(_lesions(kept, "train", "val"), "train", "val")
        real = pictures_of(judged, "test")
        real_ids = [scan.id for scan in judged]
        if what == POSITIVE_CONTROL:
            synthetic = _damaged(synthetic, seed)
        elif what == NEGATIVE_CONTROL:
            judged, known = _lesions(kept, "val", "test"), None
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


@task(name="study copies")
def find_copies(store_url: str, fold: Fold) -> Done:
    """Nearest training lesion of every kept and every held-out real lesion; the Ref is a table: side (synthetic,
    real), id, group, similarity, nearest (id), is_copy: more alike than 95 % of the held-out real ones are."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, fold.scans)
        trained, unseen = _lesions(kept, "train"), _lesions(kept, "val", "test")
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


def kept_samples(store: Store, fold: Fold) -> tuple[list[str], Pictures]:
    """Ids and pictures of the synthetic samples that curation kept, in order of id."""
    curation = Curation.model_validate_json(store.read(fold.curated.key))
    verdicts = store.open_table(curation.table.key, ["id", "verdict"]).to_pylist()
    good = {row["id"] for row in verdicts if row["verdict"] == "kept"}
    rows = [row for shard in fold.shards for row in store.open_table(shard.key).to_pylist() if row["id"] in good]
    rows.sort(key=lambda row: row["id"])
    return [row["id"] for row in rows], pictures_of_rows(rows)


def _lesions(kept: Sequence[KeptScan], *splits: str) -> list[KeptScan]:
    """Scans of these splits with a lesion that is drawn."""
    return [s for s in kept if s.split in splits and s.label != HEALTHY and s.mask is not None and s.mask.any()]


def _examples(store: Store, fold: Fold, arm: Arm, kept: Sequence[KeptScan], *, healthy: bool) -> Pictures:
    """What an arm is trained on; `healthy` scans of the training split too, where wanted."""
    lesions = _lesions(kept, "train")
    normal = [scan for scan in kept if healthy and scan.split == "train" and scan.label == HEALTHY]
    chosen = [*lesions, *normal] if arm.real else []
    real = pictures_of(chosen, "train") if chosen else pictures_of(kept[:1], "none")
    if not arm.synthetic:
        return real
    _, made = kept_samples(store, fold)
    if arm.ratio is not None:
        made = made.select(np.arange(min(len(made), round(arm.ratio * len(lesions)))))
    return real.and_also(made)


def _inputs(fold: Fold, arm: Arm) -> list[str]:
    """An arm without synthetic images is the same whatever the generator made."""
    return fold.digests if arm.synthetic else [fold.scans.sha256]


def _damaged(pictures: Pictures, seed: int) -> Pictures:
    """Two kinds of visible damage inside every lesion."""
    images = pictures.images.copy()
    for row, (image, mask) in enumerate(zip(pictures.images, pictures.masks, strict=True)):
        rng = np.random.default_rng([seed, 5, row])
        severities = np.zeros(len(DEGRADATIONS), np.float32)
        severities[rng.choice(len(DEGRADATIONS), 2, replace=False)] = rng.uniform(0.5, 1, 2)
        images[row] = degrade_inside(image, mask, severities, rng)
    return Pictures(images, pictures.masks, pictures.labels, pictures.groups)


def _answers(tested: Sequence[KeptScan], columns: dict[str, object]) -> pa.Table:
    own = {"id": [s.id for s in tested], "group": [s.group for s in tested], "label": [s.label for s in tested]}
    return pa.Table.from_pandas(pd.DataFrame({**own, **columns}), preserve_index=False)


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
