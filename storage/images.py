"""PNG in and out: the one codec of every image and mask that is stored."""

import hashlib
import io

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from PIL import Image

MOST_PIXELS = 8192 * 8192
"""Of a picture that is decoded: two hundred times what an ultrasound scanner shows."""


def encode_grey(image: NDArray[np.uint8]) -> bytes:
    """8-bit grey PNG of an array of shape (h, w). Same pixels, same bytes."""
    return _png(Image.fromarray(image))


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """1-bit PNG of a mask of shape (h, w)."""
    return _png(Image.fromarray(mask))


def decode_grey(data: bytes) -> NDArray[np.uint8]:
    """Array (h, w) of an encoded grey image; ValueError where the bytes are none."""
    return np.asarray(_decoded(data, "L"))


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """Array (h, w) of an encoded mask; ValueError where the bytes are none."""
    return np.asarray(_decoded(data, "1"))


def size(data: bytes) -> tuple[int, int]:
    """Height and width of a PNG, by its first bytes alone; ValueError where they are none or too large.

    A few kilobytes unpack to gigabytes where a stranger made them, so this is asked before any pixel is.
    """
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError("is no PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"is a PNG of {width} x {height} pixels, more than the {MOST_PIXELS} that are decoded")
    return height, width


def pixels_sha256(image: NDArray[np.uint8]) -> str:
    """Digest of shape and pixels, whatever file holds them."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _decoded(data: bytes, mode: str) -> Image.Image:
    size(data)
    try:
        return Image.open(io.BytesIO(data), formats=("PNG",)).convert(mode)
    except (SyntaxError, OSError) as error:  # what Pillow raises for broken chunks and for pixels cut off
        raise ValueError(f"is no PNG: {error}") from error


def png_digest(png: bytes | memoryview) -> bytes:
    """BLAKE3 of an encoded picture, 16 bytes: what `index.parquet` holds it to, at a third of the cost of sha256."""
    return blake3(png).digest(length=16)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
