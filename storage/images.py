"""PNG in and out: the one codec of every image and mask that is stored."""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_grey(image: NDArray[np.uint8]) -> bytes:
    """8-bit grey PNG of an array of shape (h, w). Same pixels, same bytes."""
    return _png(Image.fromarray(image))


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """1-bit PNG of a mask of shape (h, w)."""
    return _png(Image.fromarray(mask))


def decode_grey(data: bytes) -> NDArray[np.uint8]:
    """Array (h, w) of an encoded grey image."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """Array (h, w) of an encoded mask."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("1"))


def pixels_sha256(image: NDArray[np.uint8]) -> str:
    """Digest of shape and pixels, whatever file holds them."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
