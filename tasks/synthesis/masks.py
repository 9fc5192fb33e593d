"""New lesion masks of a class, and where in a picture they may lie.

A mask is either derived from a real one of the class (`deformation`) or drawn from a model of the class's outlines
(`shape`). No real one is ever used unchanged. It lies wholly inside tissue, below the skin, and near where
a lesion like it was seen: size, depth and place across are learned together.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy import signal

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.synthesis import shape as shapes
from tasks.synthesis import tissue
from tasks.synthesis.attributes import by_share
from tasks.synthesis.deformation import SAME_SHAPE, new_shape, overlap
from tasks.synthesis.draft import Donor
from tasks.synthesis.shape import Margin, Orientation
from tasks.synthesis.tissue import Place, place_of

Shapes = Literal["donors", "model"]

_ANYWHERE = Place(depth=0.35, lateral=0.0)  # where lesions lie, as far as is known without scans to learn from
_ANYWHERE_SPREAD = 0.13, np.inf
_NEAR = 0.05, 0.12  # standard deviations, in depth and across, around the place that a lesion like it had


class Masks(Record):
    """How masks are shaped and where they may lie. Lengths are shares of the image's side."""

    margin: dict[Margin, float] | dict[str, dict[Margin, float]] | None = Field(
        default=None,
        description="Share of each kind of margin, of all labels or by label, kept by any prefix of the plan; null: as "
        "in the training masks",
    )
    orientation: dict[Orientation, float] | dict[str, dict[Orientation, float]] | None = Field(
        default=None,
        description="Share of each orientation, of all labels or by label, kept by any prefix of the plan; null: as in "
        "the training masks",
    )
    elastic: float = Field(
        default=0.07, ge=0.01, le=0.3, description="Standard deviation of the elastic displacement, in lesion sizes"
    )
    smoothness: float = Field(
        default=0.22, ge=0.05, le=1, description="Length over which the displacement varies, in lesion sizes"
    )
    smallest_scale: float = Field(default=0.75, gt=0.1, le=2, description="Smallest rescaling of a donor mask")
    largest_scale: float = Field(default=1.25, gt=0.1, le=4, description="Largest rescaling of a donor mask")
    turn_degrees: float = Field(default=12, ge=0, le=45, description="Largest rotation of a donor mask")
    skin: float = Field(default=0.08, ge=0, le=0.5, description="Depth below the surface that stays free of lesions")
    skin_mm: float = Field(default=3.0, ge=0, le=20, description="The same in mm, used where the pixel size is known")
    edge: float = Field(default=0.03, ge=0, le=0.3, description="Distance from the sides and bottom of the picture")
    typical_depth: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Most likely depth of a lesion's centre, 0 surface to 1 bottom; null: learned, with the place "
        "across, from training lesions like it",
    )
    depth_spread: float | None = Field(
        default=None, gt=0, le=1, description="Standard deviation of that depth; null: 0.13, or learned like it"
    )
    smallest: float = Field(default=0.07, gt=0, lt=1, description="Smallest lesion: square root of its area")
    largest: float = Field(default=0.45, gt=0, lt=1, description="Largest lesion: square root of its area")
    attempts: int = Field(default=24, ge=1, le=1000, description="Masks tried before a sample is given up")

    @field_validator("margin", "orientation")
    @classmethod
    def _shares_are_positive(cls, shares: dict[str, Any] | None) -> dict[str, Any] | None:
        if shares is not None:
            each = [own if isinstance(own, dict) else shares for own in shares.values()] or [shares]
            if not all(own and all(share > 0 for share in own.values()) for own in each):
                raise ValueError("every share must be above 0; leave a name out to make none of it")
        return shares

    @model_validator(mode="after")
    def _ordered(self) -> "Masks":
        if self.smallest_scale > self.largest_scale or self.smallest >= self.largest:
            raise ValueError(
                f"smallest_scale {self.smallest_scale} .. largest_scale {self.largest_scale}, smallest "
                f"{self.smallest} .. largest {self.largest}: expected smallest below largest"
            )
        return self


@dataclass(frozen=True)
class Real:
    """A whole donor with what its mask says."""

    donor: Donor
    outline: shapes.Outline
    place: Place | None


@dataclass(frozen=True)
class Known:
    """What is known of one label. `per_side` is what the side of a donor's image is in the model's unit, mm or 1."""

    reals: Sequence[Real]
    margins: shapes.Margins
    model: shapes.Model | None
    in_mm: bool
    per_side: float


@dataclass(frozen=True)
class _Proposal:
    """A mask cut to its bounding box, the real one it comes from or is nearest to, and where it wants to lie."""

    mask: Mask
    donor: Donor
    place: Place | None


@dataclass(frozen=True)
class Frame:
    """The picture (H, W) that a mask is placed into: where tissue is imaged, and how large its pixels are."""

    image: Grey
    pixel_mm: float | None


