import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.synthesis.diffusion import window


@given(
    side=st.integers(16, 200),
    px=st.sampled_from([16, 32, 64]),
    box=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_window_lies_in_the_image_and_holds_the_lesion(
    side: int, px: int, box: tuple[float, float, float, float]
) -> None:
    rows = sorted(int(share * (side - 1)) for share in box[:2])
    columns = sorted(int(share * (side - 1)) for share in box[2:])
    mask = np.zeros((side, side), np.bool_)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    view = window.around(mask, px)
    inside = mask[view.top : view.top + view.side, view.left : view.left + view.side]
    assert inside.shape == (view.side, view.side)
    assert inside.sum() == mask.sum()
    assert window.cut_mask(mask, view).shape == (px, px)


def test_what_is_cut_at_the_models_size_comes_back_unresampled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    mask = np.zeros((96, 96), np.bool_)
    mask[60:70, 5:15] = True
    view = window.around(mask, 32)
    np.testing.assert_array_equal(window.paste(image, window.cut(image, view), view), image)
    changed = window.paste(image, np.zeros((32, 32), np.uint8), view)
    assert (changed != image).sum() <= 32 * 32
    assert not changed[mask].any()


def test_a_lesion_wider_than_the_crop_is_seen_shrunk_with_surroundings() -> None:
    mask = np.zeros((128, 128), np.bool_)
    mask[30:90, 30:90] = True
    view = window.around(mask, 32)
    assert view.side == 90
    seen = window.cut_mask(mask, view)
    assert abs(seen.sum() - mask.sum() * (32 / 90) ** 2) < 40
