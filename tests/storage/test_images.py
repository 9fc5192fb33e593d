import io

import numpy as np
import pytest
from PIL import Image

from storage.images import decode_grey, decode_mask, encode_grey, encode_mask, pixels_sha256


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 64)])
def test_images_and_masks_survive_the_codec(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, shape, np.uint8), rng.random(shape) < 0.5
    assert np.array_equal(decode_grey(encode_grey(image)), image)
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
    assert encode_grey(image) == encode_grey(image.copy())


def test_files_are_8_bit_grey_and_1_bit() -> None:
    assert Image.open(io.BytesIO(encode_grey(np.zeros((4, 4), np.uint8)))).mode == "L"
    assert Image.open(io.BytesIO(encode_mask(np.zeros((4, 4), np.bool_)))).mode == "1"


def test_the_digest_is_of_pixels_and_shape() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert pixels_sha256(image) == pixels_sha256(np.asfortranarray(image))
    assert pixels_sha256(image) != pixels_sha256(image.reshape(4, 3))
