import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.quality.crops import lesion_box, lesion_crops


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 39), st.integers(0, 59), st.integers(1, 40), st.integers(1, 60), st.floats(0, 1, allow_nan=False))
def test_the_square_lies_inside_and_holds_the_lesion_where_one_can(
    top: int, left: int, tall: int, wide: int, margin: float
):
    mask = np.zeros((40, 60), bool)
    mask[top : top + tall, left : left + wide] = True
    y, x, side = lesion_box(mask, margin)
    assert 0 <= y <= 40 - side
    assert 0 <= x <= 60 - side
    if mask.any(0).sum() <= side:
        assert mask[y : y + side, x : x + side].sum() == mask.sum()


def test_a_blank_mask_gives_the_centre():
    assert lesion_box(np.zeros((40, 60), bool), 0.3) == (0, 10, 40)


def test_image_and_mask_are_cropped_together():
    image, mask = np.zeros((1, 64, 64), np.uint8), np.zeros((1, 64, 64), bool)
    mask[0, 40:56, 8:24] = True
    image[mask] = 200
    crops, outlines = lesion_crops(image, mask, 32)
    assert ((crops > 100) == outlines).all()
    assert 0.2 < outlines.mean() < 0.6
