"""Resize, grey levels, masks: the only definitions in the repository.

Image and mask always move together: `letterbox` and `flip` take both, so no caller can transform one alone.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Fitted:
    """A pair fitted into a square. `scale` is output pixels per input pixel; `box` is (top, left, bottom,
    right) of the picture inside the square, the rest being black padding."""

    image: Grey
    mask: Mask | None
    scale: float
    box: tuple[int, int, int, int]


def to_grey(pixels: NDArray[np.uint8]) -> Grey:
    """Grey levels of an image of shape (h, w), (h, w, 3) or (h, w, 4), by ITU-R BT.601 as Pillow does."""
    if pixels.ndim == 2:
        return pixels
    return np.asarray(Image.fromarray(pixels[..., :3]).convert("L"))


def colour_cast(pixels: NDArray[np.uint8]) -> float:
    """Share of pixels, 0 to 1, whose channels differ by more than 24 levels: Doppler, overlays, stickers.

    >>> colour_cast(np.zeros((4, 4, 3), np.uint8))
    0.0
    """
    if pixels.ndim == 2:
        return 0.0
    rgb = pixels[..., :3].astype(np.int16)
    return float(((rgb.max(-1) - rgb.min(-1)) > 24).mean())


def letterbox(image: Grey, mask: Mask | None, px: int) -> Fitted:
    """Fit a pair into a `px` × `px` square, aspect ratio kept, centred on black.

    Area-averaging (Pillow's BOX when shrinking, else BICUBIC) for the image; the mask is averaged the same way
    and cut at one half, so that its area survives.
    """
    height, width = image.shape
    scale = px / max(height, width)
    new_h, new_w = max(1, round(height * scale)), max(1, round(width * scale))
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    top, left = (px - new_h) // 2, (px - new_w) // 2
    out = np.zeros((px, px), np.uint8)
    out[top : top + new_h, left : left + new_w] = np.asarray(Image.fromarray(image).resize((new_w, new_h), how))
    out_mask = None
    if mask is not None:
        soft = Image.fromarray(mask.astype(np.uint8) * 255).resize((new_w, new_h), how)
        out_mask = np.zeros((px, px), np.bool_)
        out_mask[top : top + new_h, left : left + new_w] = np.asarray(soft) >= 128
    return Fitted(out, out_mask, scale, (top, left, top + new_h, left + new_w))


def flip(image: Grey, mask: Mask | None) -> tuple[Grey, Mask | None]:
    """Mirror a pair left to right. Never top to bottom: the skin is at the top and shadows fall down."""
    return np.ascontiguousarray(image[:, ::-1]), None if mask is None else np.ascontiguousarray(mask[:, ::-1])


def dilate(mask: Mask, px: float) -> Mask:
    """Grow a mask by a disc of radius `px` pixels."""
    if px <= 0:
        return mask.copy()
    return np.asarray(ndimage.distance_transform_edt(~mask)) <= px


def largest_part(mask: Mask) -> Mask:
    """The largest connected part of a mask, holes filled; blank where the mask is.

    >>> largest_part(np.array([[True, False, True, True]])).tolist()
    [[False, False, True, True]]
    """
    filled = np.asarray(ndimage.binary_fill_holes(mask))
    parts, _ = cast("tuple[NDArray[np.int32], int]", ndimage.label(filled))
    return filled & (parts == 1 + int(np.bincount(parts.ravel(), minlength=2)[1:].argmax()))


def outline(mask: Mask) -> Mask:
    """The one-pixel inner boundary of a mask."""
    return mask & ~np.asarray(ndimage.binary_erosion(mask), np.bool_)
