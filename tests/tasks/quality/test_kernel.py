from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from tasks.quality.kernel import kernel_distance, kid
from tests.tasks.quality.clouds import cloud, evidence


def by_sklearn(a: np.ndarray, b: np.ndarray) -> float:
    def mean_of_pairs(x: np.ndarray) -> float:
        kernel = polynomial_kernel(x, degree=3, gamma=1 / x.shape[1], coef0=1)
        return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

    across = polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1).mean()
    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * across)


def test_it_agrees_with_sklearns_kernel():
    a, b = cloud(70, 16, 1), cloud(90, 16, 2, shift=0.2)
    assert kernel_distance(a, b) == pytest.approx(by_sklearn(a, b), rel=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MONAI imports pieces of torch that torch retires
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_agrees_with_monai():
    """MONAI's kernel is the plain product: it gets the products of all triples, which make it the cubic one."""
    import torch
    from monai.metrics.mmd import MMDMetric

    def triples(rows: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([rows / rows.shape[1] ** 0.5, torch.ones(len(rows), 1)], dim=1)
        return torch.einsum("ni,nj,nk->nijk", wide, wide, wide).flatten(1)

    a, b = cloud(40, 6, 1), cloud(40, 6, 2, shift=0.2)
    theirs = MMDMetric(y_mapping=triples)(torch.from_numpy(a).float(), torch.from_numpy(b).float()).item()
    assert kernel_distance(a, b) == pytest.approx(theirs, abs=2e-5)  # MONAI's part in float32


def test_it_agrees_with_torchmetrics():
    import torch
    from torchmetrics.image.kid import poly_mmd

    a, b = cloud(60, 16, 1), cloud(60, 16, 2, shift=0.2)
    assert kernel_distance(a, b) == pytest.approx(poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item(), rel=1e-9)


def test_constant_features_and_duplicates_are_at_distance_zero():
    assert kernel_distance(np.ones((5, 3)), np.ones((9, 3))) == pytest.approx(0, abs=1e-12)
    same = np.repeat(cloud(1, 3, 1), 6, axis=0)
    assert kernel_distance(same, same) == pytest.approx(0, abs=1e-12)


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


def test_the_permutation_p_is_uniform_without_a_difference_and_small_with_one():
    same = [kid(evidence(cloud(60, 4, k), cloud(40, 4, 100 + k), per_group=4)).p for k in range(16)]
    assert 0.3 < np.mean([p for p in same if p is not None]) < 0.7
    assert sum(p <= 0.1 for p in same if p is not None) <= 5
    other = kid(evidence(cloud(60, 4, 1), cloud(40, 4, 2, shift=1), per_group=4))
    assert other.p is not None
    assert other.p <= 0.01


def test_the_multiple_is_of_the_upper_end_of_the_floor():
    score = kid(evidence(cloud(200, 8, 1), cloud(100, 8, 2, shift=0.5)))
    assert score.over_floor is not None
    assert score.value is not None
    assert score.floor_high is not None
    assert score.over_floor == pytest.approx(score.value / score.floor_high)
    assert score.over_floor_low is not None
    assert score.over_floor_low > 1


def test_synthetic_images_of_one_group_have_no_interval():
    score = kid(replace(evidence(cloud(40, 4, 1), cloud(20, 4, 2)), synthetic_groups=["only"] * 20))
    assert score.value is not None
    assert (score.low, score.high) == (None, None)


def test_of_many_images_a_bounded_number_is_compared():
    score = kid(evidence(cloud(40, 2, 1), cloud(2100, 2, 2), per_group=2))
    assert score.n_synthetic == 2048
    assert "2048 of 2100 synthetic images" in score.note
