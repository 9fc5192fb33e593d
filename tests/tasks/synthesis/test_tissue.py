import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.synthesis import tissue
from tests.fakes.drafts import ellipse, sector


def test_depth_and_place_across_are_counted_in_the_imaged_part() -> None:
    picture, inside = sector(96)
    rows = np.flatnonzero(inside.any(axis=1))
    depth, lateral = tissue.relative_depth(picture), tissue.relative_lateral(picture)
    assert abs(depth[rows[0], 48]) < 0.05
    assert abs(depth[rows[-1], 48] - 1) < 0.05
    columns = np.flatnonzero(inside.any(axis=0))
    assert abs(lateral[columns[0]] + 1) < 0.1
    assert abs(lateral[columns[-1]] - 1) < 0.1
    assert abs(lateral[48]) < 0.05


def test_a_lesion_has_the_place_of_its_centre() -> None:
    tissue_only = np.full((101, 101), 90, np.uint8)
    place = tissue.place_of(tissue_only, ellipse(101, 25, 75, 6, 9))
    assert (place.depth, place.lateral) == (0.25, 0.5)


def test_a_black_picture_has_no_tissue_and_no_depth() -> None:
    black = np.zeros((64, 64), np.uint8)
    assert tissue.outside_picture(black).all()
    assert not tissue.allowed_tissue(black, 2, 2).any()
    assert not tissue.relative_depth(black).any()
    assert not tissue.relative_lateral(black).any()


def test_a_black_cyst_inside_the_tissue_is_no_outside() -> None:
    picture = np.full((96, 96), 100, np.uint8)
    picture[ellipse(96, 48, 48, 15, 20)] = 0
    assert not tissue.outside_picture(picture).any()


@settings(max_examples=40, deadline=None)
@given(
    left=st.integers(0, 30),
    right=st.integers(0, 30),
    top=st.integers(0, 30),
    skin=st.integers(0, 12),
    edge=st.integers(0, 8),
)
def test_allowed_tissue_is_imaged_below_the_skin_and_off_the_edges(
    left: int, right: int, top: int, skin: int, edge: int
) -> None:
    picture = np.zeros((96, 96), np.uint8)
    picture[top:90, left : 96 - right] = 110
    allowed = tissue.allowed_tissue(picture, skin, edge)
    assert allowed.any()
    rows, columns = np.nonzero(allowed)
    # one pixel of tolerance: the outline of the picture is found on a smoothed image
    assert rows.min() >= top + max(skin, edge) - 2
    assert rows.max() <= 90 - edge + 1
    assert columns.min() >= left + edge - 2
    assert columns.max() <= 96 - right - edge + 1


def test_surroundings_of_a_drawn_picture_become_black_and_dark_tissue_stays() -> None:
    rng = np.random.default_rng(0)
    drawn = np.clip(rng.rayleigh(30, (96, 96)) + 30, 0, 255).astype(np.uint8)
    drawn[70:] = rng.integers(0, 5, (26, 96))  # black, as decoders give it back
    drawn[30:50, 30:50] = rng.integers(0, 5, (20, 20))  # a cyst, as dark
    shown = tissue.in_black(drawn)
    assert not shown[72:].any()
    np.testing.assert_array_equal(shown[:68], drawn[:68])
