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

_LEVELS = 7
_APART = 9
"""Half-width of the window in which a keypoint is the strongest, px: spreads keypoints, independent of crops."""
_ORIENTATIONS = 8
_CELL = 5
"""Side of one histogram cell, px; a descriptor has 4 × 4 cells."""
_CLIP = 0.2


@dataclass(frozen=True)
class Keypoints:
    """`xy` (n, 2): position as a share of width and height; `level` (n,): pyramid level, 3 an octave;
    `vectors` (n, 128) float32 of length 1."""

    xy: NDArray[np.float32]
    level: NDArray[np.int16]
    vectors: NDArray[np.float32]


def describe(image: Grey) -> Keypoints:
    """Keypoints of a picture of shape (h, w), strongest first within each level."""
    height, width = image.shape
    source = Image.fromarray(image)
    found: list[tuple[NDArray[np.float32], int, NDArray[np.float32]]] = []
    for level in range(_LEVELS):
        factor = SIDE / (height * width) ** 0.5 * 2 ** (-level / 3)
        size = (round(width * factor), round(height * factor))
        if min(size) < 5 * _CELL:
            break
        pixels = np.asarray(source.resize(size, Image.Resampling.HAMMING), np.float32)
        y, x = _extrema(pixels)
        if len(y):
            shares = np.stack([(x + 0.5) / size[0], (y + 0.5) / size[1]], axis=1)
            found.append((shares.astype(np.float32), level, _histograms(pixels, y, x)))
    if not found:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.int16), np.zeros((0, 128), np.float32))
    levels = np.concatenate([np.full(len(xy), level, np.int16) for xy, level, _ in found])
    return Keypoints(np.concatenate([f[0] for f in found]), levels, np.concatenate([f[2] for f in found]))


def _extrema(pixels: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the strongest spots, none on flat ground."""
    response = np.abs(ndimage.gaussian_filter(pixels, 1.2) - ndimage.gaussian_filter(pixels, 2.0))
    strongest = ndimage.maximum_filter(response, 2 * _APART + 1)
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
