import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tasks.imaging.marks import find_marks
from tests.fakes.pictures import picture, with_calipers

SHAPE = (300, 360)


@pytest.mark.parametrize("seed", range(6))
def test_clean_speckle_carries_no_marks_and_calipers_are_found(seed):
    image, _ = picture(seed, SHAPE)
    assert find_marks(image) == []
    # One of two may drown in bright speckle; one is enough.
    assert any("caliper" in reason for reason in find_marks(with_calipers(image)))


@pytest.mark.parametrize("seed", range(3))
def test_text_is_found(seed):
    image = Image.fromarray(picture(seed, SHAPE)[0])
    ImageDraw.Draw(image).text((120, 240), "RT UIQ", fill=226, font=ImageFont.load_default(size=16))
    assert any(reason.startswith("marks: text") for reason in find_marks(np.asarray(image)))


def test_the_logo_cut_off_in_a_corner_is_left_out():
    image = Image.fromarray(picture(0, SHAPE)[0])
    ImageDraw.Draw(image).text((2, 2), "II", fill=226, font=ImageFont.load_default(size=14))
    assert find_marks(np.asarray(image)) == []


def test_pictures_too_small_to_hold_marks_have_none():
    assert find_marks(np.zeros((40, 400), np.uint8)) == []
