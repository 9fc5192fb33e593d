"""Study: train downstream networks on one fold of a dataset and test them; every answer stays as a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task
from pydantic import Field

from storage import keys
from storage.records import SPLITS, Record, Ref
from storage.store import Store
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.detect import pictures_of_rows
from tasks.imaging import Mask, ellipse, largest_part
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import downstream, resnet, sam, unet
from tasks.quality.arms import ARMS, REGIMES, Arm, Regime, Trial, few
from tasks.quality.detector import Params as DetectorParams
from tasks.quality.detector import View
from tasks.quality.judge import HEALTHY, Pictures
from tasks.quality.resnet import Params as ResNetParams
from tasks.quality.sam import Params as SamParams
from tasks.quality.unet import Params as UNetParams
from tasks.reuse import Done, reuse
from tasks.sources import SourceParams
from tasks.synthesis.attributes import HEAD
from tasks.train_judges import pictures_of

CLASSIFY_ALGORITHM = 2
SEGMENT_ALGORITHM = 3
SAM_ALGORITHM = 2
SEGMENT, SAM, CLASSIFY = "study-segment", "study-sam", "study-classify"
HELD_OUT, EXTERNAL = "held out", "external"
"""Who is tested: the test groups of the fold, or the scans of another source."""
BOX = pa.list_(pa.int32(), 4)

Downstream = TypeVar("Downstream", bound=downstream.Params)


class StudyParams(Record):
    """How the utility study trains and tests; the defaults suit two CPU cores, a GPU deserves more steps."""

    arms: list[Arm] = Field(
        default=ARMS, min_length=1, description="What is compared; differences are against the first"
    )
    regimes: list[Regime] = Field(
        default=REGIMES, min_length=1, description="How many real training scans there are; each arm is trained on each"
    )
    external: SourceParams | None = Field(
        default=None, description="Another dataset, whose lesions every network is tested on as well; null: none"
    )
    unet: UNetParams = Field(default=UNetParams(), description="segmentation")
    sam: SamParams | None = Field(default=None, description="segmentation by a fine-tuned SAM as well; null: without")
    classifier: ResNetParams | None = Field(
        default=ResNetParams(), description="benign or malignant; null: not asked, as where there is one label alone"
    )
    detector: DetectorParams = Field(
        default=DetectorParams(networks=["resnet18"], folds=2, steps=120), description="real or synthetic"
    )
    views: list[View] = Field(
        default=["window", "full", "lesion", "surroundings"], description="what detectors look at, one each"
    )
    controls: bool = Field(default=True, description="also detect damaged images, and real ones against real ones")
    resamples: int = Field(default=2000, ge=50, le=1_000_000, description="bootstrap samples of an interval")
    permutations: int = Field(default=500, ge=20, le=1_000_000, description="relabellings of a p-value")

    def trials(self, seed: int, trainings: int) -> list[Trial]:
        """Every arm in every regime, `trainings` times where the regime does not say; an arm without real images in
        the longest trained regime alone."""
        last = max(reversed(self.regimes), key=lambda regime: regime.steps)
        return [
            Trial(arm=arm, regime=regime, seed=seed + 100 * k)
            for arm in self.arms
            for regime in (self.regimes if arm.real else [last])
            for k in range(regime.trainings or trainings)
        ]


class Fold(Record):
    """What one fold's dataset was made of, as far as a study reads it; `external` are the scans of another source."""

    scans: Ref
    shards: list[Ref]
    curated: Ref
    external: Ref | None = None

    @property
    def digests(self) -> list[str]:
        """Of everything the generator made, for the keys of steps."""
        return [self.scans.sha256, self.curated.sha256, *(shard.sha256 for shard in self.shards)]


