"""Kernel distance between two feature clouds (Bińkowski et al., arXiv 1801.01401): unbiased at any N."""

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.evidence import SetEvidence, check_features
from tasks.quality.resampling import central_interval, group_halves, group_weights, interval_around

DRAWS = 100


def polynomial_kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(a·b / d + 1)³ of every pair of rows."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d); around 0, also below, for equal sets.

    Raises:
        ValueError: NaN, fewer than two rows, or different dimensions.
    """
    check_features(real, synthetic)
    ones = np.ones((1, len(real))), np.ones((1, len(synthetic)))
    return float(_weighted(*_kernels(real, synthetic), *ones)[0])


def kid(evidence: SetEvidence) -> SetScore:
    """Kernel distance of all real to all synthetic images; the floor is that of disjoint group halves of the
    real ones, at most as large as the synthetic set."""
    rng = np.random.default_rng([evidence.seed, 11])
    kernels = _kernels(evidence.real, evidence.synthetic)
    value = kernel_distance(evidence.real, evidence.synthetic)
    resampled = _weighted(
        *kernels,
        group_weights(evidence.real_groups, evidence.resamples, rng),
        group_weights(evidence.synthetic_groups, evidence.resamples, rng),
    )
    low, high = interval_around(value, resampled[np.isfinite(resampled)])
    score = SetScore(
        name="kid",
        value=value,
        low=low,
        high=high,
        n_real=len(evidence.real),
        n_synthetic=len(evidence.synthetic),
        extractor=evidence.extractor,
        note="no floor: the real images are of one group",
    )
    halves = group_halves(evidence.real_groups, len(evidence.synthetic), DRAWS, rng)
    n = len(halves[0][0]) if halves else 0
    if n < 2:
        return score
    within = kernels[0]
    floors = np.array([_unbiased(within[np.ix_(a, a)], within[np.ix_(b, b)], within[np.ix_(a, b)]) for a, b in halves])
    floor_low, floor_high = central_interval(floors)
    update = {"floor": float(floors.mean()), "floor_low": floor_low, "floor_high": floor_high}
    return score.model_copy(update=update | {"note": f"floor at N = {n} a side"})


def _kernels(
    real: NDArray[np.float64], synthetic: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    return (
        polynomial_kernel(real, real),
        polynomial_kernel(synthetic, synthetic),
        polynomial_kernel(real, synthetic),
    )


def _unbiased(aa: NDArray[np.float64], bb: NDArray[np.float64], ab: NDArray[np.float64]) -> float:
    return float(_weighted(aa, bb, ab, np.ones((1, len(aa))), np.ones((1, len(bb))))[0])


def _weighted(
    aa: NDArray[np.float64],
    bb: NDArray[np.float64],
    ab: NDArray[np.float64],
    weights_a: NDArray[np.float64],
    weights_b: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The distance with every row counted `weights` times, (resamples,); no row is paired with itself."""
    across = np.einsum("ri,ij,rj->r", weights_a, ab, weights_b, optimize=True)
    pairs = weights_a.sum(1) * weights_b.sum(1)
    return _pair_mean(aa, weights_a) + _pair_mean(bb, weights_b) - 2 * across / pairs


def _pair_mean(kernel: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = weights**2
    total = np.einsum("ri,ij,rj->r", weights, kernel, weights, optimize=True) - squares @ np.diag(kernel)
    pairs = weights.sum(1) ** 2 - squares.sum(1)
    # A resample of a single group of one image has no pairs: NaN, which the caller leaves out.
    return np.divide(total, pairs, out=np.full(len(total), np.nan), where=pairs > 0)
