"""Bootstrap and halving by group: images of one patient are not independent."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator


def group_weights(groups: Sequence[str], resamples: int, rng: Rng) -> NDArray[np.float64]:
    """How often each row is in each bootstrap sample of whole groups, (resamples, rows)."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, member].astype(np.float64)


def group_halves(
    groups: Sequence[str], size: int, draws: int, rng: Rng
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs of disjoint sets of rows, at most `size` rows each, that share no group; all sets equally large.

    The list is empty where the groups do not allow two images a side.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return []
    pairs: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for _ in range(draws):
        order = rng.permutation(len(names))
        rank = np.empty(len(names), np.intp)
        rank[order] = np.arange(len(names))
        shuffled = np.argsort(rank[member], kind="stable")  # rows, group by group in random order
        counts = np.cumsum(np.bincount(rank[member]))
        cut = int(counts[np.abs(counts[:-1] - len(shuffled) / 2).argmin()])
        pairs.append((shuffled[:cut][:size], shuffled[cut:][:size]))
    least = min(min(len(a), len(b)) for a, b in pairs)
    return [(a[:least], b[:least]) for a, b in pairs] if least >= 2 else []


def interval_around(value: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    """Central 95 % of `resampled`, moved so that its mean is `value`.

    Moved, because sampling with replacement repeats images, and repeats inflate distances between sets.
    """
    low, high = np.percentile(resampled - resampled.mean(), [2.5, 97.5])
    return value + float(low), value + float(high)


def central_interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """Central 95 % of `resampled`."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
