"""What no scanner draws into tissue: ink, pasted squares, frames, areas of one level.

Every sign is tested in the direction in which ultrasound cannot have it. Speckle is wide across the beam, so nothing
in tissue is upright, straight and one pixel thin; layers lie flat, so a straight upright step over many rows is an
edge of a pasted picture or of a box.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey
from tasks.imaging.marks import find_marks
from tasks.quality.extractors.regions import content
from tasks.quality.judged import Evidence

_BATCH = 64
_EDGE_ROWS = 9
_EDGE = 5.2
"""Height of a straight upright step over the roughness of its rows: 1 in 100 real breast scans reaches it."""
_STROKES = ((5, 34), (7, 19))
"""Rows of an upright stroke, and grey levels between all of it and what lies two pixels to either side: the longer, the
fewer."""
_ARM = 3
_CROSS = 15
"""The same for all four arms of a cross at once."""
_FLAT_PX = 6
_FLAT_FROM = 12
"""Black areas are shadow or padding; from this level on, no 6 × 6 pixels of tissue are equal."""
_WHITE = 250
"""But for saturated ones."""


def defects(evidence: Evidence) -> NDArray[np.float32]:
    """Number of kinds of defect in each image, 0 where it has none: ink (text, calipers, crosses), pasted edges, areas
    or frames of one level. A colour cast is gone from grey images: sources report it."""
    images = evidence.scored.images
    counts = np.zeros(len(images), np.float32)
    for at in range(0, len(images), _BATCH):
        batch = images[at : at + _BATCH]
        counts[at : at + _BATCH] = np.sum([found(batch) for found in SIGNS.values()], axis=0)
    return counts


def inked(images: Grey) -> NDArray[np.bool_]:
    """Which images (n, h, w) hold upright strokes, small crosses, or larger text and calipers."""
    upright = _strokes(images)
    stroke = np.zeros(images.shape, np.bool_)
    for rows, height in _STROKES:
        stroke |= _least(upright, np.ones(rows, np.bool_), 1) > height
    arms = np.ones(2 * _ARM + 1, np.bool_)
    arms[_ARM] = False  # the centre belongs to both strokes, and neither stands out there
    flat = _strokes(images.transpose(0, 2, 1)).transpose(0, 2, 1)
    cross = np.minimum(_least(upright, arms, 1), _least(flat, arms, 2)) > _CROSS
    marked = np.array([bool(find_marks(image)) for image in images], np.bool_)
    return stroke.any(axis=(1, 2)) | cross.any(axis=(1, 2)) | marked


def pasted(images: Grey) -> NDArray[np.bool_]:
    """Which images (n, h, w) have a straight upright edge inside the picture."""
    if min(images.shape[1:]) < 2 * _EDGE_ROWS:
        return np.zeros(len(images), np.bool_)
    step = np.diff(images.astype(np.float32), axis=2)
    mean = np.abs(ndimage.uniform_filter1d(step, _EDGE_ROWS, axis=1))
    beside = np.maximum(np.roll(mean, 1, 2), np.roll(mean, -1, 2))  # a slope is anatomy, a lone step is not
    rough = np.sqrt(
        ndimage.uniform_filter1d(ndimage.uniform_filter1d(step**2, _EDGE_ROWS, axis=1), _EDGE_ROWS, axis=2) + 4
    )
    inside = content(images)
    inside = ndimage.minimum_filter((inside[:, :, 1:] & inside[:, :, :-1]).view(np.uint8), (1, _EDGE_ROWS, 5))
    lone = (mean - beside) / rough * np.sqrt(_EDGE_ROWS) > _EDGE
    return (lone & (inside > 0)).any(axis=(1, 2))


def blanked(images: Grey) -> NDArray[np.bool_]:
    """Which images (n, h, w) have an area of one grey level that is neither black nor saturated."""
    size = (1, _FLAT_PX, _FLAT_PX)
    highest, lowest = ndimage.maximum_filter(images, size), ndimage.minimum_filter(images, size)
    return ((highest == lowest) & (images > _FLAT_FROM) & (images < _WHITE)).any(axis=(1, 2))


def framed(images: Grey) -> NDArray[np.bool_]:
    """Which images (n, h, w) have a border row or column of one grey level that is not black."""
    sides = images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]
    return np.logical_or.reduce([(np.ptp(side, axis=1) <= 1) & (side[:, 0] > _FLAT_FROM) for side in sides])


SIGNS: dict[str, Callable[[Grey], NDArray[np.bool_]]] = {
    "ink": inked,
    "pasted edge": pasted,
    "area of one level": blanked,
    "frame": framed,
}


def _strokes(images: Grey) -> NDArray[np.int16]:
    """Grey levels by which each pixel exceeds what lies two pixels to its left and right."""
    grey = images.astype(np.int16)
    out = np.full(grey.shape, -255, np.int16)
    out[:, :, 2:-2] = grey[:, :, 2:-2] - np.maximum(grey[:, :, :-4], grey[:, :, 4:])
    return out


def _least(values: NDArray[np.int16], window: NDArray[np.bool_], axis: int) -> NDArray[np.int16]:
    """Least of the values under a window centred on each pixel."""
    shape = [1, 1, 1]
    shape[axis] = len(window)
    return np.asarray(ndimage.minimum_filter(values, footprint=window.reshape(shape)), np.int16)