@task(name="study segmentation", task_run_name="segment: {trial.arm.name}, {trial.regime.real_images:g} real")
def segment(store_url: str, fold: Fold, trial: Trial, params: UNetParams) -> Done:
    """Train the U-Net of a trial; the Ref is a table of the test images with a mask: tested, id, group, label, in
    pixels hit (drawn and true), drawn and truth, of heads whose pixel size is known drawn_mm and truth_mm
    (circumferences), and the box (left, top, right, bottom) of what is drawn."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        lessons = _lessons(store, fold, trial, healthy=True)
        if not lessons.examples.masks.any():
            return _written(store, SEGMENT, key, _answers(HELD_OUT, [], {}), lessons.counts)
        network = unet.train(
            lessons.examples,
            _shortened(params, trial),
            trial.seed,
            first=lessons.first,
            turns=lessons.turns,
            augmented=trial.arm.augmentation,
        )
        parts: list[pa.Table] = []
        for tested, scans in _tested(store, fold):
            pictures = pictures_of(scans, *SPLITS)
            drawn = unet.draw(network, pictures.images)
            parts.append(_answers(tested, scans, _outlines(drawn, scans)))
        return _written(store, SEGMENT, key, pa.concat_tables(parts), lessons.counts)

    described = {"trial": trial.described, "params": params}
    return reuse(store, SEGMENT, SEGMENT_ALGORITHM, described, _inputs(fold, trial.arm), make)


@task(name="study SAM", task_run_name="SAM: {trial.arm.name}, {trial.regime.real_images:g} real")
def segment_by_sam(store_url: str, fold: Fold, trial: Trial, params: SamParams, drawn: Ref) -> Done:
    """Train SAM's mask decoder for a trial; the Ref is a table as of `segment`, whose table for the same trial is
    `drawn`: boxes come from there, or from the true masks. Where the U-Net drew nothing, the box is the image."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        lessons = _lessons(store, fold, trial, healthy=False)
        if not lessons.examples.masks.any():
            return _written(store, SAM, key, _answers(HELD_OUT, [], {}), lessons.counts)
        model = sam.train(
            sam.load(params.weights),
            lessons.examples,
            _shortened(params, trial),
            trial.seed,
            first=lessons.first,
            turns=lessons.turns,
            augmented=trial.arm.augmentation,
        )
        rows = store.open_table(drawn.key, ["tested", "id", "box"]).to_pylist()
        prompts: dict[tuple[str, str], sam.Box | None] = {(row["tested"], row["id"]): row["box"] for row in rows}
        parts: list[pa.Table] = []
        for tested, scans in _tested(store, fold):
            pictures = pictures_of(scans, *SPLITS)
            height, width = pictures.images.shape[1:]
            boxes = [sam.box_of(mask) for mask in pictures.masks]
            if params.prompt == "unet":
                boxes = [prompts[tested, scan.id] or (0, 0, width, height) for scan in scans]
            found = sam.draw(model, pictures.images, boxes, params)
            parts.append(_answers(tested, scans, _outlines(found, scans)))
        return _written(store, SAM, key, pa.concat_tables(parts), lessons.counts)

    plain = params.model_dump(mode="json", exclude={"weights"})
    inputs = [*_inputs(fold, trial.arm), drawn.sha256, sam.digest(params.weights)]
    return reuse(store, SAM, SAM_ALGORITHM, {"trial": trial.described, "params": plain}, inputs, make)


@task(name="study classification", task_run_name="classify: {trial.arm.name}, {trial.regime.real_images:g} real")
def classify(store_url: str, fold: Fold, trial: Trial, params: ResNetParams) -> Done:
    """Train the classifier of a trial; the Ref is a table of the test lesions: tested, id, group, label, probability
    (of the label that sorts last, `malignant`), positive (whether it is that). It is blank unless there are two
    labels."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        lessons = _lessons(store, fold, trial, healthy=False)
        labels = sorted({scan.label for scan in lesions_of(kept_scans(store, fold.scans), "train", "val", "test")})
        taught = [set(pictures.labels) for pictures in (lessons.first, lessons.examples) if pictures is not None]
        nobody = {"probability": pa.array([], pa.float32()), "positive": pa.array([], pa.bool_())}
        parts = [_answers(HELD_OUT, [], nobody)]
        if len(labels) == 2 and all(names == set(labels) for names in taught):
            network = resnet.train(
                lessons.examples,
                _shortened(params, trial),
                trial.seed,
                first=lessons.first,
                turns=lessons.turns,
                augmented=trial.arm.augmentation,
            )
            for tested, scans in _tested(store, fold):
                known = [scan for scan in scans if scan.label in labels]
                if known:
                    images = pictures_of(known, *SPLITS).images
                    answers = resnet.probabilities(network, images, params)[:, 1]
                    positive = [scan.label == labels[1] for scan in known]
                    parts.append(_answers(tested, known, {"probability": answers, "positive": positive}))
        return _written(store, CLASSIFY, key, pa.concat_tables(parts), lessons.counts)

    described = {"trial": trial.described, "params": params}
    return reuse(store, CLASSIFY, CLASSIFY_ALGORITHM, described, _inputs(fold, trial.arm), make)


def kept_ids(store: Store, fold: Fold) -> set[str]:
    """Ids of the synthetic samples that curation kept."""
    curation = Curation.model_validate_json(store.read(fold.curated.key))
    verdicts = store.open_table(curation.table.key, ["id", "verdict"]).to_pylist()
    return {row["id"] for row in verdicts if row["verdict"] == "kept"}


def kept_samples(store: Store, fold: Fold) -> tuple[list[str], Pictures]:
    """Ids and pictures of the synthetic samples that curation kept, in order of id."""
    good = kept_ids(store, fold)
    rows = [row for shard in fold.shards for row in store.open_table(shard.key).to_pylist() if row["id"] in good]
    rows.sort(key=lambda row: row["id"])
    return [row["id"] for row in rows], pictures_of_rows(rows)


def lesions_of(kept: Sequence[KeptScan], *splits: str) -> list[KeptScan]:
    """Scans of these splits with a lesion that is drawn."""
    return [s for s in kept if s.split in splits and s.label != HEALTHY and s.mask is not None and s.mask.any()]


@dataclass(frozen=True)
class _Lessons:
    """What a trial learns from, after what comes first; `turns` are 0 for real examples and 1 for synthetic ones where
    both are to be equally likely; `counts` are real and synthetic images."""

    first: Pictures | None
    examples: Pictures
    counts: dict[str, int]
    turns: NDArray[np.intp] | None = None


def _lessons(store: Store, fold: Fold, trial: Trial, *, healthy: bool) -> _Lessons:
    """Of the training split; `healthy` scans too, where wanted."""
    arm, kept = trial.arm, kept_scans(store, fold.scans)
    normal = [scan for scan in kept if scan.split == "train" and scan.label == HEALTHY]
    train = [*lesions_of(kept, "train"), *normal]
    taken = few([scan.group for scan in train], [scan.label for scan in train], trial.regime.real_images, trial.seed)
    chosen = [scan for scan, is_taken in zip(train, taken, strict=True) if is_taken]
    lesions = lesions_of(chosen, "train")
    real = pictures_of(chosen if healthy else lesions, "train")
    made = kept_samples(store, fold)[1] if arm.synthetic else real.select(np.zeros(0, np.intp))
    if arm.ratio is not None:
        made = made.select(np.arange(min(len(made), round(arm.ratio * len(lesions)))))
    counts = {"real": len(chosen) if arm.real else 0, "synthetic": len(made)}
    if not arm.real:
        return _Lessons(None, made, counts)
    if arm.pretrain:
        return _Lessons(made if len(made) else None, real, counts)
    turns = np.repeat(np.arange(2), [len(real), len(made)]) if arm.balanced else None
    return _Lessons(None, real.and_also(made), counts, turns)


def _shortened(params: Downstream, trial: Trial) -> Downstream:
    """With the steps of the trial's regime."""
    return params.model_copy(update={"steps": max(2, round(trial.regime.steps * params.steps))})


