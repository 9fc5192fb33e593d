"""What a report says of any number of rows, in two passes: how scores spread, why samples failed, whom to show."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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


def extremes(rows: Batches, names: Sequence[str], each: int) -> dict[str, tuple[list[str], list[str]]]:
    """Ids of the kept samples with the lowest and with the highest values of every score: `each` of every label.

    Both lists begin with the most extreme of all labels; of equal values the first id. A score that no kept sample
    has is left out. Needs `id`, `label`, `verdict` and the scores.
    """
    found: dict[tuple[str, int], dict[str, list[tuple[float, str]]]] = {}
    for batch in rows():
        kept = batch.filter(pc.call_function("equal", [batch.column("verdict"), pa.scalar("kept")]))
        ids, labels = kept.column("id").to_pylist(), np.array(kept.column("label").to_pylist())
        for name in names:
            values = kept.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            for label in sorted(set(labels[np.isfinite(values)].tolist())):
                at = np.flatnonzero((labels == label) & np.isfinite(values))
                for sign in (1, -1):
                    first = at[np.argsort(sign * values[at], kind="stable")[:each]].tolist()
                    by_label = found.setdefault((name, sign), {})
                    more = [(sign * float(values[row]), ids[row]) for row in first]
                    by_label[label] = sorted([*by_label.get(label, []), *more])[:each]

    def listed(name: str, sign: int) -> list[str]:
        return [id for _, id in sorted(itertools.chain.from_iterable(found[name, sign].values()))]

    return {name: (listed(name, 1), listed(name, -1)) for name in names if (name, 1) in found}


def cause(reasons: Sequence[str] | None) -> str:
    """What the first reason is about, without its numbers: the text before a colon, else the first word.

    >>> cause(["segmenter_dice 0.41 < 0.50"]), cause(["not selected: kid is lower without it"]), cause(None)
    ('segmenter_dice', 'not selected', '')
    """
    about, colon, _ = (reasons[0] if reasons else "").partition(": ")
    return about if colon else about.split(" ")[0]


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
