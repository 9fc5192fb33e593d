"""A Gaussian copula: numbers keep the distributions that examples show, their dependence is a correlation matrix.

The matrix is shrunk towards none (Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation", 2010), so that
a few dozen examples will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True)
class Copula:
    """Sorted `values` (D, N) of every number, and the Cholesky factor (D, D) of their correlation as normal scores."""

    values: NDArray[np.float64]
    factor: NDArray[np.float64]


def learn(rows: NDArray[np.float64], independent: int, blocks: Sequence[NDArray[np.intp]]) -> Copula:
    """The copula of examples (N, D), of which `independent` are no mirror image of another.

    `blocks` are the columns that may depend on each other; between blocks there is no dependence.
    """
    ranks = np.argsort(np.argsort(rows, axis=0, kind="stable"), axis=0)
    scores = special.ndtri((ranks + 0.5) / len(rows))
    correlation: NDArray[np.float64] = np.eye(rows.shape[1])
    for block in blocks:
        found = np.corrcoef(scores[:, block], rowvar=False)
        correlation[np.ix_(block, block)] = _shrunk(found, independent)
    return Copula(np.sort(rows, axis=0).T, np.linalg.cholesky(correlation).astype(np.float64))


def draw(copula: Copula, rng: np.random.Generator) -> NDArray[np.float64]:
    """One new example (D,); no number lies outside the range that was seen."""
    shares = special.ndtr(copula.factor @ rng.standard_normal(len(copula.factor)))
    count = copula.values.shape[1]
    places = np.clip(shares * count - 0.5, 0, count - 1)
    return np.array([np.interp(place, np.arange(count), own) for place, own in zip(places, copula.values, strict=True)])


def _shrunk(correlation: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Oracle-approximating shrinkage of a correlation matrix of `count` independent rows towards none."""
    size = len(correlation)
    squares = float((correlation**2).sum())
    weight = ((1 - 2 / size) * squares + size**2) / ((count + 1 - 2 / size) * (squares - size))
    weight = min(1.0, max(0.02, weight))
    return (1 - weight) * correlation + weight * np.eye(size)
