import numpy as np
import pytest
from scipy import linalg

from tasks.quality.evidence import SetEvidence
from tasks.quality.frechet import fid, frechet_distance


def cloud(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return scale * rng.normal(size=(n, d)) @ mix + shift


def evidence(real: np.ndarray, synthetic: np.ndarray, per_group: int = 1, seed: int = 0) -> SetEvidence:
    return SetEvidence(
        real=real,
        synthetic=synthetic,
        real_groups=[f"r{row // per_group}" for row in range(len(real))],
        synthetic_groups=[f"s{row // per_group}" for row in range(len(synthetic))],
        extractor="toy@000000000000",
        seed=seed,
    )


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root))


@pytest.mark.parametrize(("n", "d"), [(200, 8), (500, 32)])
def test_it_agrees_with_scipys_matrix_square_root(n: int, d: int):
    a, b = cloud(n, d, 1), cloud(n + 7, d, 2, shift=0.3, scale=1.4)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MONAI imports pieces of torch that torch retires
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_agrees_with_monai():
    import torch
    from monai.metrics.fid import FIDMetric

    a, b = cloud(300, 16, 3), cloud(200, 16, 4, shift=0.5)
    theirs = FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)  # MONAI adds 1e-6 to the diagonals


def test_known_gaussians_have_the_distance_of_the_formula():
    # Two points at ±1 have variance 2; shifted by 3 and scaled by 2 the distance is 9 + (2·√2 − √2)².
    a = np.array([[-1.0], [1.0]])
    assert frechet_distance(a, 2 * a + 3) == pytest.approx(9 + 2)


def test_equal_sets_constant_features_and_duplicates_are_at_distance_zero():
    a = cloud(50, 8, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(np.ones((5, 8)), np.ones((9, 8))) == 0
    assert frechet_distance(np.concatenate([a, a]), a) == pytest.approx(0, abs=0.02)


def test_fewer_images_than_dimensions_still_give_a_finite_distance():
    a, b = cloud(10, 64, 6), cloud(12, 64, 7)
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) > 0


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        (np.full((5, 3), np.nan), np.ones((5, 3)), "5 of 5 real images have NaN"),
        (np.ones((5, 3)), np.array([[1.0, 2, 3], [np.inf, 0, 0]]), "1 of 2 synthetic .* \\[1\\]"),
        (np.ones((1, 3)), np.ones((5, 3)), "found 1 real images"),
        (np.ones((5, 3)), np.ones((5, 4)), "3 dimensions, synthetic 4"),
        (np.ones(5), np.ones((5, 4)), "shape \\(5,\\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(real: np.ndarray, synthetic: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, synthetic)


def test_the_score_refuses_to_be_a_number_below_twice_the_dimension():
    score = fid(evidence(cloud(100, 32, 1), cloud(63, 32, 2)))
    assert score.value is None
    assert "N = 50 a side" in score.note
    assert "at least 64" in score.note


def test_sets_of_one_distribution_score_their_floor():
    score = fid(evidence(cloud(400, 8, 1), cloud(150, 8, 2), per_group=2))
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    assert score.floor is not None
    assert score.n_real == score.n_synthetic == 150
    assert score.low < score.value < score.high
    assert 0.5 < score.value / score.floor < 2


def test_a_shifted_set_is_far_above_its_floor():
    score = fid(evidence(cloud(400, 8, 1), cloud(150, 8, 2, shift=0.5)))
    assert score.value is not None
    assert score.low is not None
    assert score.floor_high is not None
    assert score.low > 3 * score.floor_high


def test_the_same_seed_gives_the_same_score():
    first, second = (fid(evidence(cloud(200, 8, 1), cloud(90, 8, 2), seed=4)) for _ in range(2))
    assert first == second
