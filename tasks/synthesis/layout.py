"""Stage 1: a new lesion mask, placed where tissue allows it.

The mask is either derived from a real one of the class: mirrored, rescaled, turned and elastically deformed
(Simard et al., "Best Practices for Convolutional Neural Networks", 2003); or drawn from a model of the class's
outlines (`shape`). No real one is ever used unchanged. It is placed wholly inside tissue, below the skin, and
near where a lesion like it was seen: size, depth and place across are learned together.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy import ndimage, signal

from storage.records import Record
from tasks.imaging import Mask
from tasks.synthesis import shape as shapes
from tasks.synthesis import tissue
from tasks.synthesis.draft import Donor, Draft, Tools, rng_of
from tasks.synthesis.redraw import depth_in
from tasks.synthesis.shape import Margin, Orientation
from tasks.synthesis.tissue import Place, outside_picture, place_of

__all__ = ["SAME_SHAPE", "Params", "apply", "new_shape", "outside_picture", "overlap"]

STAGE_NUMBER = 1
SAME_SHAPE = 0.95
"""Two masks whose intersection over union, centred on each other, reaches this are the same mask."""

_ANYWHERE = Place(depth=0.35, lateral=0.0)  # where lesions lie, as far as is known without scans to learn from
_ANYWHERE_SPREAD = 0.13, np.inf
_Name = TypeVar("_Name", Margin, Orientation)
_NEAR = 0.05, 0.12  # standard deviations, in depth and across, around the place that a lesion like it had


Shapes = Literal["donors", "model"]


class Params(Record):
    """How lesion masks are made and where they may lie. Lengths are shares of the image's side."""

    stage: Literal["layout"] = "layout"
    shapes: Shapes | dict[str, Shapes] = Field(
        default="donors",
        description="Deform real masks of the class, or draw from a model learned from them; for all, or by label",
    )
    margin: dict[Margin, float] | None = Field(
        default=None, description="Share of each kind of margin, scaled to sum to 1; null: as in the training masks"
    )
    orientation: dict[Orientation, float] | None = Field(
        default=None, description="Share of each orientation, scaled to sum to 1; null: as in the training masks"
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
    def _shares_are_positive(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is not None and not (shares and all(share > 0 for share in shares.values())):
            raise ValueError("every share must be above 0; leave a name out to make none of it")
        return shares

    @model_validator(mode="after")
    def _ordered(self) -> "Params":
        if self.smallest_scale > self.largest_scale or self.smallest >= self.largest:
            raise ValueError(
                f"smallest_scale {self.smallest_scale} .. largest_scale {self.largest_scale}, smallest "
                f"{self.smallest} .. largest {self.largest}: expected smallest below largest"
            )
        return self


@dataclass(frozen=True)
class _Real:
    """A whole donor with what its mask says."""

    donor: Donor
    outline: shapes.Outline
    place: Place | None


@dataclass(frozen=True)
class _Class:
    """What is known of one label. `per_side` is what the side of a donor's image is in the model's unit, mm or 1."""

    reals: Sequence[_Real]
    margins: shapes.Margins
    model: shapes.Model | None
    in_mm: bool
    per_side: float


@dataclass(frozen=True)
class _Proposal:
    """A mask cut to its bounding box, the real one it comes from or is nearest to, and where it wants to lie."""

    mask: Mask
    mask_id: str
    place: Place | None


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with a mask, or with the reason why none could be placed."""
    classes = _classes(params, tools.donors)
    made: list[Draft] = []
    for draft in drafts:
        made.append(_place(params, draft, classes))
        tools.advance(1)
    return made


def _classes(params: Params, donors: Sequence[Donor]) -> dict[str, _Class]:
    reals: defaultdict[str, list[_Real]] = defaultdict(list)
    for donor in donors:
        if _is_whole(donor.mask):
            place = None if donor.image is None else place_of(donor.image, donor.mask)
            reals[donor.label].append(_Real(donor, shapes.outline(donor.mask), place))
    margins = shapes.learn_margins([(label, real.outline) for label, own in reals.items() for real in own])
    return {label: _class(_shapes(params, label), reals[label], margins) for label in sorted(reals)}


def _shapes(params: Params, label: str) -> Shapes:
    return params.shapes.get(label, "donors") if isinstance(params.shapes, dict) else params.shapes


def _class(shapes_from: Shapes, reals: Sequence[_Real], margins: shapes.Margins) -> _Class:
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
    return _Class(reals, margins, model, in_mm, per_side)


def _place(params: Params, draft: Draft, classes: Mapping[str, _Class]) -> Draft:
    known = classes.get(draft.label)
    if known is None:
        found = ", ".join(sorted(classes)) or "none at all"
        return draft.failed(f"no whole donor mask of class {draft.label!r}; the training groups hold masks of: {found}")
    if _shapes(params, draft.label) == "model" and known.model is None:
        return draft.failed(
            f"{len(known.reals)} whole masks of class {draft.label!r}; a shape model needs {shapes.MINIMUM} or more: "
            "set shapes to donors"
        )
    side = draft.background.shape[0]
    skin_px = params.skin * side if draft.pixel_mm is None else params.skin_mm / draft.pixel_mm
    allowed = tissue.allowed_tissue(draft.background, skin_px, params.edge * side)
    if not allowed.any():
        return draft.failed("no tissue where a lesion may lie: the image is black, or all skin and edge")
    at = tissue.relative_depth(draft.background), tissue.relative_lateral(draft.background)
    rng = rng_of(draft, STAGE_NUMBER)
    margin, orientation = _wanted(params.margin, rng), _wanted(params.orientation, rng)
    for attempt in range(params.attempts):
        # From the second half of the attempts on, shapes shrink: a small background takes small lesions.
        shrink = min(1.0, 2.0 * (1 - attempt / params.attempts))
        proposal = _propose(params, known, draft, shrink, margin, orientation, rng)
        if proposal is None or not params.smallest <= np.sqrt(proposal.mask.sum()) / side <= params.largest:
            continue
        outline = shapes.outline(proposal.mask)
        named = known.margins.name(outline.roughness)
        if named != (margin or named) or outline.orientation != (orientation or outline.orientation):
            continue
        corner = _corner(proposal, allowed, at, params, shrink, rng)
        if corner is None:
            continue
        mask = np.zeros(draft.background.shape, np.bool_)
        height, width = proposal.mask.shape
        mask[corner[0] : corner[0] + height, corner[1] : corner[1] + width] = proposal.mask
        lineage = {
            **draft.lineage,
            "background_id": draft.background_id,
            "background_kind": draft.background_kind,
            "mask_id": proposal.mask_id,
            "mask_kind": "donor" if known.model is None else "model",
            "margin": named,
            "orientation": outline.orientation,
            "seed": draft.seed,
            "outside_changed_px": 0,
        }
        return replace(draft, mask=mask, region=mask, lineage=lineage)
    asked = f", {margin} margin" * (margin is not None) + f", {orientation}" * (orientation is not None)
    return draft.failed(f"no lesion of class {draft.label!r}{asked} fits this tissue in {params.attempts} attempts")


def _propose(
    params: Params,
    known: _Class,
    draft: Draft,
    shrink: float,
    margin: Margin | None,
    orientation: Orientation | None,
    rng: np.random.Generator,
) -> _Proposal | None:
    if known.model is None:
        fitting = [
            real
            for real in known.reals
            if margin in (None, known.margins.name(real.outline.roughness))
            and orientation in (None, real.outline.orientation)
        ]
        real = (fitting or known.reals)[int(rng.integers(len(fitting or known.reals)))]
        mask = _scaled(params, real.donor, draft, shrink, rng)
        aside = 1 if rng.random() < 0.5 else -1  # left and right are alike
        place = None if real.place is None else Place(real.place.depth, aside * real.place.lateral)
        return None if mask is None else _Proposal(mask, real.donor.id, place)
    drawn = shapes.draw(known.model, rng, margin, orientation)
    if drawn is None:
        return None
    if known.in_mm and draft.pixel_mm is not None:
        size_px = drawn.size / draft.pixel_mm
    else:
        size_px = drawn.size / known.per_side * draft.background.shape[0]
    if not params.smallest <= shrink * size_px / draft.background.shape[0] <= params.largest:
        return None
    mask = shapes.realise(drawn, shrink * size_px)
    nearest, alike = _nearest(mask, known.reals)
    return None if alike >= SAME_SHAPE else _Proposal(mask, nearest.donor.id, drawn.place)


def _nearest(mask: Mask, reals: Sequence[_Real]) -> tuple[_Real, float]:
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


def new_shape(donor: Mask, scale: float, params: Params, rng: np.random.Generator) -> Mask | None:
    """A mask derived from `donor` at `scale` × its size, cut to its bounding box; None if hardly changed."""
    rows, columns = np.flatnonzero(donor.any(axis=1)), np.flatnonzero(donor.any(axis=0))
    tight = donor[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if rng.random() < 0.5:
        tight = tight[:, ::-1]
    size = max(tight.shape)
    margin = size // 2 + 2
    padded = np.pad(tight, margin)
    # The signed distance is smooth, so that a shape can be sampled anywhere without staircase edges.
    inside = depth_in(padded) - depth_in(~padded)
    target = max(2, round(size * scale * 1.6))
    grid = np.stack(np.meshgrid(*[np.linspace(-0.8, 0.8, target)] * 2, indexing="ij"))
    warp = _displacement(target, params, rng)
    angle = np.deg2rad(rng.uniform(-params.turn_degrees, params.turn_degrees))
    stretch = np.exp(rng.normal(0, 0.08))  # wider or taller, area kept
    turned = np.stack(
        [
            (np.cos(angle) * grid[0] - np.sin(angle) * grid[1]) / stretch,
            (np.sin(angle) * grid[0] + np.cos(angle) * grid[1]) * stretch,
        ]
    )
    centre = (np.array(padded.shape) - 1) / 2
    where = (turned + warp) * size + centre[:, None, None]
    sampled = ndimage.map_coordinates(inside, where, order=1, mode="nearest") > 0
    if sampled.sum() < shapes.SMALLEST_PX:
        return None
    shape = shapes.largest_part(sampled)[1:-1, 1:-1]
    return None if shape.sum() < shapes.SMALLEST_PX or overlap(shape, donor) >= SAME_SHAPE else shape


def overlap(one: Mask, other: Mask) -> float:
    """Intersection over union, 0 to 1, of two masks centred on each other, the better of both mirrorings."""
    one, other = shapes.tight(one), shapes.tight(other)
    side = 2 * max(*one.shape, *other.shape) + 1
    fixed = _centred(one, side)
    both = [_centred(other, side), _centred(other[:, ::-1], side)]
    return max(float((fixed & moved).sum() / max(1, (fixed | moved).sum())) for moved in both)


def _is_whole(mask: Mask) -> bool:
    """Whether a mask is large enough and not cut off by the image's edge, which leaves straight sides."""
    inside = mask[1:-1, 1:-1]
    return int(inside.sum()) >= shapes.SMALLEST_PX and int(inside.sum()) == int(mask.sum())


def _wanted(shares: Mapping[_Name, float] | None, rng: np.random.Generator) -> _Name | None:
    """One of the names, by its share; None where none is asked for."""
    if shares is None:
        return None
    names, weights = list(shares), np.array(list(shares.values()))
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _scaled(params: Params, donor: Donor, draft: Draft, shrink: float, rng: np.random.Generator) -> Mask | None:
    scale = shrink * float(rng.uniform(params.smallest_scale, params.largest_scale))
    if donor.pixel_mm and draft.pixel_mm:
        scale *= donor.pixel_mm / draft.pixel_mm  # a lesion keeps its size in mm
    else:
        scale *= draft.background.shape[0] / donor.mask.shape[0]
    return new_shape(donor.mask, scale, params, rng)


def _displacement(side: int, params: Params, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random field (2, side, side) over a grid that spans 1.6 lesion sizes, in lesion sizes."""
    sigma = params.smoothness * side / 1.6
    noise = rng.standard_normal((2, side, side))
    smooth = np.stack([ndimage.gaussian_filter(layer, sigma, mode="reflect") for layer in noise])
    return smooth / max(float(smooth.std()), 1e-9) * params.elastic


def _corner(
    proposal: _Proposal,
    allowed: Mask,
    at: tuple[NDArray[np.float32], NDArray[np.float32]],
    params: Params,
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


def _centred(mask: Mask, side: int) -> Mask:
    out = np.zeros((side, side), np.bool_)
    rows, columns = np.nonzero(mask)
    if len(rows):
        out[rows - round(rows.mean()) + side // 2, columns - round(columns.mean()) + side // 2] = True
    return out
