"""Calipers and text burned into a picture.

Scanners draw with a constant grey level and edges one pixel wide; tissue does neither, least of all across the beam,
where it is blurred. So ink is found as thin strokes of one level, calipers as four arms around a centre, text as
several upright strokes of one level side by side. Colour is gone here: sources report coloured overlays themselves.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask

MARKS = "marks: "
"""How every reason about marks begins, in sources too, so that a recipe can choose to keep marked pictures."""

Points = NDArray[np.intp]

_SPREAD = 14
"""Grey levels within one stroke."""
_STEP = 28
"""Grey levels between a caliper's stroke and what lies beside it."""
_TEXT_STEP = 45
_HALF_WIDTH = 4
"""A stroke is at most this wide, px."""
_LEAST_LEVEL = 110
_ARM = 4
"""Length tested of a caliper's arm, px, from two pixels off its centre."""
_TEXT_HEIGHT = 7
_LOGO_PX = 28
"""Corners this large are left out: crops of one scanner leave half a letter of its logo there in every picture."""


def find_marks(image: Grey) -> list[str]:
    """Reasons such as "marks: 4 caliper crosses", none where nothing is drawn on a picture of shape (h, w)."""
    if min(image.shape) < 4 * _LOGO_PX:
        return []
    pixels = image.astype(np.int16)
    found: list[str] = []
    if crosses := _crosses(pixels):
        found.append(f"{MARKS}{crosses} caliper {'cross' if crosses == 1 else 'crosses'}")
    if strokes := _text_strokes(pixels):
        found.append(f"{MARKS}text of {strokes} upright strokes")
    return found


def _crosses(pixels: NDArray[np.int16]) -> int:
    """Number of upright (+) and diagonal (×) crosses."""
    margin = 2 + _ARM + 3
    inner = np.zeros(pixels.shape, np.bool_)
    inner[margin:-margin, margin:-margin] = pixels[margin:-margin, margin:-margin] >= _LEAST_LEVEL
    bright = np.argwhere(_without_corners(inner))
    total = 0
    for along in ((0, 1), (1, 1)):
        across = (along[1], -along[0])
        at = bright
        # Each arm leaves few candidates to the next: the order costs nothing, testing all pixels would.
        for arm, flank in ((along, across), (across, along)):
            for sign in (1, -1):
                at = at[_has_arm(pixels, at, sign * np.array(arm), np.array(flank))]
        centres = np.zeros(pixels.shape, np.bool_)
        centres[at[:, 0], at[:, 1]] = True
        total += int(_labelled(centres)[1])
    return total


def _has_arm(pixels: NDArray[np.int16], at: Points, arm: Points, flank: Points) -> Mask:
    """For each position (n, 2: y, x) whether a stroke of its own level leaves in direction `arm`, darker on both
    sides."""
    fits = np.ones(len(at), np.bool_)
    for step in range(2, 2 + _ARM):
        rest = at[fits]
        y, x = (rest + step * arm).T
        here = pixels[y, x]
        good = np.abs(here - pixels[rest[:, 0], rest[:, 1]]) <= _SPREAD
        if step > 2:
            for side in (3, -3):
                good &= here - pixels[y + side * flank[0], x + side * flank[1]] >= _STEP
        fits[fits] = good
    return fits


def _text_strokes(pixels: NDArray[np.int16]) -> int:
    """Number of upright strokes that stand in company of their own level; single ones are not counted."""
    half = _TEXT_HEIGHT // 2
    inner = pixels[half:-half, _HALF_WIDTH:-_HALF_WIDTH]
    step = inner - np.maximum(pixels[half:-half, : -2 * _HALF_WIDTH], pixels[half:-half, 2 * _HALF_WIDTH :])
    edged = np.zeros(pixels.shape, np.bool_)
    edged[half:-half, _HALF_WIDTH:-_HALF_WIDTH] = (step >= _TEXT_STEP) & (inner >= _LEAST_LEVEL)
    y, x = np.nonzero(_without_corners(edged))
    rows = y[:, None] + np.arange(-half, half + 1)
    column = pixels[rows, x[:, None]]
    upright = edged[rows, x[:, None]].all(1) & (column.max(1, initial=0) - column.min(1, initial=255) <= _SPREAD)
    ink = np.zeros(pixels.shape, np.bool_)
    ink[y[upright], x[upright]] = True
    strokes, count = _labelled(ink)
    if count < 2:
        return 0
    numbers = np.arange(1, count + 1)
    level = np.asarray(ndimage.median(pixels, strokes, numbers))
    centre = np.array(ndimage.center_of_mass(ink, strokes, numbers))
    apart = np.abs(centre[:, None] - centre[None])
    together = (apart[..., 0] < 8) & (apart[..., 1] < 40) & (np.abs(level[:, None] - level[None]) <= 6)
    return int((together.sum(1) > 1).sum())


def _without_corners(mask: Mask) -> Mask:
    kept = mask.copy()
    for rows in (slice(None, _LOGO_PX), slice(-_LOGO_PX, None)):
        for columns in (slice(None, _LOGO_PX), slice(-_LOGO_PX, None)):
            kept[rows, columns] = False
    return kept


def _labelled(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Connected regions, diagonals included, and how many."""
    return cast("tuple[NDArray[np.int32], int]", ndimage.label(mask, np.ones((3, 3))))
