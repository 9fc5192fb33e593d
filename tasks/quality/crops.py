"""The square around a lesion, in which critics and copy detectors look."""

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask, letterbox


def lesion_box(mask: Mask, margin: float) -> tuple[int, int, int]:
    """Top, left and side of the square around `mask` with `margin` of its longer side on each side.

    The square lies inside the image: it is moved, and at most as large as the image's shorter side. A blank
    mask gives the largest centred square.
    """
    limit = min(mask.shape)
    if not mask.any():
        return *centred_square(mask, limit), limit
    longer = max(int(np.ptp(np.flatnonzero(mask.any(axis)))) + 1 for axis in (0, 1))
    side = min(limit, max(8, round((1 + 2 * margin) * longer)))
    return *centred_square(mask, side), side


def centred_square(mask: Mask, side: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels, inside the image, around the middle of `mask`'s bounding box
    (of the image, where it is blank)."""
    corner: list[int] = []
    for length, axis in zip(mask.shape, (1, 0), strict=True):
        covered = np.flatnonzero(mask.any(axis=axis))
        first, last = (int(covered[0]), int(covered[-1])) if len(covered) else (0, length - 1)
        corner.append(int(np.clip((first + last + 1 - side) // 2, 0, length - side)))
    return corner[0], corner[1]


def lesion_crops(
    images: Grey, masks: Mask, px: int, margin: float = 0.3
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image and mask of every lesion's square, (n, px, px) each."""
    pictures, outlines = np.zeros((len(images), px, px), np.uint8), np.zeros((len(images), px, px), np.bool_)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        top, left, side = lesion_box(mask, margin)
        window = slice(top, top + side), slice(left, left + side)
        fitted = letterbox(image[window], mask[window], px)
        assert fitted.mask is not None
        pictures[row], outlines[row] = fitted.image, fitted.mask
    return pictures, outlines
