"""Is this lesion one of the training lesions? Its nearest training neighbour, by correlation of squares.

The staged route paints into real backgrounds, so whole images always resemble a training image; what must
not be a copy is the lesion. Squares around lesions are compared after the slow shading that all lesions share
(dark centre, bright rim) is taken out.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.quality.crops import lesion_crops
from tasks.quality.evidence import Evidence
from tasks.quality.judge import Pictures

PX = 32
_SHADING = 6.0  # σ in pixels of the square
_SHIFTS = range(-2, 3)


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
    if not (len(lesions) and len(asked)):
        return Nearest(similarity, row)
    known = _embedded(_textures(train.select(lesions)))
    best = np.full((len(asked), len(lesions)), -1, np.float32)
    textures = _textures(pictures.select(asked))
    for mirrored in (textures, textures[..., ::-1]):
        for down in _SHIFTS:
            for right in _SHIFTS:
                shifted = _embedded(np.roll(mirrored, (down, right), (1, 2)))
                np.maximum(best, shifted @ known.T, out=best)
    similarity[asked], row[asked] = best.max(1), lesions[best.argmax(1)]
    return Nearest(similarity, row)


def nearest_similarity(evidence: Evidence) -> NDArray[np.float32]:
    """Correlation of each lesion with the training lesion it resembles most; NaN where there is none."""
    return nearest(evidence.scored, evidence.train).similarity


def _textures(pictures: Pictures) -> NDArray[np.float32]:
    """Lesion squares (n, px, px) without their shading."""
    squares, _ = lesion_crops(pictures.images, pictures.masks, PX)
    levels = squares.astype(np.float32)
    shading = np.asarray(ndimage.gaussian_filter(levels, (0, _SHADING, _SHADING)), np.float32)
    return levels - shading


def _embedded(textures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of zero mean and unit length: their products are correlations."""
    edge = max(_SHIFTS)
    inner = textures[:, edge:-edge, edge:-edge].reshape(len(textures), -1)
    inner = inner - inner.mean(1, keepdims=True)
    return inner / np.maximum(np.linalg.norm(inner, axis=1, keepdims=True), 1e-6)
