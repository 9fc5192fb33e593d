"""Images as data URIs: the grey picture, and the outline of its mask as a layer that can be switched off."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from storage.images import encode_grey
from tasks.imaging import Grey, Mask, dilate, letterbox, outline

THUMB_PX = 160
"""Longest side of a picture in the page; smaller ones stay as they are."""

OUTLINE_RGB = (255, 196, 0)
"""Amber: far from every grey level, and told from grey by people who confuse red and green."""


@dataclass(frozen=True)
class Picture:
    """Two data URIs of the same size; `outline` is None where there is no mask."""

    image: str
    outline: str | None


def picture(image: Grey, mask: Mask | None) -> Picture:
    """Thumbnail of an image and of the outline of its mask."""
    if max(image.shape) > THUMB_PX:
        fitted = letterbox(image, mask, THUMB_PX)
        image, mask = fitted.image, fitted.mask
    drawn = None if mask is None or not mask.any() else _uri(_outline_png(mask))
    return Picture(_uri(encode_grey(image)), drawn)


def with_outline(image: Grey, mask: Mask | None) -> Image.Image:
    """RGB image with the outline drawn into it."""
    pixels = np.repeat(image[..., None], 3, axis=2)
    if mask is not None:
        pixels[_around(mask)] = OUTLINE_RGB
    return Image.fromarray(pixels)


def _around(mask: Mask) -> Mask:
    """The line just outside the mask, so that it covers nothing of the lesion's edge."""
    return outline(dilate(mask, 1))


def _outline_png(mask: Mask) -> bytes:
    layer = Image.fromarray(_around(mask).astype(np.uint8))
    layer.putpalette([0, 0, 0, *OUTLINE_RGB])
    buffer = io.BytesIO()
    layer.save(buffer, format="PNG", transparency=0, optimize=True)
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
