"""Images as data URIs: the grey picture, and its mask as two layers that can be switched on and off."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from storage.images import encode_grey
from tasks.imaging import Grey, Mask, dilate, letterbox, outline

PAGE_PX = 256
"""Longest side of a picture in the page; smaller ones stay as they are, pixel for pixel."""

OUTLINE_RGB = (255, 196, 0)
"""Amber: far from every grey level, and told from grey by people who confuse red and green."""


@dataclass(frozen=True)
class Picture:
    """Data URIs of the same size; `outline` and `area` of the mask are None where there is none.

    `centre` is what to look at first: the middle of the mask, or of the picture, as shares of width and height.
    """

    image: str
    outline: str | None
    area: str | None
    centre: tuple[float, float] = (0.5, 0.5)


def picture(image: Grey, mask: Mask | None) -> Picture:
    """An image, at most `PAGE_PX` wide and high, and the outline and the area of its mask."""
    if max(image.shape) > PAGE_PX:
        fitted = letterbox(image, mask, PAGE_PX)
        image, mask = fitted.image, fitted.mask
    shown = _uri(encode_grey(image))
    if mask is None or not mask.any():
        return Picture(shown, None, None)
    return Picture(shown, _uri(_layer(_around(mask))), _uri(_layer(mask)), _centre(mask))


def with_outline(image: Grey, mask: Mask | None) -> Image.Image:
    """RGB image with the outline drawn into it."""
    pixels = np.repeat(image[..., None], 3, axis=2)
    if mask is not None:
        pixels[_around(mask)] = OUTLINE_RGB
    return Image.fromarray(pixels)


def _centre(mask: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return round(float(columns.mean() + 0.5) / width, 3), round(float(rows.mean() + 0.5) / height, 3)


def _around(mask: Mask) -> Mask:
    """The line just outside the mask, so that it covers nothing of the lesion's edge."""
    return outline(dilate(mask, 1))


def _layer(drawn: Mask) -> bytes:
    """PNG that is amber where `drawn`, and clear elsewhere."""
    layer = Image.fromarray(drawn.astype(np.uint8))
    layer.putpalette([0, 0, 0, *OUTLINE_RGB])
    buffer = io.BytesIO()
    layer.save(buffer, format="PNG", transparency=0, optimize=True, bits=1)
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
