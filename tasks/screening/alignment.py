"""Laying one picture over another, and how far their speckle then agrees.

Two frames of one lesion share anatomy; only copies of one frame share speckle. So after registration the pictures
are high-passed and compared block by block: the median over blocks ignores calipers and text burned into one copy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.imaging import Grey

Points = NDArray[np.float64]

_TOLERANCE_PX = 3.0
_BLOCK = 24
_SIDE = 300
"""Geometric mean of the sides, px, at which speckle is compared; less where a picture holds less."""
_FLAT = 0.8
"""Standard deviation of a high-passed block, grey levels, below which it shows nothing to compare."""
_LEAST_BLOCKS = 6
_THUMBNAIL = 96
_THUMBNAIL_BLOCK = 12
_RESEMBLING = 0.5
"""Median correlation of thumbnail blocks; copies lie above 0.8, frames of one sweep above 0.6, most strangers with a
few matches below 0.3."""


@dataclass(frozen=True)
class Placement:
    """`b = scale * a + shift` for positions (x, y) in pixels of pictures scaled to a common size."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    inliers: int


def place(a: Points, b: Points) -> Placement | None:
    """The scale and shift most of the matched positions (n, 2) agree on, or None where they agree on nothing.

    Every pair of matches proposes one (at most 300 are tried); inliers then refine it, letting width and height
    stretch by different factors, as careless resizing does.
    """
    first, second = np.triu_indices(len(a), 1)
    if len(first) > 300:
        pick = np.random.default_rng(0).choice(len(first), 300, replace=False)
        first, second = first[pick], second[pick]
    length = np.linalg.norm(a[second] - a[first], axis=1)
    scales = np.linalg.norm(b[second] - b[first], axis=1) / np.maximum(length, 1e-6)
    usable = (length > 15) & (scales > 0.4) & (scales < 2.5)
    if not usable.any():
        return None
    first, scales = first[usable], scales[usable]
    shifts = b[first] - scales[:, None] * a[first]
    errors = np.abs(scales[:, None, None] * a + shifts[:, None] - b).max(-1)
    agreeing = errors < _TOLERANCE_PX * np.maximum(1, scales)[:, None]
    best = int(agreeing.sum(1).argmax())
    inside, scale, shift = agreeing[best], np.full(2, scales[best]), shifts[best]
    for _ in range(3):
        if inside.sum() < 3:
            return None
        scale, shift = _least_squares(a[inside], b[inside])
        inside = np.abs(a * scale + shift - b).max(-1) < _TOLERANCE_PX * max(1.0, scale.max())
    if not (scale.min() > 0.4 and scale.max() < 2.5):
        return None
    return Placement(scale, shift, int(inside.sum()))


