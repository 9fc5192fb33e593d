"""Krippendorff's alpha for ordered answers: do readers agree, and does one with themselves? 1: always; 0: by chance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def counted(answers: Sequence[Sequence[int]], categories: int) -> Array:
    """How often each of 1..`categories` was given, (pictures, categories), from one list of answers a picture."""
    return np.array([np.bincount(given, minlength=categories + 1)[1:] for given in answers], np.float64)


def alpha(counts: Array, weights: Array | None = None) -> Array:
    """Krippendorff's alpha with the ordinal metric.

    Args:
        counts: how often each answer was given, (pictures, categories); pictures with one answer count for nothing.
        weights: how often each picture counts, (resamples, pictures); once where left out.

    Returns:
        One alpha a resample; NaN where all answers are the same, so that there is nothing to agree on.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability, University of Pennsylvania, 2011.
    """
    pictures, categories = counts.shape
    weights = np.ones((1, pictures)) if weights is None else weights
    given = counts.sum(axis=1)
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(categories))
    per_picture = np.divide(pairs, (given - 1)[:, None, None], out=np.zeros_like(pairs), where=given[:, None, None] > 1)
    coincidences = (weights @ per_picture.reshape(pictures, -1)).reshape(-1, categories, categories)
    totals = coincidences.sum(axis=2)
    middles = np.cumsum(totals, axis=1) - totals / 2  # ranks: what lies below a category, and half of itself
    squared = (middles[:, :, None] - middles[:, None, :]) ** 2
    observed = (coincidences * squared).sum(axis=(1, 2)) * (totals.sum(axis=1) - 1)
    expected = np.einsum("ri,rij,rj->r", totals, squared, totals)
    return 1 - np.divide(observed, expected, out=np.full(len(expected), np.nan), where=expected > 0)
