import numpy as np
import pytest

from tasks.imaging import colour_cast, dilate, flip, letterbox, outline, to_grey
from tests.fakes.pictures import picture


@pytest.mark.parametrize("shape", [(120, 150), (150, 120), (40, 50), (128, 128), (1, 500)])
def test_a_letterboxed_pair_keeps_aspect_area_and_alignment(shape):
    image, mask = picture(0, shape)
    fit = letterbox(image, mask, 64)
    top, left, bottom, right = fit.box
    assert fit.image.shape == fit.mask.shape == (64, 64)
    assert (bottom - top, right - left) == tuple(max(1, round(side * fit.scale)) for side in shape)
    assert fit.image[:top].sum() == fit.image[bottom:].sum() == fit.image[:, :left].sum() == 0
    if min(shape) > 30:
        assert fit.mask.sum() == pytest.approx(mask.sum() * fit.scale**2, rel=0.1)


def test_the_same_square_is_left_as_it_is():
    image, mask = picture(1, (64, 64))
    fit = letterbox(image, mask, 64)
    np.testing.assert_array_equal(fit.image, image)
    np.testing.assert_array_equal(fit.mask, mask)


def test_a_flip_moves_image_and_mask_together_and_twice_is_none():
    image, mask = picture(2)
    flipped, flipped_mask = flip(image, mask)
    np.testing.assert_array_equal(flipped[flipped_mask], image[:, ::-1][mask[:, ::-1]])
    np.testing.assert_array_equal(flip(flipped, flipped_mask)[0], image)
    assert flip(image, None)[1] is None


def test_dilation_grows_by_a_disc_and_an_outline_is_one_pixel_wide():
    mask = np.zeros((21, 21), bool)
    mask[10, 10] = True
    assert dilate(mask, 0).sum() == 1
    assert dilate(mask, 1).sum() == 5
    assert dilate(mask, 3).sum() == 29
    square = np.zeros((9, 9), bool)
    square[2:7, 2:7] = True
    assert outline(square).sum() == 16


def test_grey_levels_and_colour_cast():
    pixels = np.zeros((10, 10, 3), np.uint8)
    assert colour_cast(pixels[..., 0]) == colour_cast(pixels) == 0
    pixels[0, :5] = (255, 0, 0)
    assert colour_cast(pixels) == 0.05
    assert to_grey(pixels)[0, 0] == 76
    assert to_grey(pixels[..., 0]) is not None
