from dataclasses import replace

import numpy as np
import pytest

from storage.records import SetScore
from tasks.quality.evidence import SetEvidence, Space
from tasks.quality.frechet_scores import fid, fid_infinity, radiomic_frechet, speckle_frechet
from tests.tasks.quality.clouds import cloud, evidence


def numbers(score: SetScore, *names: str) -> list[float]:
    """Fields that must be numbers."""
    found = [getattr(score, name) for name in names]
    assert None not in found, score
    return found


def test_below_twice_the_dimension_there_is_no_number_but_a_multiple_of_the_floor():
    score = fid(evidence(cloud(100, 32, 1), cloud(63, 32, 2, shift=1)))
    assert (score.value, score.low, score.high) == (None, None, None)
    assert "N = 50 a side" in score.note
    assert "at least 64" in score.note
    low, ratio, high = numbers(score, "over_floor_low", "over_floor", "over_floor_high")
    assert 1.5 < low < ratio < high


def test_far_fewer_images_than_dimensions_are_compared_by_their_floor_too():
    same = fid(evidence(cloud(60, 512, 1), cloud(30, 512, 2)))
    other = fid(evidence(cloud(60, 512, 1), cloud(30, 512, 2, scale=1.5)))
    low, high = numbers(same, "over_floor_low", "over_floor_high")
    assert low < 1 < high
    assert numbers(other, "over_floor_low")[0] > high


def test_sets_of_one_distribution_score_their_floor():
    score = fid(evidence(cloud(400, 8, 1), cloud(150, 8, 2), per_group=2))
    low, value, high = numbers(score, "low", "value", "high")
    assert score.n_real == score.n_synthetic == 150
    assert low < value < high
    over_low, over_high = numbers(score, "over_floor_low", "over_floor_high")
    assert over_low < 1 < over_high


def test_a_shifted_set_is_far_above_its_floor():
    score = fid(evidence(cloud(400, 8, 1), cloud(150, 8, 2, shift=0.5)))
    low, floor_high, over_low = numbers(score, "low", "floor_high", "over_floor_low")
    assert low > 3 * floor_high
    assert over_low > 3


def test_about_95_percent_of_the_intervals_hold_the_mean_of_many_scores():
    """Of patients with two images each, so that singly drawn images would give intervals that are too narrow."""

    def patients(n: int, seed: int, **how: float) -> np.ndarray:
        return (np.repeat(cloud(n, 4, seed, **how), 2, axis=0) + 0.1 * cloud(2 * n, 4, seed + 1)).round(12)

    sides = [(patients(60, 2 * k), patients(50, 1000 + 2 * k, shift=0.4)) for k in range(40)]
    scores = [fid(evidence(*pair, per_group=2)) for pair in sides]
    for low, middle, high in (("low", "value", "high"), ("over_floor_low", "over_floor", "over_floor_high")):
        found = np.array([numbers(score, low, middle, high) for score in scores])
        truth = np.exp(np.log(found[:, 1]).mean()) if middle == "over_floor" else found[:, 1].mean()
        covered = ((found[:, 0] <= truth) & (truth <= found[:, 2])).mean()
        assert covered >= 0.85
        # No wider than twice what the scores themselves scatter, or it would say nothing.
        assert (found[:, 2] - found[:, 0]).mean() < 2 * 3.92 * found[:, 1].std()


def test_the_same_seed_gives_the_same_score():
    first, second = (fid(evidence(cloud(200, 8, 1), cloud(90, 8, 2), seed=4)) for _ in range(2))
    assert first == second


def test_infinity_is_near_the_truth_that_the_plain_distance_misses():
    shift, d = 0.3, 8
    truth = shift**2 * d
    sides = [(cloud(120, d, k), cloud(60, d, 100 + k, shift=shift)) for k in range(8)]
    plain = [numbers(fid(evidence(*pair)), "value")[0] for pair in sides]
    infinity = [numbers(fid_infinity(evidence(*pair)), "low", "value", "high") for pair in sides]
    assert np.mean(plain) > 1.5 * truth
    assert np.mean([value for _, value, _ in infinity]) == pytest.approx(truth, rel=0.25)
    assert sum(low < truth < high for low, _, high in infinity) >= 6


