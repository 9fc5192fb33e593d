"""Bootstrap and halving by group: images of one patient are not independent."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Row = TypeVar("Row")


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
        shuffled, rank = _shuffled(member, len(names), rng)
        counts = np.cumsum(np.bincount(rank))
        cut = int(counts[np.abs(counts[:-1] - len(shuffled) / 2).argmin()])
        pairs.append((shuffled[:cut][:size], shuffled[cut:][:size]))
    least = min(min(len(a), len(b)) for a, b in pairs)
    return [(a[:least], b[:least]) for a, b in pairs] if least >= 2 else []


@dataclass(frozen=True)
class Comparison:
    """Rows to compare at one N: real `here` with synthetic `made`, and with real `there`, which shares no group."""

    here: NDArray[np.intp] = field(repr=False)
    there: NDArray[np.intp] = field(repr=False)
    made: NDArray[np.intp] = field(repr=False)

    def first(self, n: int) -> "Comparison":
        """The same at a smaller N: rows lie group by group, so that whole groups leave, and one in part."""
        return Comparison(self.here[:n], self.there[:n], self.made[:n])


def comparisons(real_groups: Sequence[str], synthetic_groups: Sequence[str], draws: int, rng: Rng) -> list[Comparison]:
    """Random halves of the real images, each with as many synthetic ones: a value and its floor at the same N.

    The list is empty where the real groups do not allow two images a side.
    """
    halves = group_halves(real_groups, len(synthetic_groups), draws, rng)
    names, member = np.unique(np.asarray(synthetic_groups), return_inverse=True)
    return [Comparison(here, there, _shuffled(member, len(names), rng)[0][: len(here)]) for here, there in halves]


def _shuffled(member: NDArray[np.intp], groups: int, rng: Rng) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows group by group in random order, and the place of every row's group in that order."""
    rank = rng.permutation(groups)[member]
    return np.argsort(rank, kind="stable"), rank


class GroupSample(Generic[Row]):
    """At most `limit` rows of a stream, as whole groups drawn at random by `seed`: memory does not grow with N.

    Groups queue by a digest of their name and the seed, so that neither order nor batches decide. A single group
    of more than `limit` rows is cut.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self._limit, self._seed, self._held = limit, seed, 0
        self._rows: dict[str, list[Row]] = {}
        self._last_first: list[tuple[int, str]] = []  # a heap of the groups held, the last in the queue on top
        self._closed = 2**64  # groups from here on in the queue no longer fit
        self.seen = 0

    def add(self, group: str, row: Row) -> None:
        """One more row of the stream."""
        self.seen += 1
        place = int.from_bytes(blake2b(f"{self._seed}/{group}".encode(), digest_size=8).digest(), "big")
        if place >= self._closed:
            return
        if group not in self._rows:
            self._rows[group] = []
            heapq.heappush(self._last_first, (-place, group))
        self._rows[group].append(row)
        self._held += 1
        while self._held > self._limit and len(self._rows) > 1:
            place, last = heapq.heappop(self._last_first)
            self._closed = -place
            self._held -= len(self._rows.pop(last))
        if self._held > self._limit:
            self._rows[group].pop()
            self._held -= 1

    def rows(self) -> list[tuple[str, Row]]:
        """What is held, with the group of each row; groups in the order of their names."""
        return [(group, row) for group in sorted(self._rows) for row in self._rows[group]]


def bounded_rows(groups: Sequence[str], limit: int, seed: int) -> NDArray[np.intp]:
    """Numbers of at most `limit` rows, in order, as whole groups: all of them where there are no more."""
    sample = GroupSample[int](limit, seed)
    for row, group in enumerate(groups):
        sample.add(group, row)
    return np.array(sorted(row for _, row in sample.rows()), np.intp)


def grouped_margin(sides: Sequence[tuple[NDArray[np.float64], Sequence[str]]]) -> float | None:
    """Half of the 95 % interval of an estimate, from how far one more weight on each row moves it, and the groups.

    The infinitesimal jackknife: rows of a group come and go together, so their movements add up before they are
    squared. Student's quantile, of one degree of freedom less than the smaller side has groups. None where a side
    has one group only: what another would bring is not known then.
    """
    from scipy.special import stdtrit

    fewest = min(len(set(groups)) for _, groups in sides)
    if fewest < 2:
        return None
    movement = np.concatenate([moved for moved, _ in sides])
    _, member = np.unique(np.concatenate([np.asarray(groups) for _, groups in sides]), return_inverse=True)
    error = np.sqrt((np.bincount(member, movement) ** 2).sum() * fewest / (fewest - 1))
    return float(stdtrit(fewest - 1, 0.975) * error)


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


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of the rate behind `hits` of `n` independent trials; of none it is (0, 1).

    Unlike hits/n ± 1.96 standard errors it stays inside 0..1 and holds at 0 and at n hits.

    Raises:
        ValueError: fewer than 0 or more than n hits.

    Source: Wilson, J. Am. Stat. Assoc. 22:209, 1927.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"found {hits} hits of {n}, expected 0 to {n}")
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    rate, shrink = hits / n, 1 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / shrink
    # At 0 and at n hits one end is exact; rounding would leave it 1e-17 off.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)
