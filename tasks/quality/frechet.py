"""Fréchet distance between the Gaussians fitted to two feature clouds (Heusel et al., arXiv 1706.08500), in float64.

The distance needs tr √(AB) of the covariances A and B. With any A = FᵀF and B = GᵀG that is the sum of the singular
values of FGᵀ: no general matrix square root, so no imaginary part and no failure where a covariance is singular. F may
be the centred images themselves: of n images in d > n dimensions the matrix is n × n, never d × d.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tasks.quality.evidence import check_features

SMALL, TOLERANCE = 256, 1e-6
"""Above so many dimensions the faster of two ways is tried, and kept where rounding cannot have cost more than this
share of the distance."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Number, mean (d,) and scatter (d, d) of images that are no longer in memory; scatter = covariance × (n − 1)."""

    count: int
    mean: Matrix = field(repr=False)
    scatter: Matrix = field(repr=False)

    @property
    def covariance(self) -> Matrix:
        """Unbiased, (d, d)."""
        return self.scatter / (self.count - 1)


def moments(batches: Iterable[Matrix]) -> Moments:
    """Moments of features that arrive as batches (n, d), in memory that does not grow with their number.

    Batches are joined by Chan, Golub and LeVeque's update, which does not lose the digits that the difference of
    sums of squares loses.

    Raises:
        ValueError: fewer than two images, NaN, or batches of different dimensions.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        if not len(batch):
            continue
        own = batch.mean(axis=0)
        centred = batch - own
        if not count:
            count, mean, scatter = len(batch), own, centred.T @ centred
            continue
        if len(own) != len(mean):
            raise ValueError(f"a batch has {len(own)} dimensions, those before it {len(mean)}: two extractors?")
        total, step = count + len(batch), own - mean
        scatter += centred.T @ centred
        scatter += np.outer(step, step) * (count * len(batch) / total)
        mean = mean + step * (len(batch) / total)
        count = total
    if count < 2:
        raise ValueError(f"found {count} images; a covariance needs at least 2")
    if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
        raise ValueError("some image has NaN or infinite features")
    return Moments(count, mean, scatter)


def frechet_distance(real: Matrix, synthetic: Matrix) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (n, d), 0 upwards.

    Raises:
        ValueError: NaN, fewer than two rows, or different dimensions.
    """
    check_features(real, synthetic)
    least, most = sorted((len(real), len(synthetic)))
    if least > real.shape[1]:
        return distance_of_moments(moments([real]), moments([synthetic]))
    offset = real.mean(axis=0) - synthetic.mean(axis=0)
    a, b = _rows(real), _rows(synthetic)
    spread = float((a**2).sum() + (b**2).sum())
    if most > real.shape[1]:  # one side has more images than dimensions: d of its rows say as much
        a, b = (_triangle(side) if len(side) > side.shape[1] else side for side in (a, b))
    return _joined(offset, spread, float(np.linalg.svd(a @ b.T, compute_uv=False).sum()))


def distance_of_moments(real: Moments, synthetic: Moments) -> float:
    """`frechet_distance` of sets of which only the moments are known: A and B from two `moments`.

    Raises:
        ValueError: different dimensions.
    """
    if len(real.mean) != len(synthetic.mean):
        raise ValueError(f"real features have {len(real.mean)} dimensions, synthetic {len(synthetic.mean)}")
    cov_a, cov_b = real.covariance, synthetic.covariance
    spread = float(np.trace(cov_a) + np.trace(cov_b))
    offset, factor = real.mean - synthetic.mean, _factor(cov_a)
    if len(factor) > SMALL:
        distance, error = _from_squares(offset, spread, factor, cov_b)
        if error < TOLERANCE * distance:
            return distance
    return _joined(offset, spread, float(np.linalg.svd(factor @ _factor(cov_b).T, compute_uv=False).sum()))


def sensitivity(real: Matrix, synthetic: Matrix) -> tuple[float, Matrix, Matrix]:
    """The distance, and how fast it grows when the weight of each row does, (n,) and (m,): each sums to 0.

    A row's influence, from which the distance's sampling error follows without computing it anew (Efron, The
    Jackknife, the Bootstrap and Other Resampling Plans, 1982, section 6: the infinitesimal jackknife). With the
    singular value decomposition USVᵀ of the product of the centred rows XYᵀ, tr √(AB) grows by half of (USUᵀ)ᵢᵢ with
    the weight of row i of X; the movement of the mean adds nothing, because the rows are centred.
    """
    offset = real.mean(axis=0) - synthetic.mean(axis=0)
    (a, basis_a), (b, basis_b) = _reduced(_rows(real)), _reduced(_rows(synthetic))
    u, roots, v = np.linalg.svd(a @ b.T, full_matrices=False)
    spread = float((a**2).sum() + (b**2).sum())
    growth: list[Matrix] = []
    for features, factor, basis, vectors, sign in (
        (real, a, basis_a, u, 1),
        (synthetic, b, basis_b, v.T, -1),
    ):
        rows, vectors = (factor, vectors) if basis is None else (basis @ factor, basis @ vectors)
        moved = 2 * sign * (features - features.mean(axis=0)) @ offset / len(features)
        grown = moved + (rows**2).sum(axis=1) - vectors**2 @ roots
        growth.append(grown - grown.mean())
    return _joined(offset, spread, float(roots.sum())), growth[0], growth[1]


def _rows(features: Matrix) -> Matrix:
    """Centred rows X with XᵀX = covariance."""
    return (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)


def _reduced(rows: Matrix) -> tuple[Matrix, Matrix | None]:
    """At most d rows with the same covariance, and what turns them back into all: rows = basis @ reduced."""
    if len(rows) <= rows.shape[1]:
        return rows, None
    basis, factor = np.linalg.qr(rows)
    return factor, basis


def _joined(offset: Matrix, spread: float, shared: float) -> float:
    return max(0.0, float(offset @ offset) + spread - 2 * shared)


def _from_squares(offset: Matrix, spread: float, factor: Matrix, covariance: Matrix) -> tuple[float, float]:
    """The distance from the eigenvalues of FBFᵀ, with A = FᵀF, and what rounding may have done to it.

    They are the squares of the singular values wanted, and four times as fast to have; but squaring halves the digits
    of the smallest.
    """
    from scipy.linalg import eigvalsh
    from scipy.linalg.lapack import dsygst  # pyright: ignore[reportAttributeAccessIssue]

    product, _ = dsygst(covariance, factor, itype=2)
    squares = eigvalsh(product, lower=False, check_finite=False)
    rounding = 10 * np.finfo(np.float64).eps * squares[-1]
    roots = np.sqrt(squares.clip(0))
    error = float((rounding / np.sqrt(squares.clip(rounding or 1))).sum())
    return _joined(offset, spread, float(roots.sum())), error


def _factor(covariance: Matrix) -> Matrix:
    """Upper triangular F with FᵀF = covariance, which may be singular."""
    try:
        return cast(Matrix, np.linalg.cholesky(covariance)).T
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return _triangle((vectors * np.sqrt(values.clip(0))).T)


def _triangle(rows: Matrix) -> Matrix:
    """d rows at most, with the same covariance."""
    return cast(Matrix, np.linalg.qr(rows, mode="r"))