def _least_squares(a: Points, b: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and shift of each axis; few or close points pull both axes towards one scale."""
    centre_a, centre_b = a.mean(0), b.mean(0)
    spread = np.square(a - centre_a).sum(0)
    joint = ((a - centre_a) * (b - centre_b)).sum(0)
    common = joint.sum() / max(spread.sum(), 1e-6)
    scale = (joint + 300 * common) / (spread + 300)
    return scale, centre_b - scale * centre_a


def thumbnail(image: Grey) -> NDArray[np.float32]:
    """A picture of geometric mean side `_THUMBNAIL`, for `resembles`."""
    return _scaled(image, _THUMBNAIL)


def resembles(a: NDArray[np.float32], b: NDArray[np.float32], placement: Placement, side: float) -> bool:
    """Whether thumbnails of two pictures agree at all under `placement`: a hundredth of the work of comparing
    speckle, passed by all copies and by few others."""
    shift = placement.shift * (_THUMBNAIL / side)
    laid = _warped(b, placement.scale, shift, a.shape, high_pass=False)
    _, agreement = _block_search(a, laid, reach=0, block=_THUMBNAIL_BLOCK)
    return len(agreement) >= _LEAST_BLOCKS and float(np.median(agreement)) > _RESEMBLING


def speckle_agreement(a: Grey, b: Grey, placement: Placement, side: float) -> float:
    """Median correlation, -1 to 1, of high-passed blocks of `a` with what `placement` lays over them.

    `placement` holds for pictures of geometric mean side `side`. -1 where too little overlaps to say.
    """
    zoom = float(placement.scale.mean())
    side_a, side_b = ((picture.shape[0] * picture.shape[1]) ** 0.5 for picture in (a, b))
    # The same tissue at the same resolution in both, and in neither finer than its file holds.
    working = min(_SIDE, side_a, side_b * zoom)
    small_a, small_b = _scaled(a, working), _scaled(b, working / zoom)
    scale, shift = placement.scale / zoom, placement.shift * (working / zoom / side)
    high_a = _high_pass(small_a)
    # The first pass finds where each block really lies, the second measures with the placement corrected by it.
    moves, agreement = _block_search(high_a, _warped(small_b, scale, shift, high_a.shape), reach=3)
    if (agreement > 0.3).sum() >= _LEAST_BLOCKS:
        scale, shift = _corrected(scale, shift, moves, agreement)
    _, agreement = _block_search(high_a, _warped(small_b, scale, shift, high_a.shape), reach=1)
    return float(np.median(agreement)) if len(agreement) >= _LEAST_BLOCKS else -1.0


def _scaled(image: Grey, side: float) -> NDArray[np.float32]:
    factor = side / (image.shape[0] * image.shape[1]) ** 0.5
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), np.float32)


def _high_pass(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(pixels - ndimage.gaussian_filter(pixels, 2.5), np.float32)


def _warped(
    b: NDArray[np.float32],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    shape: tuple[int, ...],
    high_pass: bool = True,
) -> NDArray[np.float32]:
    """`b` on the grid of `a`, high-passed; NaN where it does not reach."""
    # Pixel centres lie at one half, so a scale about the corner moves index zero.
    offset = (scale * 0.5 + shift - 0.5)[::-1]
    laid = np.asarray(
        # SciPy takes one offset an axis; its stubs know one number only.
        ndimage.affine_transform(b, scale[::-1], offset, shape, order=1, cval=np.nan),  # pyright: ignore[reportArgumentType]
        np.float32,
    )
    if not high_pass:
        return laid
    missing = np.isnan(laid)
    high = _high_pass(np.where(missing, np.float32(b.mean()), laid))
    high[missing] = np.nan
    return high


def _block_search(
    a: NDArray[np.float32], b: NDArray[np.float32], reach: int, block: int = _BLOCK
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each comparable block of `a` the move (n, 4: x, y, dx, dy) within ±`reach` px under which `b` agrees
    best, and that correlation (n,)."""
    rows, columns = (a.shape[0] - 2 * reach) // block, (a.shape[1] - 2 * reach) // block
    if rows < 1 or columns < 1:
        return np.zeros((0, 4)), np.zeros(0)

    def blocks(pixels: NDArray[np.float32], dy: int, dx: int) -> NDArray[np.float32]:
        y, x = reach + dy, reach + dx
        window = pixels[y : y + rows * block, x : x + columns * block]
        tiles = window.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(rows * columns, -1)
        return tiles - tiles.mean(1, keepdims=True)

    own = blocks(a, 0, 0)
    own_norm = np.linalg.norm(own, axis=1)
    moves = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    scores = np.full((len(moves), len(own)), np.nan)
    for k, (dy, dx) in enumerate(moves):
        other = blocks(b, dy, dx)
        norm = own_norm * np.maximum(np.linalg.norm(other, axis=1), _FLAT * block)
        scores[k] = np.einsum("ij,ij->i", own, other) / np.maximum(norm, 1e-6)
    comparable = np.isfinite(scores).all(0) & (own_norm > _FLAT * block)
    best = scores[:, comparable].argmax(0) if comparable.any() else np.zeros(0, np.intp)
    y, x = np.divmod(np.flatnonzero(comparable), columns)
    chosen = np.array(moves, np.float64)[best].reshape(-1, 2)
    centres = np.stack([x, y], axis=1) * block + reach + block / 2
    return np.concatenate([centres, chosen[:, ::-1]], axis=1), scores[:, comparable].max(0, initial=-1.0)


def _corrected(
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    moves: NDArray[np.float64],
    agreement: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and shift that also make the moves of the agreeing blocks."""
    good = agreement > 0.3
    at, moved = moves[good, :2], moves[good, :2] + moves[good, 2:]
    stretch, offset = _least_squares(at, moved)
    return scale * stretch, scale * offset + shift
