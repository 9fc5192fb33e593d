"""Laying a training picture over another as matched spots say, and how much of the two then agrees.

Unlike a duplicate in a data set, a copy in a synthetic one may be turned a little, and may be a part: a lesion set into
other tissue. So the placement has a rotation, and what counts is the largest connected region that agrees.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.quality.copies.interface import band

Points = NDArray[np.float64]
Real = NDArray[np.float32]

_TOLERANCE_PX = 3.0
_HYPOTHESES = 400
_MOST_TURN = 0.3  # radians
_STIFFNESS = 1000.0
"""How strongly few or close points are kept from shearing, px²."""
_SIDE = 200
"""Geometric mean of the sides, px, at which pictures are compared."""
_WINDOW = 25
_REACH = 2
_LINE = 0.6
"""Coherence of gradients, 0..1, from which a window shows a line."""
_FLAT = 1.0
"""Variance, grey levels squared, of a band-passed window below which it shows nothing to compare."""


@dataclass(frozen=True)
class Placement:
    """`b = matrix @ a + shift` for positions (x, y); `spots`: matched spots that agree, those at one place counted
    once."""

    matrix: NDArray[np.float64] = field(repr=False)
    shift: NDArray[np.float64] = field(repr=False)
    spots: int

    @property
    def scale(self) -> float:
        """Pixels of b for each of a."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))


def place(a: Points, b: Points) -> Placement | None:
    """The placement most of the matched positions (n, 2) agree on, or None where they agree on nothing.

    Every pair of matches proposes a scale, turn and shift (a seeded sample of them is tried); the agreeing ones then
    refine it to an affine map.
    """
    plane = np.array([1, 1j])
    from_a, to_b = a @ plane, b @ plane
    first, second = np.triu_indices(min(len(a), 200), 1)
    apart = from_a[second] - from_a[first]
    usable = np.abs(apart) > 12
    first, second, apart = first[usable], second[usable], apart[usable]
    turn = (to_b[second] - to_b[first]) / apart
    usable = (np.abs(turn) > 0.4) & (np.abs(turn) < 2.5) & (np.abs(np.angle(turn)) < _MOST_TURN)
    if not usable.any():
        return None
    first, turn = first[usable], turn[usable]
    if len(turn) > _HYPOTHESES:
        pick = np.random.default_rng(0).choice(len(turn), _HYPOTHESES, replace=False)
        first, turn = first[pick], turn[pick]
    shift = to_b[first] - turn * from_a[first]
    limit = _TOLERANCE_PX * np.maximum(1, np.abs(turn))
    agreeing = np.abs(turn[:, None] * from_a + shift[:, None] - to_b) < limit[:, None]
    inside = agreeing[int(agreeing.sum(1).argmax())]
    matrix, offset = np.eye(2), np.zeros(2)
    for _ in range(3):
        if inside.sum() < 3:
            return None
        matrix, offset = _affine(a[inside], b[inside])
        inside = np.abs(a @ matrix.T + offset - b).max(1) < _TOLERANCE_PX * max(1.0, abs(np.linalg.det(matrix)) ** 0.5)
    if not (inside.any() and 0.16 < np.linalg.det(matrix) < 6.25):
        return None
    return Placement(matrix, offset, min(_distinct(a[inside]), _distinct(b[inside])))


