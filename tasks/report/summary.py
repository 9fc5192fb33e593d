"""What a report says of any number of rows, in two passes: how scores spread, why samples failed, whom to show."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BINS = 24

Batches = Callable[[], Iterable[pa.RecordBatch]]
"""The rows, from the first, at every call; ids ascend."""

Limits = tuple[float | None, float | None]
"""(least, most) that a score may be."""


@dataclass(frozen=True)
class Bins:
    """How many kept and rejected samples have a score in each of `BINS` equal parts of low … high.

    Thresholds lie within, too. Where no sample has the score, all counts are zero.
    """

    low: float
    high: float
    kept: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """Failed samples by reason, and the spread of every score by its name."""

    failures: Mapping[str, int]
    histograms: Mapping[str, Bins]


def summarize(rows: Batches, score_names: Sequence[str], thresholds: Mapping[str, Limits]) -> Summary:
    """Failures and scores of rows that have `verdict`, `reasons` and a column of each name."""
    failures: Counter[str] = Counter()
    extents: dict[str, tuple[float, float]] = {}
    for batch in rows():
        verdicts, reasons = batch.column("verdict").to_pylist(), batch.column("reasons").to_pylist()
        for verdict, why in zip(verdicts, reasons, strict=True):
            if verdict == "failed":
                failures.update(why or ["no reason given"])
        for name in score_names:
            for values in _sides(batch, name):
                if len(values):
                    low, high = extents.get(name, (np.inf, -np.inf))
                    extents[name] = min(low, float(values.min())), max(high, float(values.max()))
    extents = {name: _widened(extent, thresholds.get(name, (None, None))) for name, extent in extents.items()}
    counts = {name: np.zeros((2, BINS), np.int64) for name in score_names}
    for batch in rows() if extents else ():
        for name, extent in extents.items():
            counts[name] += [np.histogram(values, BINS, extent)[0] for values in _sides(batch, name)]
    return Summary(
        failures=dict(failures),
        histograms={name: Bins(*extents.get(name, (0.0, 1.0)), *map(tuple, counts[name].tolist())) for name in counts},
    )


def spread(rows: Callable[[], Iterable[tuple[str, str]]], most: Callable[[int], int]) -> list[str]:
    """Ids evenly spaced over each group, the first among them, group by group in the groups' order.

    Args:
        rows: (group, id) in ascending order of id, from the first at every call.
        most: how many of a group, given the number of groups.

    >>> spread(lambda: [("b", "1"), ("a", "2"), ("b", "3"), ("b", "4"), ("b", "5")], lambda groups: 2)
    ['2', '1', '4']
    """
    sizes = Counter(group for group, _ in rows())
    each = most(len(sizes))
    wanted = {
        group: {index * size // each for index in range(each)} if size > each else range(size)
        for group, size in sizes.items()
    }
    seen: Counter[str] = Counter()
    chosen: dict[str, list[str]] = {group: [] for group in sorted(sizes)}
    for group, id in rows():
        if seen[group] in wanted[group]:
            chosen[group].append(id)
        seen[group] += 1
    return [id for ids in chosen.values() for id in ids]


def cause(reasons: Sequence[str] | None) -> str:
    """What a reason is about, without its numbers: the first word."""
    return reasons[0].split(" ")[0] if reasons else ""


def _sides(batch: pa.RecordBatch, name: str) -> list[NDArray[np.float64]]:
    """A score of the kept and of the rejected samples that have it."""
    values = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
    verdicts = np.array(batch.column("verdict").to_pylist())
    return [values[np.isfinite(values) & (verdicts == verdict)] for verdict in ("kept", "rejected")]


def _widened(extent: tuple[float, float], limits: Limits) -> tuple[float, float]:
    """An extent that holds the limits and is not a point."""
    known = [*extent, *(limit for limit in limits if limit is not None)]
    low, high = min(known), max(known)
    return (low - 0.5, high + 0.5) if low == high else (low, high)
