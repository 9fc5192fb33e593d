"""Which pixels texture is measured on: whole stacks of pictures at once."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask

LEAST_PX = 48
"""A lesion or ring of fewer pixels says nothing about texture."""

_BLACK = 8  # grey levels up to which a border row or column is padding
_RING = 1 / 16  # of the longer side


def content(images: Grey) -> Mask:
    """The rectangle that is left when black borders are cut off, (n, h, w); everything where a picture is black."""
    rows, columns = _spanned(images.max(axis=2) > _BLACK), _spanned(images.max(axis=1) > _BLACK)
    return rows[:, :, None] & columns[:, None, :]


def lesions(images: Grey, masks: Mask, whole: Mask) -> tuple[Mask, Mask]:
    """The lesion, and the ring of one sixteenth of the side around it, of each picture.

    Where a mask is blank or tiny both are `whole`, so that every picture has every number: without a lesion what is
    said of it is what is said of the picture.
    """
    width = 2 * max(1, round(_RING * max(images.shape[1:]))) + 1
    grown = ndimage.maximum_filter(masks.view(np.uint8), size=(1, width, width)).view(np.bool_)
    inside, ring = masks & whole, grown & ~masks & whole
    least = np.minimum(inside.sum(axis=(1, 2)), ring.sum(axis=(1, 2)))
    usable = np.asarray(least >= LEAST_PX).reshape(-1, 1, 1)
    return np.where(usable, inside, whole), np.where(usable, ring, whole)


def _spanned(lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From the first True to the last of each row, (n, length); all of it where there is none."""
    first, last = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    place = np.arange(lines.shape[1])
    spanned = (place >= first[:, None]) & (place <= last[:, None])
    return spanned | ~lines.any(axis=1, keepdims=True)
