"""What becomes of each scan: kept or set aside, why, in which group and split, at which size."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field, model_validator
from scipy.cluster.hierarchy import DisjointSet

from storage.images import encode_grey, encode_mask, pixels_sha256
from storage.records import SCAN_SCHEMA, SPLITS, Record, Scan, Split
from tasks.imaging import Grey, Mask, letterbox
from tasks.imaging.marks import MARKS, find_marks
from tasks.screening.duplicates import find_alike
from tasks.screening.splits import folds_by_group, split_by_group

KEPT, SET_ASIDE = "kept", "set aside"


class ScreenParams(Record):
    """How scans are screened and split."""

    px: int = Field(
        default=128, ge=32, le=1024, multiple_of=8, description="Side of the square scans are fitted into, px"
    )
    val: float = Field(default=0.15, ge=0, lt=1, description="Share of the images for validation")
    test: float = Field(default=0.15, ge=0, lt=1, description="Share of the images held out to the end")
    folds: int | None = Field(
        default=None,
        ge=2,
        le=100,
        description="Cross-validation: the test split is fold `fold` of so many, by group; `test` and the source's own "
        "splits then do not count, and `val` is a share of the rest",
    )
    fold: int | None = Field(default=None, ge=0, description="Which fold is the test split, 0 to folds - 1")
    keep_marked: bool = Field(default=False, description="Keep scans with burned-in marks or coloured overlays")

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> "ScreenParams":
        if (self.folds is None) != (self.fold is None):
            raise ValueError(f"folds is {self.folds} and fold is {self.fold}; give both, or neither")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} does not exist; expected 0 to {self.folds - 1}")
        return self

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> "ScreenParams":
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} + test {self.test} leave nothing to train on; their sum must be below 1")
        return self


@dataclass(frozen=True)
class Screened:
    """One scan after screening: a row whatever became of it.

    `image` and `mask` are letterboxed to the chosen size and None where the file has none; `pixel_mm` is theirs.
    `group` is the patient, exam or near-duplicate cluster; `cluster` names the copies of one frame alone.
    `split` is None for a group of which nothing is kept. `reasons` of a kept scan are remarks.
    """

    id: str
    file: str
    label: str
    organ: str
    dataset: str
    group: str
    cluster: str
    split: Split | None
    image: Grey | None
    mask: Mask | None
    pixel_mm: float | None
    sha256: str | None
    verdict: str
    reasons: tuple[str, ...]


def screen(
    scans: Sequence[Scan],
    params: ScreenParams,
    seed: int,
    dataset: str,
    advance: Callable[[int], None] | None = None,
) -> list[Screened]:
    """One row for every scan, in their order; `advance` counts scans.

    Of copies the first clean one is kept and the others are set aside; where copies carry different labels, all
    are. Other frames of one lesion are kept, in one split.
    """
    alike = find_alike([scan.image for scan in scans], advance)
    reasons = [[*scan.defects, *(find_marks(scan.image) if scan.image is not None else ())] for scan in scans]
    fitted = [_fitted(scan, params.px) for scan in scans]
    for own, fit in zip(reasons, fitted, strict=True):
        own += fit.problems
    usable = [_usable(own, params.keep_marked) for own in reasons]
    _judge_copies(scans, alike.copies, reasons, usable)
    groups = _merged_groups(scans, alike.copies, dataset)
    splits = _splits(scans, _merged_groups(scans, alike.scenes, dataset), usable, params, seed)
    return [
        Screened(
            id=_identity(scan, dataset),
            file=scan.file,
            label=scan.label,
            organ=scan.organ,
            dataset=dataset,
            group=groups[k],
            cluster=scans[alike.copies[k]].file,
            split=splits[k],
            image=fitted[k].image,
            mask=fitted[k].mask,
            pixel_mm=fitted[k].pixel_mm,
            sha256=fitted[k].sha256,
            verdict=KEPT if usable[k] else SET_ASIDE,
            reasons=tuple(reasons[k]),
        )
        for k, scan in enumerate(scans)
    ]


def to_table(screened: Sequence[Screened]) -> pa.Table:
    """Rows of `records.SCAN_SCHEMA`, PNG-encoded, in the same order."""
    rows: dict[str, list[object]] = {name: [] for name in SCAN_SCHEMA.names}
    for row in screened:
        image = None if row.image is None else {"bytes": encode_grey(row.image), "path": f"{row.id}.png"}
        mask = None if row.mask is None else {"bytes": encode_mask(row.mask), "path": f"{row.id}_mask.png"}
        rows["image"].append(image)
        rows["mask"].append(mask)
        rows["reasons"].append(list(row.reasons))
        for name in ("id", "label", "organ", "dataset", "file", "group", "split", "pixel_mm", "sha256", "verdict"):
            rows[name].append(getattr(row, name))
    return pa.table(rows, schema=SCAN_SCHEMA)


@dataclass(frozen=True)
class _Fitted:
    image: Grey | None
    mask: Mask | None
    pixel_mm: float | None
    sha256: str | None
    problems: tuple[str, ...]


def _fitted(scan: Scan, px: int) -> _Fitted:
    if scan.image is None:
        return _Fitted(None, None, None, None, ())
    fit = letterbox(scan.image, scan.mask, px)
    pixel_mm = None if scan.pixel_mm is None else scan.pixel_mm / fit.scale
    vanished = scan.mask is not None and scan.mask.any() and fit.mask is not None and not fit.mask.any()
    problems = (f"mask vanishes at {px} px",) if vanished else ()
    return _Fitted(fit.image, fit.mask, pixel_mm, pixels_sha256(fit.image), problems)


def _usable(reasons: Sequence[str], keep_marked: bool) -> bool:
    return all(keep_marked and reason.startswith(MARKS) for reason in reasons)


def _judge_copies(
    scans: Sequence[Scan], copies: Sequence[int], reasons: Sequence[list[str]], usable: list[bool]
) -> None:
    """Add to `reasons`, and take out of `usable`, what being a copy of another scan says."""
    clusters: dict[int, list[int]] = {}
    for k, cluster in enumerate(copies):
        clusters.setdefault(cluster, []).append(k)
    for members in clusters.values():
        if len(members) == 1:
            continue
        labelled = [k for k in members if scans[k].label and not _unlabelled(reasons[k])]
        if len({scans[k].label for k in labelled}) > 1:
            for k in members:
                other = next(j for j in labelled if scans[j].label != scans[k].label)
                reasons[k].append(f"label conflict with {scans[other].file}")
                usable[k] = False
            continue
        # An unmarked copy before a marked one, a usable one before any other, then the first.
        kept = min(members, key=lambda k: (not usable[k], len(reasons[k]), k))
        for k in members:
            if k != kept:
                reasons[k].append(f"near-duplicate of {scans[kept].file}")
                usable[k] = False


def _unlabelled(reasons: Sequence[str]) -> bool:
    return any(reason.startswith("unknown label") for reason in reasons)


def _merged_groups(scans: Sequence[Scan], alike: Sequence[int], dataset: str) -> list[str]:
    """Group of each scan: its source's group merged with all that are alike, named after the first of them."""
    sets = DisjointSet(("scan", k) for k in range(len(scans)))
    for k, scan in enumerate(scans):
        sets.merge(("scan", k), ("scan", alike[k]))
        if scan.group is not None:
            sets.add(("group", scan.group))
            sets.merge(("scan", k), ("group", scan.group))
    names: dict[tuple[str, str | int], str] = {}
    for k, scan in enumerate(scans):
        root = sets[("scan", k)]
        # Names the source gave come before file names, and sort first.
        name = f"\0{scan.group}" if scan.group is not None else f"\1{scan.file}"
        names[root] = min(names.get(root, name), name)
    return [f"{dataset}/{names[sets[('scan', k)]][1:]}" for k in range(len(scans))]


