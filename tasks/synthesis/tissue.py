"""What a picture shows where: imaged tissue and what lies outside, depth below the skin, place across.

`depth` is 0 at the surface of a column and 1 at the picture's lowest row; `lateral` is -1 at the left and 1 at
the right end of what was imaged.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask

_DARK = 12  # grey levels; below, on average over a neighbourhood, nothing was imaged


@dataclass(frozen=True)
class Place:
    """Where a lesion's centre lies."""

    depth: float
    lateral: float


def outside_picture(image: Grey) -> Mask:
    """Black parts connected to the image's border: letterbox padding, and what lies outside the sector."""
    dark = ndimage.uniform_filter(image.astype(np.float32), max(3, image.shape[0] // 32)) < _DARK
    parts = cast(tuple[NDArray[np.int32], int], ndimage.label(dark))[0]
    at_border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.isin(parts, np.unique(at_border[at_border > 0]))


def in_black(drawn: Grey) -> Grey:
    """A picture that was drawn whole, its surroundings as black as a scan's: decoders turn black into nearly black."""
    return np.where(outside_picture(drawn), 0, drawn).astype(np.uint8)


def relative_depth(image: Grey) -> NDArray[np.float32]:
    """Depth of every pixel between the surface of its column, 0, and the picture's lowest row, 1."""
    inside = ~outside_picture(image)
    rows = np.arange(image.shape[0], dtype=np.float32)[:, None]
    if not inside.any():
        return np.zeros(image.shape, np.float32)
    surface = _surface(inside)
    bottom = float(np.flatnonzero(inside.any(axis=1))[-1])
    return np.asarray((rows - surface) / np.maximum(bottom - surface, 1), np.float32)


def relative_lateral(image: Grey) -> NDArray[np.float32]:
    """Place across, -1 to 1, of every column (W,) of an image; all 0 where nothing was imaged."""
    columns = np.flatnonzero((~outside_picture(image)).any(axis=0))
    if not len(columns):
        return np.zeros(image.shape[1], np.float32)
    middle, half = (columns[0] + columns[-1]) / 2, max(1.0, (columns[-1] - columns[0]) / 2)
    return np.asarray((np.arange(image.shape[1]) - middle) / half, np.float32)


def place_of(image: Grey, mask: Mask) -> Place:
    """Where the centre of a non-blank mask lies in its own image.

    >>> tissue, lesion = np.full((101, 101), 99, np.uint8), np.zeros((101, 101), bool)
    >>> lesion[20:31, 70:81] = True
    >>> place_of(tissue, lesion)
    Place(depth=0.25, lateral=0.5)
    """
    rows, columns = np.nonzero(mask)
    row, column = round(float(rows.mean())), round(float(columns.mean()))
    depth, lateral = relative_depth(image)[row, column], relative_lateral(image)[column]
    return Place(float(np.clip(depth, 0, 1)), float(np.clip(lateral, -1, 1)))


def allowed_tissue(image: Grey, skin_px: float, edge_px: float) -> Mask:
    """Where lesion pixels may lie: imaged, `skin_px` below the surface, `edge_px` off the picture's edges."""
    outside = outside_picture(image)
    if outside.all():
        return np.zeros(image.shape, np.bool_)
    rows = np.arange(image.shape[0], dtype=np.float32)[:, None]
    below_skin = rows >= _surface(~outside) + skin_px
    framed = np.pad(~outside, 1)  # the border of the array is an edge, too
    inner = np.asarray(ndimage.distance_transform_edt(framed))[1:-1, 1:-1] > edge_px
    return np.asarray(below_skin & inner)


def _surface(inside: Mask) -> NDArray[np.float32]:
    """First imaged row of every column; columns outside the picture count as all surface."""
    first = np.where(inside.any(axis=0), inside.argmax(axis=0), inside.shape[0])
    return first.astype(np.float32)
