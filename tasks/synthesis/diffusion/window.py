"""The square of an image that the diffusion model looks at.

An image of the model's own size is its own window. In a larger one the window is a crop at the model's
resolution around the lesion, so that no pixel is resampled; only a lesion that would fill that crop is seen
in a wider one, shrunk.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.imaging import Grey, Mask, dilate
from tasks.synthesis.diffusion.latents import HOLE_MARGIN_PX

CONTEXT = 1.5
"""Smallest side of a window, in sides of the lesion's bounding box: inpainting continues surroundings."""


@dataclass(frozen=True)
class Window:
    """A square of `side` pixels at (`top`, `left`), seen by the model as `px` × `px`."""

    top: int
    left: int
    side: int
    px: int


def around(mask: Mask, px: int) -> Window:
    """The window of a model of `px` pixels around what a non-blank mask covers.

    >>> lesion = np.zeros((256, 256), bool); lesion[10:30, 200:250] = True
    >>> around(lesion, 128)
    Window(top=0, left=128, side=128, px=128)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    extent = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    side = min(max(px, math.ceil(CONTEXT * extent)), height, width)
    top = min(max(0, int(rows[0] + rows[-1] + 1 - side) // 2), height - side)
    left = min(max(0, int(columns[0] + columns[-1] + 1 - side) // 2), width - side)
    return Window(top, left, side, px)


def hole(mask: Mask, px: int) -> Mask:
    """What a model of `px` pixels is asked to fill for a lesion: its mask and a margin, as in training."""
    return dilate(mask, max(1, round(HOLE_MARGIN_PX * px / 128)))


def cut(image: Grey, window: Window) -> Grey:
    """What the model sees of an image: (px, px)."""
    part = _part(image, window)
    return part if window.side == window.px else _resize(part, window.px)


def cut_mask(mask: Mask, window: Window) -> Mask:
    """What the model sees of a mask: (px, px)."""
    part = _part(mask, window)
    return part if window.side == window.px else _resize(part.astype(np.uint8) * 255, window.px) >= 128


def paste(image: Grey, seen: Grey, window: Window) -> Grey:
    """A copy of `image` with the window replaced by what the model made of it."""
    out = image.copy()
    part = seen if window.side == window.px else _resize(seen, window.side)
    out[window.top : window.top + window.side, window.left : window.left + window.side] = part
    return out


def _part(array: np.ndarray, window: Window) -> np.ndarray:
    return array[window.top : window.top + window.side, window.left : window.left + window.side]


def _resize(image: Grey, px: int) -> Grey:
    how = Image.Resampling.BOX if px < image.shape[0] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((px, px), how))
