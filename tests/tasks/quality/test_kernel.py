import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from tasks.quality.kernel import kernel_distance, kid
from tests.tasks.quality.test_frechet import cloud, evidence


def by_sklearn(a: np.ndarray, b: np.ndarray) -> float:
    def mean_of_pairs(x: np.ndarray) -> float:
        kernel = polynomial_kernel(x, degree=3, gamma=1 / x.shape[1], coef0=1)
        return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

    across = polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1).mean()
    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * across)


def test_it_agrees_with_sklearns_kernel():
    a, b = cloud(70, 16, 1), cloud(90, 16, 2, shift=0.2)
    assert kernel_distance(a, b) == pytest.approx(by_sklearn(a, b), rel=1e-9)


def test_it_is_unbiased_even_for_ten_images():
    values = [kernel_distance(cloud(10, 16, seed), cloud(10, 16, 1000 + seed)) for seed in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_the_interval_holds_the_value_and_covers_the_truth():
    """The distance of the same two distributions at large N lies in about 95 % of the intervals."""
    truth = kernel_distance(cloud(2000, 8, 1), cloud(2000, 8, 2, shift=0.3))
    scores = [kid(evidence(cloud(80, 8, 10 + k), cloud(60, 8, 900 + k, shift=0.3))) for k in range(40)]
    covered = [s.low is not None and s.high is not None and s.low <= truth <= s.high for s in scores]
    assert all(s.low < s.value < s.high for s in scores if s.low and s.value and s.high)
    assert 0.82 <= np.mean(covered) <= 1


def test_a_set_of_the_same_distribution_lies_in_its_floor():
    score = kid(evidence(cloud(400, 8, 1), cloud(150, 8, 2)))
    assert score.value is not None
    assert score.floor_low is not None
    assert score.floor_high is not None
    assert score.floor_low <= score.value <= score.floor_high
    assert "N = 150 a side" in score.note


def test_a_shifted_set_lies_above_its_floor():
    score = kid(evidence(cloud(200, 8, 1), cloud(100, 8, 2, shift=0.5)))
    assert score.low is not None
    assert score.floor_high is not None
    assert score.low > score.floor_high


def test_real_images_of_one_patient_give_no_floor():
    score = kid(evidence(cloud(20, 8, 1), cloud(20, 8, 2), per_group=20))
    assert score.floor is None
    assert "one group" in score.note


def test_collapsed_diversity_is_told_from_real():
    synthetic = np.repeat(cloud(5, 8, 2), 20, axis=0)
    score = kid(evidence(cloud(200, 8, 1), synthetic))
    assert score.value is not None
    assert score.floor_high is not None
    assert score.value > score.floor_high


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(np.full((4, 2), np.nan), np.ones((4, 2)))
