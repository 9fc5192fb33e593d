"""Kernel distance between two feature clouds (Bińkowski et al., arXiv 1801.01401): unbiased at any N."""

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.evidence import SetEvidence, check_features, pairwise
from tasks.quality.resampling import Rng, central_interval, group_halves, group_weights, interval_around

DRAWS = 100
PERMUTATIONS = 500


def polynomial_kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(a·b / d + 1)³ of every pair of rows."""
    product = a @ b.T / a.shape[1] + 1
    return product * product * product  # several times as fast as a power


def kernel_distance(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d); around 0, also below, for equal sets.

    Raises:
        ValueError: NaN, fewer than two rows, or different dimensions.
    """
    check_features(real, synthetic)
    ones = np.ones((1, len(real))), np.ones((1, len(synthetic)))
    return float(_weighted(*_kernels(real, synthetic), *ones)[0])


def kid(evidence: SetEvidence) -> SetScore:
    """Kernel distance of real to synthetic images: 0 where the sets are alike, more where they differ.

    All images of both sides count, up to a bound. The floor is that of disjoint group halves of the real images, at
    most as large as the synthetic set. It scatters around 0, and no multiple of 0 means anything: the upper end of the
    floor is the unit of `over_floor`. `p` is of a permutation test in which whole groups change sides.
    """
    evidence, chosen = pairwise(evidence)
    rng = np.random.default_rng([evidence.seed, 11])
    kernels = _kernels(evidence.real, evidence.synthetic)
    value = _unbiased(*kernels)
    resampled = _weighted(
        *kernels,
        group_weights(evidence.real_groups, evidence.resamples, rng),
        group_weights(evidence.synthetic_groups, evidence.resamples, rng),
    )
    # A side of one group says nothing about what another would bring: there is no interval.
    known = min(len(set(groups)) for groups in (evidence.real_groups, evidence.synthetic_groups)) > 1
    low, high = interval_around(value, resampled[np.isfinite(resampled)]) if known else (None, None)
    score = SetScore(
        name="kid",
        value=value,
        low=low,
        high=high,
        p=_permutation_p(kernels, evidence, value, rng),
        n_real=len(evidence.real),
        n_synthetic=len(evidence.synthetic),
        extractor=evidence.extractor,
        note="no floor: the real images are of one group" + chosen,
    )
    halves = group_halves(evidence.real_groups, len(evidence.synthetic), DRAWS, rng)
    n = len(halves[0][0]) if halves else 0
    if n < 2:
        return score
    sides = np.zeros((2, DRAWS, len(evidence.real)))
    for draw, (a, b) in enumerate(halves):
        sides[0, draw, a], sides[1, draw, b] = 1, 1
    floors = _weighted(kernels[0], kernels[0], kernels[0], *sides)
    floor_low, floor_high = central_interval(floors)
    update: dict[str, str | float] = {"floor": float(floors.mean()), "floor_low": floor_low, "floor_high": floor_high}
    if floor_high > 0:
        multiples = {"over_floor": value, "over_floor_low": low, "over_floor_high": high}
        update |= {name: number / floor_high for name, number in multiples.items() if number is not None}
    return score.model_copy(update=update | {"note": f"floor at N = {n} a side{chosen}"})


def _permutation_p(
    kernels: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    evidence: SetEvidence,
    value: float,
    rng: Rng,
) -> float:
    """Share of relabellings of whole groups that reach `value`; the observed one counts as one."""
    within_real, within_made, across = kernels
    joint = np.block([[within_real, across], [across.T, within_made]])
    names = [f"real/{group}" for group in evidence.real_groups] + [
        f"made/{group}" for group in evidence.synthetic_groups
    ]
    sides, member = np.unique(names, return_inverse=True)
    observed = np.char.startswith(sides, "real/")
    real = np.stack([rng.permutation(observed) for _ in range(PERMUTATIONS)])[:, member].astype(np.float64)
    permuted = _weighted(joint, joint, joint, real, 1 - real)
    return float((1 + (permuted >= value).sum()) / (1 + PERMUTATIONS))


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
