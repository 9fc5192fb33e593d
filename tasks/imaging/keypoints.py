"""Local descriptors: which spots of two pictures show the same speckle, whatever crop, size or brightness.

Upright gradient histograms (Lowe 2004, without orientation: scanners do not rotate pictures) at the local
extrema of a difference of Gaussians, on a pyramid of three levels an octave.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.imaging import Grey

SIDE = 176
"""Every picture is first scaled to this geometric mean of its sides, px, so that resized copies agree."""
_ORIENTATIONS = 8
_CELL = 5
"""Side of one histogram cell, px; a descriptor has 4 × 4 cells."""
_CLIP = 0.2
_BINS = np.arange(_ORIENTATIONS * 16).reshape(_ORIENTATIONS, 4, 4)
# A gradient at angle a lies at 180° - a in the mirror image, at -a in the one turned top to bottom.
_LEFT_FOR_RIGHT = _BINS[(_ORIENTATIONS // 2 - np.arange(_ORIENTATIONS)) % _ORIENTATIONS, :, ::-1].ravel()
_TOP_FOR_BOTTOM = _BINS[-np.arange(_ORIENTATIONS) % _ORIENTATIONS, ::-1].ravel()


@dataclass(frozen=True)
class Keypoints:
    """`xy` (n, 2): position as a share of width and height; `level` (n,): pyramid level, 3 an octave;
    `vectors` (n, 128) float32 of length 1."""

    xy: NDArray[np.float32]
    level: NDArray[np.int16]
    vectors: NDArray[np.float32]


def describe(image: Grey, side: int = SIDE, levels: int = 7, apart: int = 9) -> Keypoints:
    """Keypoints of a picture of shape (h, w).

    Args:
        image: the picture.
        side: geometric mean of its sides, px, at which the finest of the levels looks at it.
        levels: of the pyramid, three an octave; fewer where the picture becomes too small.
        apart: half-width of the window in which a keypoint is the strongest, px: spreads keypoints over the picture,
            independent of crops.
    """
    height, width = image.shape
    source = Image.fromarray(image)
    found: list[tuple[NDArray[np.float32], int, NDArray[np.float32]]] = []
    for level in range(levels):
        factor = side / (height * width) ** 0.5 * 2 ** (-level / 3)
        size = (round(width * factor), round(height * factor))
        if min(size) < 5 * _CELL:
            break
        pixels = np.asarray(source.resize(size, Image.Resampling.HAMMING), np.float32)
        y, x = _extrema(pixels, apart)
        if len(y):
            shares = np.stack([(x + 0.5) / size[0], (y + 0.5) / size[1]], axis=1)
            found.append((shares.astype(np.float32), level, _histograms(pixels, y, x)))
    if not found:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.int16), np.zeros((0, 128), np.float32))
    numbers = np.concatenate([np.full(len(xy), level, np.int16) for xy, level, _ in found])
    return Keypoints(np.concatenate([f[0] for f in found]), numbers, np.concatenate([f[2] for f in found]))


def mirrored(points: Keypoints) -> Keypoints:
    """The keypoints of the picture's mirror image, left for right, without looking again."""
    xy = np.stack([1 - points.xy[:, 0], points.xy[:, 1]], axis=1)
    return Keypoints(xy, points.level, points.vectors[:, _LEFT_FOR_RIGHT])


def upside_down(points: Keypoints) -> Keypoints:
    """The keypoints of the picture turned top to bottom, without looking again."""
    xy = np.stack([points.xy[:, 0], 1 - points.xy[:, 1]], axis=1)
    return Keypoints(xy, points.level, points.vectors[:, _TOP_FOR_BOTTOM])


def _extrema(pixels: NDArray[np.float32], apart: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the strongest spots, none on flat ground."""
    response = np.abs(ndimage.gaussian_filter(pixels, 1.2) - ndimage.gaussian_filter(pixels, 2.0))
    strongest = ndimage.maximum_filter(response, 2 * apart + 1)
    inner = np.zeros(pixels.shape, np.bool_)
    edge = _CELL + 1
    inner[edge:-edge, edge:-edge] = True
    y, x = np.nonzero((response == strongest) & (response > 0.7) & inner)
    return y, x


def _histograms(pixels: NDArray[np.float32], y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.float32]:
    """4 × 4 cells of 8 gradient orientations around each spot, clipped against single bright edges."""
    smooth = ndimage.gaussian_filter(pixels, 0.8)
    dy, dx = np.gradient(smooth)
    angle = np.arctan2(dy, dx) * (_ORIENTATIONS / (2 * np.pi))
    strength = np.hypot(dy, dx)
    lower = np.floor(angle)
    share = angle - lower
    first = lower.astype(np.int64) % _ORIENTATIONS
    maps = np.zeros((_ORIENTATIONS, *pixels.shape), np.float32)
    rows, columns = np.indices(pixels.shape)
    maps[first, rows, columns] = strength * (1 - share)
    maps[(first + 1) % _ORIENTATIONS, rows, columns] += strength * share
    for axis in (1, 2):
        maps = ndimage.uniform_filter1d(maps, _CELL, axis, mode="constant")
    offsets = np.rint((np.arange(4) - 1.5) * _CELL).astype(np.int64)
    grid_y = np.clip(y[:, None, None] + offsets[:, None], 0, pixels.shape[0] - 1)
    grid_x = np.clip(x[:, None, None] + offsets[None, :], 0, pixels.shape[1] - 1)
    vectors = maps[:, grid_y, grid_x].transpose(1, 0, 2, 3).reshape(len(y), -1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    vectors = np.minimum(vectors, _CLIP)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6)