def agreement(a: Grey, b: Grey, placement: Placement, side: float, least: float, hidden: Mask | None = None) -> float:
    """Share of `b`, 0..1, of the largest connected region in which `a`, laid over it, agrees with it.

    Agreeing is a correlation above `least` of what lies between speckle and shading, in windows of an eighth of a side
    that may move by two pixels. Where a window shows one line and little else it does not count towards the share: the
    skulls of two fetuses, or two skin lines, can be laid over each other without being copies.

    `placement` holds for pictures of geometric mean side `side`.
    What is `hidden` of `a`, of its shape, does not count.
    """
    own, laid, there = _laid_over(a, b, placement, side, hidden)
    power_own, power_laid = _mean(own * own), _mean(laid * laid)
    there &= (power_own > _FLAT) & (power_laid > _FLAT)
    best = np.full(own.shape, -1, np.float32)
    for move in np.ndindex(2 * _REACH + 1, 2 * _REACH + 1):
        by = (move[0] - _REACH, move[1] - _REACH)
        joint = _mean(own * np.roll(laid, by, (0, 1)))
        power = power_own * np.roll(power_laid, by, (0, 1))
        np.maximum(best, joint / np.sqrt(np.maximum(power, _FLAT**2)), out=best)
    regions = np.zeros(own.shape, np.int32)
    ndimage.label((best > least) & there, output=regions)
    counted = np.bincount(regions.ravel(), weights=(_coherence(own) < _LINE).ravel())
    return float(counted[1:].max(initial=0.0) / regions.size)


def scaled(image: Grey, side: float) -> Grey:
    """A picture brought to a geometric mean side of `side` px."""
    factor = side / (image.shape[0] * image.shape[1]) ** 0.5
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    how = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, how))


def _affine(a: Points, b: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least-squares matrix and shift, drawn towards the best one without shear."""
    centre_a, centre_b = a.mean(0), b.mean(0)
    x, y = a - centre_a, b - centre_b
    plane = np.array([1, 1j])
    turn = ((y @ plane) @ np.conj(x @ plane)) / max(float((x**2).sum()), 1e-6)
    plain = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    stiff = _STIFFNESS * np.eye(2)
    matrix = np.linalg.solve(x.T @ x + stiff, x.T @ y + stiff @ plain.T).T
    return matrix, centre_b - matrix @ centre_a


def _distinct(positions: Points) -> int:
    """How many places, to about three pixels, these are."""
    return len(np.unique(np.floor(positions / 3), axis=0))


def _laid_over(a: Grey, b: Grey, placement: Placement, side: float, hidden: Mask | None) -> tuple[Real, Real, Mask]:
    """`b`, and `a` on its grid, both band-passed, and where `a` reaches and is not hidden."""
    zoom, factor = placement.scale, _SIDE / side
    small = scaled(b, _SIDE).astype(np.float32)
    other = scaled(a, _SIDE * zoom).astype(np.float32)  # the same tissue at the same resolution
    back = np.linalg.inv(placement.matrix / zoom)
    # Pixel centres lie at one half.
    offset = back @ (0.5 - factor * placement.shift) - 0.5

    def lay(pixels: Real, order: int) -> Real:
        # SciPy takes one offset an axis; its stubs know one number only.
        moved = ndimage.affine_transform(
            pixels,
            back[::-1, ::-1],
            offset[::-1],  # pyright: ignore[reportArgumentType]
            small.shape,
            order=order,
            cval=np.nan,
        )
        return np.asarray(moved, np.float32)

    laid = lay(other, 1)
    there = np.isfinite(laid)
    laid = np.where(there, laid, np.float32(other.mean()))
    reached = np.asarray(ndimage.binary_erosion(there, iterations=4), np.bool_)
    if hidden is not None:
        covered = scaled(hidden.astype(np.uint8) * 255, _SIDE * zoom) > 127
        reached &= ~(lay(covered.astype(np.float32), 0) > 0.5)
    return band(small), band(laid), reached


def _coherence(pixels: Real) -> Real:
    """How far gradients in each window share one direction, 0..1 (Bigün and Granlund's structure tensor, 1987)."""
    down, across = (np.asarray(part, np.float32) for part in np.gradient(pixels))
    vertical, horizontal, mixed = (_mean(part) for part in (down * down, across * across, down * across))
    return np.asarray(np.hypot(vertical - horizontal, 2 * mixed) / (vertical + horizontal + 1e-3), np.float32)


def _mean(values: Real) -> Real:
    return np.asarray(ndimage.uniform_filter(values, _WINDOW, mode="constant"), np.float32)
