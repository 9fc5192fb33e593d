"""Stage 1: a new lesion mask, placed where tissue allows it.

The mask is derived from a real one of the class: mirrored, rescaled, turned and elastically deformed (Simard
et al., "Best Practices for Convolutional Neural Networks", 2003), never one used unchanged. It is placed
wholly inside tissue, below the skin, at a plausible depth, by sampling over all positions where it fits.
"""

from dataclasses import replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage, signal

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.synthesis.draft import Donor, Draft, Tools, rng_of
from tasks.synthesis.redraw import depth_in

STAGE_NUMBER = 1
SAME_SHAPE = 0.95
"""Two masks whose intersection over union, centred on each other, reaches this are the same mask."""

_DARK = 12  # grey levels; below, on average over a neighbourhood, nothing was imaged
_WORKING_SIDE = 96  # donors are deformed at about this size, whatever theirs, so that small ones get smooth edges


class Params(Record):
    """How lesion masks are made and where they may lie. Lengths are shares of the image's side."""

    stage: Literal["layout"] = "layout"
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
    typical_depth: float = Field(
        default=0.35, gt=0, lt=1, description="Most likely depth of a lesion's centre, 0 surface to 1 bottom"
    )
    depth_spread: float = Field(default=0.13, gt=0, le=1, description="Standard deviation of that depth")
    smallest: float = Field(default=0.07, gt=0, lt=1, description="Smallest lesion: square root of its area")
    largest: float = Field(default=0.45, gt=0, lt=1, description="Largest lesion: square root of its area")
    attempts: int = Field(default=24, ge=1, le=1000, description="Masks tried before a sample is given up")

    @model_validator(mode="after")
    def _ordered(self) -> "Params":
        if self.smallest_scale > self.largest_scale or self.smallest >= self.largest:
            raise ValueError(
                f"smallest_scale {self.smallest_scale} .. largest_scale {self.largest_scale}, smallest "
                f"{self.smallest} .. largest {self.largest}: expected smallest below largest"
            )
        return self


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with a mask, or with the reason why none could be placed."""
    made: list[Draft] = []
    for draft in drafts:
        made.append(_place(params, draft, tools))
        tools.advance(1)
    return made


def _place(params: Params, draft: Draft, tools: Tools) -> Draft:
    donors = [donor for donor in tools.donors if donor.label == draft.label and _is_whole(donor.mask)]
    if not donors:
        known = ", ".join(sorted({donor.label for donor in tools.donors})) or "none at all"
        return draft.failed(f"no whole donor mask of class {draft.label!r}; the training groups hold masks of: {known}")
    allowed = allowed_tissue(draft.background, params, draft.pixel_mm)
    if not allowed.any():
        return draft.failed("no tissue where a lesion may lie: the image is black, or all skin and edge")
    depth = relative_depth(draft.background)
    rng = rng_of(draft, STAGE_NUMBER)
    side = draft.background.shape[0]
    for attempt in range(params.attempts):
        donor = donors[int(rng.integers(len(donors)))]
        # From the second half of the attempts on, shapes shrink: a small background takes small lesions.
        shrink = min(1.0, 2.0 * (1 - attempt / params.attempts))
        shape = _scaled(params, donor, draft, shrink, rng)
        if shape is None or not params.smallest <= np.sqrt(shape.sum()) / side <= params.largest:
            continue
        corner = _corner(shape, allowed, depth, params, rng)
        if corner is None:
            continue
        mask = np.zeros(draft.background.shape, np.bool_)
        mask[corner[0] : corner[0] + shape.shape[0], corner[1] : corner[1] + shape.shape[1]] = shape
        lineage = {
            **draft.lineage,
            "background_id": draft.background_id,
            "background_kind": draft.background_kind,
            "mask_id": donor.id,
            "seed": draft.seed,
            "outside_changed_px": 0,
        }
        return replace(draft, mask=mask, region=mask, lineage=lineage)
    return draft.failed(f"no lesion of class {draft.label!r} fits this tissue in {params.attempts} attempts")


def outside_picture(image: Grey) -> Mask:
    """Black parts connected to the image's border: letterbox padding, and what lies outside the sector."""
    dark = ndimage.uniform_filter(image.astype(np.float32), max(3, image.shape[0] // 32)) < _DARK
    parts = _parts(dark)
    at_border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.isin(parts, np.unique(at_border[at_border > 0]))


def relative_depth(image: Grey) -> NDArray[np.float32]:
    """Depth of every pixel between the surface of its column, 0, and the picture's lowest row, 1."""
    inside = ~outside_picture(image)
    rows = np.arange(image.shape[0], dtype=np.float32)[:, None]
    if not inside.any():
        return np.zeros(image.shape, np.float32)
    surface = _surface(inside)
    bottom = float(np.flatnonzero(inside.any(axis=1))[-1])
    return np.asarray((rows - surface) / np.maximum(bottom - surface, 1), np.float32)


def allowed_tissue(image: Grey, params: Params, pixel_mm: float | None) -> Mask:
    """Where lesion pixels may lie: imaged tissue, below the skin, away from the edges of the picture."""
    side = image.shape[0]
    outside = outside_picture(image)
    if outside.all():
        return np.zeros(image.shape, np.bool_)
    skin_px = params.skin * side if pixel_mm is None else params.skin_mm / pixel_mm
    rows = np.arange(side, dtype=np.float32)[:, None]
    below_skin = rows >= _surface(~outside) + skin_px
    framed = np.pad(~outside, 1)  # the border of the array is an edge, too
    inner = depth_in(framed)[1:-1, 1:-1] > params.edge * side
    return np.asarray(below_skin & inner)


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
    if not sampled.any():
        return None
    parts = _parts(sampled)
    shape = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    shape = np.asarray(ndimage.binary_fill_holes(shape))
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    shape = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return None if overlap(shape, donor) >= SAME_SHAPE else shape


def overlap(one: Mask, other: Mask) -> float:
    """Intersection over union, 0 to 1, of two masks centred on each other, the better of both mirrorings."""
    side = 2 * max(*one.shape, *other.shape) + 1
    fixed = _centred(one, side)
    both = [_centred(other, side), _centred(other[:, ::-1], side)]
    return max(float((fixed & moved).sum() / max(1, (fixed | moved).sum())) for moved in both)


def _is_whole(mask: Mask) -> bool:
    """Whether a mask covers something and is not cut off by the image's edge, which leaves straight sides."""
    inside = mask[1:-1, 1:-1]
    return bool(inside.any()) and int(inside.sum()) == int(mask.sum())


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
    shape: Mask, allowed: Mask, depth: NDArray[np.float32], params: Params, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Top left of a random place where `shape` lies wholly in allowed tissue, likelier at typical depth."""
    if shape.shape[0] > allowed.shape[0] or shape.shape[1] > allowed.shape[1]:
        return None
    forbidden = signal.fftconvolve((~allowed).astype(np.float32), shape[::-1, ::-1].astype(np.float32), "valid")
    fits = np.rint(forbidden) == 0
    if not fits.any():
        return None
    rows, columns = np.nonzero(fits)
    centre_depth = depth[rows + shape.shape[0] // 2, columns + shape.shape[1] // 2]
    weight = np.exp(-0.5 * ((centre_depth - params.typical_depth) / params.depth_spread) ** 2) + 1e-6
    chosen = int(rng.choice(len(rows), p=weight / weight.sum()))
    return int(rows[chosen]), int(columns[chosen])


def _parts(mask: Mask) -> NDArray[np.int32]:
    """Connected parts, numbered from 1."""
    return np.asarray(cast(tuple[NDArray[np.int32], int], ndimage.label(mask))[0])


def _surface(inside: Mask) -> NDArray[np.float32]:
    """First imaged row of every column; columns outside the picture count as all surface."""
    first = np.where(inside.any(axis=0), inside.argmax(axis=0), inside.shape[0])
    return first.astype(np.float32)


def _centred(mask: Mask, side: int) -> Mask:
    out = np.zeros((side, side), np.bool_)
    rows, columns = np.nonzero(mask)
    if len(rows):
        out[rows - round(rows.mean()) + side // 2, columns - round(columns.mean()) + side // 2] = True
    return out
