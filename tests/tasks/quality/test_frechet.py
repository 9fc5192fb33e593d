import numpy as np
import pytest
from scipy import linalg

from tasks.quality.frechet import distance_of_moments, frechet_distance, moments, sensitivity
from tests.tasks.quality.clouds import cloud


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root))


def by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """Of singular covariances too, where scipy's matrix square root loses its digits or fails."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b) - 2 * roots.sum())


@pytest.mark.parametrize(("n", "d"), [(200, 8), (500, 32), (33, 32)])
def test_it_agrees_with_scipys_matrix_square_root(n: int, d: int):
    a, b = cloud(n, d, 1), cloud(n + 7, d, 2, shift=0.3, scale=1.4)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(20, 30), (20, 300), (300, 20), (64, 64), (2, 2)])
def test_fewer_images_than_dimensions_agree_with_the_eigenvalues_of_the_product(n: int, m: int):
    a, b = cloud(n, 64, 6), cloud(m, 64, 7, shift=0.2, scale=1.3)
    assert frechet_distance(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-5)  # the peer rounds roots of 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MONAI imports pieces of torch that torch retires
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_agrees_with_monai():
    import torch
    from monai.metrics.fid import FIDMetric

    a, b = cloud(300, 16, 3), cloud(200, 16, 4, shift=0.5)
    theirs = FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)  # MONAI adds 1e-6 to the diagonals


def test_it_agrees_with_torchmetrics():
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        """Images that are their own features."""

        num_features = 16

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    a, b = cloud(300, 16, 3), cloud(200, 16, 4, shift=0.5)
    peer = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    peer.update(torch.from_numpy(a), real=True)
    peer.update(torch.from_numpy(b), real=False)
    assert frechet_distance(a, b) == pytest.approx(peer.compute().item(), rel=1e-9)


def test_known_gaussians_have_the_distance_of_the_formula():
    # Two points at ±1 have variance 2; shifted by 3 and scaled by 2 the distance is 9 + (2·√2 − √2)².
    a = np.array([[-1.0], [1.0]])
    assert frechet_distance(a, 2 * a + 3) == pytest.approx(9 + 2)


def test_equal_sets_constant_features_and_duplicates_are_at_distance_zero():
    a = cloud(50, 8, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a[:5], a[:5]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(np.ones((5, 8)), np.ones((9, 8))) == 0
    assert frechet_distance(np.ones((50, 8)), np.ones((90, 8))) == 0
    assert frechet_distance(np.concatenate([a, a]), a) == pytest.approx(0, abs=0.02)


def test_singular_covariances_keep_their_digits():
    """A feature that is constant, one that repeats another, and duplicates of few images: all of rank below d."""
    a, b = cloud(80, 6, 1), cloud(70, 6, 2, shift=0.4, scale=0.5)
    widened = [np.column_stack([x, np.full(len(x), 3.0), x[:, 0]]) for x in (a, b)]
    doubled = [np.column_stack([x, x[:, 0]]) for x in (a, b)]
    assert frechet_distance(*widened) == pytest.approx(frechet_distance(*doubled), rel=1e-9)
    few = np.repeat(a[:4], 30, axis=0)
    assert frechet_distance(few, b) == pytest.approx(by_eigenvalues(few, b), rel=1e-5)


@pytest.mark.parametrize("spectrum", [np.ones(300), np.logspace(0, -9, 300)])
def test_many_dimensions_keep_six_digits_even_where_the_spectrum_falls_to_nothing(spectrum: np.ndarray):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(600, 300)) * spectrum * scale for scale in (1, 1.05))
    assert frechet_distance(a, b) == pytest.approx(sensitivity(a, b)[0], rel=1e-6)  # by QR and SVD of the rows
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-5)


def test_a_large_offset_does_not_drown_the_distance():
    a, b = cloud(200, 8, 1), cloud(200, 8, 2, scale=1.4)
    assert frechet_distance(a + 1e6, b + 1e6) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_moments_of_a_stream_are_those_of_the_whole():
    a = cloud(103, 8, 1) + 1e4
    found = moments(np.split(a, [1, 40, 40, 90]))
    assert found.count == 103
    np.testing.assert_allclose(found.mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(a.T), rtol=1e-8)
    b = cloud(60, 8, 2) + 1e4
    assert distance_of_moments(found, moments([b])) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "found 0 images"),
        ([np.ones((1, 3))], "found 1 images"),
        ([np.ones((2, 3)), np.ones((2, 4))], "a batch has 4 dimensions, those before it 3"),
        ([np.ones((2, 3)), np.full((2, 3), np.nan)], "NaN"),
    ],
)
def test_moments_of_what_cannot_be_compared_are_refused(batches: list[np.ndarray], message: str):
    with pytest.raises(ValueError, match=message):
        moments(batches)


def weighted_distance(a: np.ndarray, b: np.ndarray, weight_a: np.ndarray, weight_b: np.ndarray) -> float:
    """The distance with every row counted so often, straight from the definition."""
    parts = []
    for rows, weight in ((a, weight_a), (b, weight_b)):
        mean = np.average(rows, axis=0, weights=weight)
        covariance = np.cov(rows.T, aweights=weight, ddof=0) * len(rows) / (len(rows) - 1)
        parts.append((mean, covariance))
    (mean_a, cov_a), (mean_b, cov_b) = parts
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0)).sum()
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b) - 2 * roots)


def test_the_sensitivity_is_the_slope_of_the_distance_in_a_rows_weight():
    a, b = cloud(30, 6, 1), cloud(40, 6, 2, shift=0.4, scale=1.3)
    value, slopes_a, slopes_b = sensitivity(a, b)
    assert value == pytest.approx(frechet_distance(a, b), rel=1e-10)
    step = 1e-4
    for row in (0, 7):
        for side, slopes in ((0, slopes_a), (1, slopes_b)):
            ends = []
            for sign in (1, -1):
                weights = [np.ones(30), np.ones(40)]
                weights[side][row] += sign * step
                ends.append(weighted_distance(a, b, *weights))
            assert slopes[row] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_the_sensitivity_of_few_images_in_many_dimensions_has_the_same_distance_and_no_sum():
    a, b = cloud(20, 64, 1), cloud(80, 64, 2)
    value, slopes_a, slopes_b = sensitivity(a, b)
    assert value == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert slopes_a.sum() == pytest.approx(0, abs=1e-9)
    assert slopes_b.sum() == pytest.approx(0, abs=1e-9)


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
