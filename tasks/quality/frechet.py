"""Fréchet distance between two feature clouds (Heusel et al., arXiv 1706.08500), in float64.

The distance is biased upwards at small N, by an amount that depends on the model (Chong and Forsyth, arXiv
1911.07023). So it is never given alone: value and real-vs-real floor are computed at the same N on both
sides, and below twice as many images as dimensions there is no number at all.
"""

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.evidence import SetEvidence, check_features
from tasks.quality.resampling import central_interval, group_halves, group_weights, interval_around

DRAWS = 50


def frechet_distance(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (n, d), 0 upwards.

    tr √(AB) is computed as the sum of the roots of the eigenvalues of √A·B·√A: symmetric, so no imaginary
    parts and no failure on singular covariances, unlike a general matrix square root.

    Raises:
        ValueError: NaN, fewer than two rows, or different dimensions.
    """
    check_features(real, synthetic)
    return _distance(*_moments(real, None), *_moments(synthetic, None))


def fid(evidence: SetEvidence) -> SetScore:
    """Fréchet distance at N = the smaller of the synthetic images and half the real ones, a side.

    The value is the mean over random halves of the real images, the floor that of each half to the other.
    """
    rng = np.random.default_rng([evidence.seed, 10])
    wanted = min(len(evidence.synthetic), len(evidence.real))
    halves = group_halves(evidence.real_groups, wanted, DRAWS, rng)
    n = len(halves[0][0]) if halves else 0
    needed = 2 * evidence.real.shape[1]
    total = f"of {len(evidence.real)} real and {len(evidence.synthetic)} synthetic"
    score = SetScore(
        name="fid",
        value=None,
        low=None,
        high=None,
        n_real=n,
        n_synthetic=n,
        extractor=evidence.extractor,
        note=f"refused: N = {n} a side ({total}), at least {needed} needed (twice the feature dimension)",
    )
    if n < needed:
        return score
    values, floors = np.zeros(DRAWS), np.zeros(DRAWS)
    drawn: list[NDArray[np.intp]] = []
    for draw, (here, there) in enumerate(halves):
        drawn.append(rng.permutation(len(evidence.synthetic))[:n])
        moments = _moments(evidence.real[here], None)
        values[draw] = _distance(*moments, *_moments(evidence.synthetic[drawn[-1]], None))
        floors[draw] = _distance(*moments, *_moments(evidence.real[there], None))
    value = float(values.mean())
    low, high = interval_around(value, _resampled(evidence, [here for here, _ in halves], drawn, rng))
    floor_low, floor_high = central_interval(floors)
    return score.model_copy(
        update={
            "value": value,
            "low": max(0.0, low),
            "high": high,
            "floor": float(floors.mean()),
            "floor_low": floor_low,
            "floor_high": floor_high,
            "note": f"biased at this N: read it against its floor; mean of {DRAWS} draws {total}",
        }
    )


def _resampled(
    evidence: SetEvidence,
    real: list[NDArray[np.intp]],
    synthetic: list[NDArray[np.intp]],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The distance on bootstrap samples of groups, drawn inside each of the draws."""
    out = np.zeros(evidence.resamples)
    for b in range(evidence.resamples):
        moments: list[NDArray[np.float64]] = []
        for features, groups, rows in (
            (evidence.real, evidence.real_groups, real[b % DRAWS]),
            (evidence.synthetic, evidence.synthetic_groups, synthetic[b % DRAWS]),
        ):
            chosen: list[str] = [groups[int(row)] for row in rows]
            weights = group_weights(chosen, 1, rng)[0]
            moments += _moments(features[rows], weights.astype(np.int64))
        out[b] = _distance(*moments)
    return out


def _moments(
    features: NDArray[np.float64], repeats: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = np.average(features, axis=0, weights=repeats)
    return mean, np.atleast_2d(np.cov(features, rowvar=False, fweights=repeats))


def _distance(
    mean_a: NDArray[np.float64],
    cov_a: NDArray[np.float64],
    mean_b: NDArray[np.float64],
    cov_b: NDArray[np.float64],
) -> float:
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    offset = mean_a - mean_b
    return max(0.0, float(offset @ offset + np.trace(cov_a) + np.trace(cov_b) - 2 * shared))
