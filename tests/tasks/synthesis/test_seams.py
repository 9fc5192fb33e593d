"""Seam pairs: what differs, where, and that nothing but the seed decides; and what the edge measures say."""

import numpy as np
import pytest

from tasks.imaging import Grey, Mask, flip
from tasks.synthesis import seams
from tasks.synthesis.diffusion import lora
from tests.fakes.drafts import ellipse

PX = 96


@pytest.fixture(scope="module")
def scan() -> tuple[Grey, Mask]:
    """Speckled tissue with a dark lesion in it that brightens what lies behind."""
    rng = np.random.default_rng(3)
    mask = ellipse(PX, 36, 48, 12, 18)
    levels = rng.normal(120, 12, (PX, PX))
    levels[50:80, 36:60] += 50
    levels[mask] -= 80
    return np.clip(levels, 20, 250).astype(np.uint8), mask


def test_a_flawed_picture_differs_in_its_ring_alone(scan: tuple[Grey, Mask]) -> None:
    image, mask = scan
    ring = seams.ring(mask, seams.RING * PX)
    flattened = 0
    for seed in range(40):
        spoiled, where = seams.flawed(image, mask, np.random.default_rng(seed))
        assert spoiled.dtype == np.uint8
        np.testing.assert_array_equal(spoiled[~where], image[~where])
        assert where[ring].all()
        changed = np.abs(spoiled.astype(int) - image)[ring]
        assert changed.mean() > 1
        beyond = where & ~ring
        flattened += beyond.any()
        assert not beyond[:36].any()  # what is taken away besides lies behind the lesion
    assert 5 < flattened < 30


def test_flattening_takes_away_what_lies_behind(scan: tuple[Grey, Mask]) -> None:
    image, mask = scan
    lower = [
        float(image[where & ~seams.ring(mask, 5)].mean()) - float(spoiled[where & ~seams.ring(mask, 5)].mean())
        for spoiled, where in (seams.flawed(image, mask, np.random.default_rng(seed)) for seed in range(40))
        if (where & ~seams.ring(mask, 5)).sum() > 100
    ]
    assert lower
    assert min(lower) > 5


def test_pairs_are_told_by_their_seed_and_all_differ(scan: tuple[Grey, Mask]) -> None:
    image, mask = scan
    scans = [lora.Example(image, mask, "benign"), lora.Example(*flipped(image, mask), "malignant")]
    first, again, other = seams.pairs(scans, 3, 7), seams.pairs(scans, 3, 7), seams.pairs(scans, 3, 8)
    assert [pair.label for pair in first] == ["benign"] * 3 + ["malignant"] * 3
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.flawed, same.flawed)
        np.testing.assert_array_equal(one.hole, same.hole)
        assert one.image is scans[0].image or one.image is scans[1].image
    flaws = [pair.flawed for pair in [*first, *other]]
    assert len({flaw.tobytes() for flaw in flaws if flaw is not None}) == 12
    # More copies of a scan leave the first ones what they were.
    np.testing.assert_array_equal(seams.pairs(scans, 5, 7)[1].flawed, first[1].flawed)


def flipped(image: Grey, mask: Mask) -> tuple[Grey, Mask]:
    mirrored, mirrored_mask = flip(image, mask)
    assert mirrored_mask is not None
    return mirrored, mirrored_mask


def test_a_ring_moves_with_its_mask() -> None:
    places = {}
    for top in (20, 50):
        mask = np.zeros((PX, PX), np.bool_)
        mask[top : top + 20, 30:60] = True
        _, where = seams.flawed(np.where(mask, 30, 100).astype(np.uint8), mask, np.random.default_rng(5))
        places[top] = np.roll(where, -top, axis=0)
    np.testing.assert_array_equal(places[20], places[50])


def test_the_signed_distance_is_negative_inside_and_half_a_pixel_at_the_edge() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[:, 4:] = True
    np.testing.assert_allclose(seams.signed_distance(mask)[4], [3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5, -4.5])


@pytest.mark.parametrize("moved", [0, 3, -3])
def test_the_edge_profile_finds_an_edge_where_it_is(moved: int) -> None:
    rows = np.repeat(np.arange(PX)[:, None], PX, axis=1)
    steep, level = seams.edge_profile(np.where(rows < 48 + moved, 40, 140).astype(np.uint8), rows < 48)
    expected = np.zeros(16)
    expected[[7 + moved, 8 + moved]] = 50  # central differences see a step of 100 from both of its sides
    np.testing.assert_allclose(steep, expected, atol=1e-6)
    np.testing.assert_allclose(level, np.where(np.arange(16) < 8 + moved, 40, 140))


def test_the_edge_profile_of_a_soft_edge_is_low_and_wide() -> None:
    mask = ellipse(PX, 48, 48, 20, 20)
    soft = np.clip(90 + 100 * seams.signed_distance(mask) / 10, 40, 140).astype(np.uint8)
    steep, _ = seams.edge_profile(soft, mask)
    assert steep[4:12] == pytest.approx(10, rel=0.2)


def test_a_mask_without_far_pixels_leaves_gaps_in_the_profile() -> None:
    mask = np.zeros((PX, PX), np.bool_)
    mask[40:44, 40:44] = True
    steep, level = seams.edge_profile(np.full((PX, PX), 90, np.uint8), mask)
    assert np.isnan(steep[0])
    assert np.isnan(level[0])
    assert level[-1] == 90