def test_infinity_of_one_distribution_is_0_as_is_its_floor():
    score = fid_infinity(evidence(cloud(400, 8, 1), cloud(200, 8, 2)))
    low, high, floor_low, floor_high = numbers(score, "low", "high", "floor_low", "floor_high")
    assert low < 0 < high
    assert floor_low < 0 < floor_high
    assert score.over_floor is None
    assert "unreliable" not in score.note


def test_infinity_says_where_it_is_not_to_be_relied_on():
    score = fid_infinity(evidence(cloud(60, 32, 1), cloud(30, 32, 2)))
    assert score.value is not None
    assert score.note.startswith("unreliable: N is below twice the 32 dimensions")
    assert "too small for a line" in fid_infinity(evidence(cloud(4, 3, 1), cloud(4, 3, 2))).note


@pytest.mark.parametrize("score", [fid, fid_infinity])
def test_real_images_of_one_group_have_no_floor_and_so_no_score(score):
    found = score(evidence(cloud(20, 4, 1), cloud(20, 4, 2), per_group=20))
    assert found.value is None
    assert "one group" in found.note


@pytest.mark.parametrize("score", [fid, fid_infinity])
def test_synthetic_images_of_one_group_have_no_interval(score):
    one = replace(evidence(cloud(60, 4, 1), cloud(20, 4, 2)), synthetic_groups=["only"] * 20)
    found = score(one)
    assert found.value is not None
    assert (found.low, found.high, found.over_floor_low) == (None, None, None)
    assert "no interval" in found.note


def with_parts(real: np.ndarray, synthetic: np.ndarray) -> SetEvidence:
    given = evidence(cloud(len(real), 2, 8), cloud(len(synthetic), 2, 9))
    space = Space(real, synthetic, "statistics 1")
    return replace(given, radiomic=space, speckle=space)


@pytest.mark.parametrize("score", [radiomic_frechet, speckle_frechet])
def test_statistics_do_not_depend_on_their_units(score):
    real, synthetic = cloud(120, 5, 1), cloud(60, 5, 2, shift=0.5)
    units, zero = np.array([1, 1e3, 1e-3, 7, 1e6]), np.array([0, 5, -1, 0, 1e3])
    plain, rescaled = (
        score(with_parts(*sides)) for sides in ((real, synthetic), (real * units + zero, synthetic * units + zero))
    )
    assert plain.extractor == "statistics 1"
    assert rescaled.value == pytest.approx(plain.value, rel=1e-6)
    assert numbers(plain, "over_floor_low")[0] > 1


def test_one_odd_image_does_not_decide():
    real, synthetic = cloud(120, 5, 1), cloud(60, 5, 2)
    odd = synthetic.copy()
    odd[0, 0] = 1e9
    plain, moved = (radiomic_frechet(with_parts(real, side)) for side in (synthetic, odd))
    assert numbers(moved, "value")[0] < numbers(plain, "value")[0] + 2


def test_statistics_that_are_absent_or_constant_are_refused_or_left_out():
    assert "not computed" in radiomic_frechet(evidence(cloud(20, 4, 1), cloud(20, 4, 2))).note
    assert "constant" in speckle_frechet(with_parts(np.ones((20, 3)), cloud(20, 3, 2))).note
    real, synthetic = cloud(80, 3, 1), cloud(40, 3, 2)
    widened = with_parts(np.column_stack([real, np.ones(80)]), np.column_stack([synthetic, np.ones(40)]))
    assert "left out as constant among the real images: 1 of 4" in speckle_frechet(widened).note
    with pytest.raises(ValueError, match="NaN"):
        Space(np.full((3, 2), np.nan), np.ones((3, 2)), "statistics 1")
    with pytest.raises(ValueError, match="radiomic is of 5 and 3 images, features of"):
        replace(evidence(cloud(4, 2, 1), cloud(3, 2, 2)), radiomic=Space(np.ones((5, 2)), np.ones((3, 2)), "s"))