def _tested(store: Store, fold: Fold) -> list[tuple[str, list[KeptScan]]]:
    """Who is tested, and their lesions."""
    tested = [(HELD_OUT, lesions_of(kept_scans(store, fold.scans), "test"))]
    if fold.external is not None:
        tested.append((EXTERNAL, lesions_of(kept_scans(store, fold.external), *SPLITS)))
    return [(who, scans) for who, scans in tested if scans]


def _inputs(fold: Fold, arm: Arm) -> list[str]:
    """An arm without synthetic images is the same whatever the generator made."""
    made = fold.digests if arm.synthetic else [fold.scans.sha256]
    return made if fold.external is None else [*made, fold.external.sha256]


def _outlines(drawn: Mask, scans: Sequence[KeptScan]) -> dict[str, object]:
    """What is kept of the masks drawn in these scans: see `segment`."""
    masks = pictures_of(scans, *SPLITS).masks
    boxes = [None if not mask.any() else list(sam.box_of(mask)) for mask in drawn]
    sizes = [scan.pixel_mm if scan.label == HEAD else None for scan in scans]
    return {
        "hit": (drawn & masks).sum((1, 2)),
        "drawn": drawn.sum((1, 2)),
        "truth": masks.sum((1, 2)),
        "drawn_mm": pa.array([_circumference(*pair) for pair in zip(drawn, sizes, strict=True)], pa.float64()),
        "truth_mm": pa.array([_circumference(*pair) for pair in zip(masks, sizes, strict=True)], pa.float64()),
        "box": pa.array(boxes, BOX),
    }


def _circumference(mask: Mask, pixel_mm: float | None) -> float | None:
    """Of a head, from the largest piece of its mask; 0 where that is no area."""
    if pixel_mm is None:
        return None
    try:
        return ellipse.circumference_mm(largest_part(mask), pixel_mm)
    except ValueError:
        return 0.0


def _answers(tested: str, scans: Sequence[KeptScan], columns: Mapping[str, object]) -> pa.Table:
    own = {name: pa.array([getattr(scan, name) for scan in scans], pa.string()) for name in ("id", "group", "label")}
    return pa.table({"tested": pa.array([tested] * len(scans), pa.string()), **own, **columns})


def _written(store: Store, step: str, key: str, table: pa.Table, counts: dict[str, int]) -> Ref:
    file = keys.step_file(step, key, "answers.parquet")
    return Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows, counts=counts)
