"""Is this lesion one of the training lesions? Its nearest training neighbour, by correlation of squares.

The staged route paints into real backgrounds, so whole images always resemble a training image; what must
not be a copy is the lesion. Squares around lesions are compared after the slow shading that all lesions share
(dark centre, bright rim) is taken out. Pictures that are drawn whole are compared whole as well, in the same way.
"""

from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.quality.crops import lesion_crops
from tasks.quality.judge import Pictures
from tasks.quality.judged import Evidence

Textures = NDArray[np.float32]

LESION_COPY = 0.75
"""Correlation from which a lesion is a copy. Of 198 lesions of BUSI the nearest of 257 strangers reached 0.72; copies
lie above 0.85, those whose mask is drawn a tenth larger, or turned by eight degrees, at 0.7 and more."""

PX = 32
_SHADING = 3.0  # σ in pixels of the square
_EDGE = 2  # px by which squares are shifted at most
_ZOOMS = (0.85, 1.0, 1.15)
_TURNS = (-6.0, 0.0, 6.0)  # degrees


@dataclass(frozen=True)
class Nearest:
    """For each picture: the highest correlation, -1..1, with any training lesion, and that lesion's row (-1
    where either side has none)."""

    similarity: NDArray[np.float32] = field(repr=False)
    row: NDArray[np.intp] = field(repr=False)


def nearest(pictures: Pictures, train: Pictures) -> Nearest:
    """Nearest training lesion of every picture's lesion, mirrored and shifted by up to two pixels too."""
    lesions = np.flatnonzero(train.masks.any(axis=(1, 2)))
    asked = np.flatnonzero(pictures.masks.any(axis=(1, 2)))
    similarity, row = np.full(len(pictures), np.nan, np.float32), np.full(len(pictures), -1, np.intp)
    if len(lesions) and len(asked):
        masked, known = pictures.select(asked), train.select(lesions)
        found = nearest_texture(textures(masked.images, masked.masks), textures(known.images, known.masks))
        similarity[asked], row[asked] = found.similarity, lesions[found.row]
    return Nearest(similarity, row)


def nearest_texture(asked: Textures, known: Textures) -> Nearest:
    """The same for lesion squares of `textures`, at least one on each side; also zoomed and turned a little."""
    stored = _embedded(known[:, _EDGE:-_EDGE, _EDGE:-_EDGE])
    best = np.full((len(asked), len(known)), -1, np.float32)
    inner = tuple(side - 2 * _EDGE for side in asked.shape[1:])
    for zoom, turn in product(_ZOOMS, _TURNS):
        posed = _posed(asked, zoom, turn)
        for mirrored in (posed, posed[..., ::-1]):
            windows = sliding_window_view(mirrored, inner, (1, 2))
            for down, right in np.ndindex(*windows.shape[1:3]):
                np.maximum(best, _embedded(windows[:, down, right]) @ stored.T, out=best)
    return Nearest(best.max(1), best.argmax(1))


def textures(images: Grey, masks: Mask) -> Textures:
    """The squares around the lesions of masked pictures (n, h, w), each (n, `PX`, `PX`), without their shading."""
    squares, _ = lesion_crops(images, masks, PX)
    levels = squares.astype(np.float32)
    shading = np.asarray(ndimage.gaussian_filter(levels, (0, _SHADING, _SHADING)), np.float32)
    return levels - shading


def nearest_similarity(evidence: Evidence) -> NDArray[np.float32]:
    """Correlation of each lesion with the training lesion it resembles most; NaN where there is none."""
    return nearest(evidence.scored, evidence.train).similarity


def picture_similarity(evidence: Evidence) -> NDArray[np.float32]:
    """Correlation of each whole picture with the training picture it resembles most; NaN where there is none."""
    return nearest(_whole(evidence.scored), _whole(evidence.train)).similarity


def _whole(pictures: Pictures) -> Pictures:
    return replace(pictures, masks=np.ones_like(pictures.masks))


def _posed(squares: Textures, zoom: float, degrees: float) -> Textures:
    """Squares (n, h, w) zoomed and turned about their centres."""
    cos, sin = np.cos(np.radians(degrees)) / zoom, np.sin(np.radians(degrees)) / zoom
    matrix = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    centre = (np.array(squares.shape) - 1) / 2
    offset = centre - matrix @ centre
    # SciPy takes one offset an axis; its stubs know one number only.
    turned = ndimage.affine_transform(squares, matrix, offset, order=1, mode="nearest")  # pyright: ignore[reportArgumentType]
    return np.asarray(turned, np.float32)


def _embedded(squares: Textures) -> NDArray[np.float32]:
    """Rows of zero mean and unit length: their products are correlations."""
    rows = squares.reshape(len(squares), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