def _splits(
    scans: Sequence[Scan], scenes: Sequence[str], usable: Sequence[bool], params: ScreenParams, seed: int
) -> list[Split | None]:
    """Split of each scan's scene, by the usable ones; the source's own where it has one, but for cross-validation."""
    kept = [k for k, good in enumerate(usable) if good]
    if params.folds is not None:
        found = _cross_validation([scenes[k] for k in kept], [scans[k].label for k in kept], params, seed)
        return [found.get(scene) for scene in scenes]
    fixed: dict[str, Split] = {}
    for k in kept:
        own = scans[k].split
        if own is not None:
            # A copy of a test image is a test image: of several splits the one held out longest.
            earlier = fixed.get(scenes[k], own)
            fixed[scenes[k]] = own if SPLITS.index(own) > SPLITS.index(earlier) else earlier
    fractions: dict[Split, float] = {"train": 1 - params.val - params.test, "val": params.val, "test": params.test}
    splits = split_by_group([scenes[k] for k in kept], [scans[k].label for k in kept], fractions, seed, fixed)
    return [splits.get(scene) for scene in scenes]


def _cross_validation(
    scenes: Sequence[str], labels: Sequence[str], params: ScreenParams, seed: int
) -> dict[str, Split]:
    """Test is one fold; of the rest `val` is for validation."""
    assert params.folds is not None
    folds = folds_by_group(scenes, labels, params.folds, seed)
    held_out: dict[str, Split] = {scene: "test" for scene, fold in folds.items() if fold == params.fold}
    rest = [k for k, scene in enumerate(scenes) if scene not in held_out]
    fractions: dict[Split, float] = {"train": 1 - params.val, "val": params.val, "test": 0.0}
    return held_out | split_by_group([scenes[k] for k in rest], [labels[k] for k in rest], fractions, seed)


def _identity(scan: Scan, dataset: str) -> str:
    """Stable name of a row: the file's name and what its pixels are."""
    pixels = pixels_sha256(scan.image) if scan.image is not None else "unreadable"
    digest = hashlib.sha256("\0".join((scan.file, pixels)).encode()).hexdigest()
    return f"{dataset}-{digest[:12]}"