@dataclass(frozen=True)
class Placed:
    """A mask (H, W) in its frame, the real one it comes from or is nearest to, and what it measures as."""

    mask: Mask
    donor: Donor
    kind: Literal["donor", "model"]
    margin: Margin
    orientation: Orientation

    def lineage(self) -> dict[str, object]:
        """What a row says of it."""
        return {
            "mask_id": self.donor.id,
            "mask_kind": self.kind,
            "margin": self.margin,
            "orientation": self.orientation,
        }


def known_classes(shapes_of: Callable[[str], Shapes], donors: Sequence[Donor]) -> dict[str, Known]:
    """What the donors say of every label; `shapes_of` says whether a label's outlines are modelled."""
    reals: defaultdict[str, list[Real]] = defaultdict(list)
    for donor in donors:
        if shapes.is_whole(donor.mask):
            place = None if donor.image is None else place_of(donor.image, donor.mask)
            reals[donor.label].append(Real(donor, shapes.outline(donor.mask), place))
    margins = shapes.learn_margins([(label, real.outline) for label, own in reals.items() for real in own])
    return {label: _known(shapes_of(label), reals[label], margins) for label in sorted(reals)}


@dataclass(frozen=True)
class Wanted:
    """What a mask must measure as; None where anything will do."""

    margin: Margin | None
    orientation: Orientation | None

    def __str__(self) -> str:
        margin = "" if self.margin is None else f", {self.margin} margin"
        return margin + ("" if self.orientation is None else f", {self.orientation}")

    def fits(self, outline: shapes.Outline, margins: shapes.Margins) -> bool:
        """Whether an outline measures so."""
        return self.margin in (None, margins.name(outline.roughness)) and self.orientation in (
            None,
            outline.orientation,
        )


def wanted(params: Masks, label: str, point: float) -> Wanted:
    """The margin and the orientation whose quotas hold `point`, 0 to 1."""
    margin: Margin | None = None
    orientation: Orientation | None = None
    if margins := _own(params.margin, label):
        margin, point = by_share(margins, point)
    if orientations := _own(params.orientation, label):
        orientation, point = by_share(orientations, point)
    return Wanted(margin, orientation)


def fitting(known: Known, asked: Wanted) -> Sequence[Real]:
    """The real masks that measure as asked; all, where none does."""
    return [real for real in known.reals if asked.fits(real.outline, known.margins)] or known.reals


def place(
    params: Masks,
    shapes_from: Shapes,
    label: str,
    frame: Frame,
    classes: Mapping[str, Known],
    asked: Wanted,
    rng: np.random.Generator,
) -> Placed | str:
    """A new mask of a class in a frame, or the reason why none could be placed."""
    known = classes.get(label)
    if known is None:
        found = ", ".join(sorted(classes)) or "none at all"
        return f"no whole donor mask of class {label!r}; the training groups hold masks of: {found}"
    if shapes_from == "model" and known.model is None:
        return (
            f"{len(known.reals)} whole masks of class {label!r}; a shape model needs {shapes.MINIMUM} or more: "
            "set shapes to donors"
        )
    side = frame.image.shape[0]
    skin_px = params.skin * side if frame.pixel_mm is None else params.skin_mm / frame.pixel_mm
    allowed = tissue.allowed_tissue(frame.image, skin_px, params.edge * side)
    if not allowed.any():
        return "no tissue where a lesion may lie: the image is black, or all skin and edge"
    at = tissue.relative_depth(frame.image), tissue.relative_lateral(frame.image)
    for attempt in range(params.attempts):
        # From the second half of the attempts on, shapes shrink: a small frame takes small lesions.
        shrink = min(1.0, 2.0 * (1 - attempt / params.attempts))
        proposal = _propose(params, known, frame, shrink, asked, rng)
        if proposal is None or not params.smallest <= np.sqrt(proposal.mask.sum()) / side <= params.largest:
            continue
        outline = shapes.outline(proposal.mask)
        if not asked.fits(outline, known.margins):
            continue
        corner = _corner(proposal, allowed, at, params, shrink, rng)
        if corner is None:
            continue
        mask = np.zeros(frame.image.shape, np.bool_)
        height, width = proposal.mask.shape
        mask[corner[0] : corner[0] + height, corner[1] : corner[1] + width] = proposal.mask
        kind = "donor" if known.model is None else "model"
        return Placed(mask, proposal.donor, kind, known.margins.name(outline.roughness), outline.orientation)
    return f"no lesion of class {label!r}{asked} fits this tissue in {params.attempts} attempts"


