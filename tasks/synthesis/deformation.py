"""New outlines from real ones: mirrored, rescaled, turned and elastically deformed.

Elastic deformation: Simard et al., "Best Practices for Convolutional Neural Networks", 2003.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Mask
from tasks.synthesis import shape as shapes
from tasks.synthesis.redraw import depth_in

SAME_SHAPE = 0.95
"""Two masks whose intersection over union, centred on each other, reaches this are the same mask."""


class Deformation(Protocol):
    """How much an outline is deformed: `elastic` and `smoothness` in sizes of the outline."""

    @property
    def elastic(self) -> float: ...

    @property
    def smoothness(self) -> float: ...

    @property
    def turn_degrees(self) -> float: ...


def new_shape(donor: Mask, scale: float, how: Deformation, rng: np.random.Generator) -> Mask | None:
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
    warp = _displacement(target, how, rng)
    angle = np.deg2rad(rng.uniform(-how.turn_degrees, how.turn_degrees))
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


def _displacement(side: int, how: Deformation, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random field (2, side, side) over a grid that spans 1.6 lesion sizes, in lesion sizes."""
    sigma = how.smoothness * side / 1.6
    noise = rng.standard_normal((2, side, side))
    smooth = np.stack([ndimage.gaussian_filter(layer, sigma, mode="reflect") for layer in noise])
    return smooth / max(float(smooth.std()), 1e-9) * how.elastic


def _centred(mask: Mask, side: int) -> Mask:
    out = np.zeros((side, side), np.bool_)
    rows, columns = np.nonzero(mask)
    if len(rows):
        out[rows - round(rows.mean()) + side // 2, columns - round(columns.mean()) + side // 2] = True
    return out