def _known(shapes_from: Shapes, reals: Sequence[Real], margins: shapes.Margins) -> Known:
    in_mm = all(real.donor.pixel_mm is not None for real in reals)
    sides = [(real.donor.pixel_mm or 1 / real.donor.mask.shape[0]) * real.donor.mask.shape[0] for real in reals]
    per_side = float(np.median(sides)) if in_mm else 1.0
    model = None
    if shapes_from == "model" and len(reals) >= shapes.MINIMUM:
        examples = [
            shapes.Example(
                outline=real.outline,
                size=real.outline.size * (per if in_mm else 1.0) / real.donor.mask.shape[0],
                place=real.place,
            )
            for real, per in zip(reals, sides, strict=True)
        ]
        model = shapes.learn(examples, margins)
    return Known(reals, margins, model, in_mm, per_side)


def _propose(
    params: Masks,
    known: Known,
    frame: Frame,
    shrink: float,
    asked: Wanted,
    rng: np.random.Generator,
) -> _Proposal | None:
    if known.model is None:
        reals = fitting(known, asked)
        real = reals[int(rng.integers(len(reals)))]
        mask = _scaled(params, real.donor, frame, shrink, rng)
        aside = 1 if rng.random() < 0.5 else -1  # left and right are alike
        where = None if real.place is None else Place(real.place.depth, aside * real.place.lateral)
        return None if mask is None else _Proposal(mask, real.donor, where)
    drawn = shapes.draw(known.model, rng, asked.margin, asked.orientation)
    if drawn is None:
        return None
    if known.in_mm and frame.pixel_mm is not None:
        size_px = drawn.size / frame.pixel_mm
    else:
        size_px = drawn.size / known.per_side * frame.image.shape[0]
    if not params.smallest <= shrink * size_px / frame.image.shape[0] <= params.largest:
        return None
    mask = shapes.realise(drawn, shrink * size_px)
    nearest, alike = _nearest(mask, known.reals)
    return None if alike >= SAME_SHAPE else _Proposal(mask, nearest.donor, drawn.place)


def _nearest(mask: Mask, reals: Sequence[Real]) -> tuple[Real, float]:
    """The real mask that overlaps `mask` most, and how much; ratios of areas bound what is worth a look."""
    area = int(mask.sum())
    bounds = [min(area, own) / max(area, own) for own in (int(real.donor.mask.sum()) for real in reals)]
    best, alike = reals[0], -1.0
    for number in np.argsort(bounds, kind="stable")[::-1]:
        if bounds[number] <= alike:
            break
        found = overlap(mask, reals[number].donor.mask)
        if found > alike:
            best, alike = reals[number], found
    return best, alike


def _own(shares: Mapping[Any, Any] | None, label: str) -> Mapping[Any, float]:
    """The shares of a label, where they are given by label; nothing where there are none."""
    shares = shares or {}
    return shares.get(label, {}) if any(isinstance(own, Mapping) for own in shares.values()) else shares


def _scaled(params: Masks, donor: Donor, frame: Frame, shrink: float, rng: np.random.Generator) -> Mask | None:
    scale = shrink * float(rng.uniform(params.smallest_scale, params.largest_scale))
    if donor.pixel_mm and frame.pixel_mm:
        scale *= donor.pixel_mm / frame.pixel_mm  # a lesion keeps its size in mm
    else:
        scale *= frame.image.shape[0] / donor.mask.shape[0]
    return new_shape(donor.mask, scale, params, rng)


def _corner(
    proposal: _Proposal,
    allowed: Mask,
    at: tuple[NDArray[np.float32], NDArray[np.float32]],
    params: Masks,
    shrink: float,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Top left of a random place where the mask lies wholly in allowed tissue, likelier where lesions like it lie.

    `at` holds the depth (H, W) and the place across (W,) of the background. Until shapes shrink, a background
    without room near that place is refused.
    """
    mask = proposal.mask
    if mask.shape[0] > allowed.shape[0] or mask.shape[1] > allowed.shape[1]:
        return None
    forbidden = signal.fftconvolve((~allowed).astype(np.float32), mask[::-1, ::-1].astype(np.float32), "valid")
    fits = np.rint(forbidden) == 0
    if not fits.any():
        return None
    learned = params.typical_depth is None and proposal.place is not None
    place = proposal.place if learned and proposal.place else _ANYWHERE
    depth_spread, lateral_spread = _NEAR if learned else _ANYWHERE_SPREAD
    rows, columns = np.nonzero(fits)
    down, across = rows + mask.shape[0] // 2, columns + mask.shape[1] // 2
    off = (at[0][down, across] - (params.typical_depth or place.depth)) / (params.depth_spread or depth_spread)
    aside = (at[1][across] - place.lateral) / lateral_spread
    distance = off**2 + aside**2
    if learned and shrink == 1.0 and distance.min() > 9:
        return None
    weight = np.exp(-0.5 * (distance - distance.min()))
    chosen = int(rng.choice(len(rows), p=weight / weight.sum()))
    return int(rows[chosen]), int(columns[chosen])
