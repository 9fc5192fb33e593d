"""Counts of a version's rows, taken in one pass over its thin tables: memory grows with sources, not with rows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from storage.records import SPLITS

DISTINCT = ("background_id", "mask_id", "levels_id", "group")
"""Columns whose different values are counted: each names a real scan or a patient, so they are few."""


@dataclass
class Spread:
    """One score of the kept samples of one label."""

    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    @property
    def mean(self) -> float | None:
        """None where no sample has it."""
        return self.total / self.count if self.count else None


@dataclass
class Tally:
    """What there is in a version.

    `samples` counts kept samples by split and label, `planned` all by label. `filled` says in how many kept rows a
    column holds something, `distinct` how many different values it holds. `backgrounds` counts kept samples by the kind
    of theirs; those that were drawn whole have none. `untouched` counts kept rows whose picture
    equals its background outside the declared region, of `compared` that say. `torn` lists groups that are in more
    than one split: there must be none.
    """

    kept: int = 0
    samples: dict[str, dict[str, int]] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    distinct: dict[str, int] = field(default_factory=dict)
    backgrounds: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[str, Spread]] = field(default_factory=dict)
    untouched: int = 0
    compared: int = 0
    torn: list[str] = field(default_factory=list)

    def by_label(self) -> dict[str, int]:
        """Kept samples of each label."""
        total: Counter[str] = Counter()
        for labels in self.samples.values():
            total.update(labels)
        return dict(sorted(total.items()))


def count(metadata: Iterable[pa.RecordBatch], ledger: Iterable[pa.RecordBatch], score_names: Sequence[str]) -> Tally:
    """Count kept samples (`metadata`) and all planned ones (`ledger`, of which `label` is read).

    Columns that the batches lack count as empty.
    """
    tally = Tally()
    samples: dict[str, Counter[str]] = defaultdict(Counter)
    backgrounds: Counter[str] = Counter()
    distinct: dict[str, set[str]] = {name: set() for name in DISTINCT}
    splits: dict[str, set[str]] = defaultdict(set)
    for batch in metadata:
        table = pa.Table.from_batches([batch])
        tally.kept += table.num_rows
        for name in table.column_names:
            column = table.column(name)
            tally.filled[name] = tally.filled.get(name, 0) + len(column) - column.null_count
        for row in _grouped(table, ["split", "label"]):
            samples[row["split"]][row["label"]] += row["count_all"]
        for row in _grouped(table, ["background_kind"]):
            if row["background_kind"] is not None:
                backgrounds[row["background_kind"]] += row["count_all"]
        for row in _grouped(table, ["group", "split"]):
            splits[row["group"]].add(row["split"])
        for name, seen in distinct.items():
            if name in table.column_names:
                seen.update(value for value in table.column(name).unique().to_pylist() if value is not None)
        for row in _grouped(table, ["outside_changed_px"]):
            if row["outside_changed_px"] is not None:
                tally.compared += row["count_all"]
                tally.untouched += row["count_all"] if row["outside_changed_px"] == 0 else 0
        _add_scores(tally, table, [name for name in score_names if name in table.column_names])
    planned: Counter[str] = Counter()
    for batch in ledger:
        for row in _grouped(pa.Table.from_batches([batch]), ["label"]):
            planned[row["label"]] += row["count_all"]
    tally.samples = {split: dict(sorted(samples[split].items())) for split in SPLITS if split in samples}
    tally.planned = dict(sorted(planned.items()))
    tally.backgrounds = dict(sorted(backgrounds.items()))
    tally.distinct = {name: len(seen) for name, seen in distinct.items()}
    tally.torn = sorted(group for group, seen in splits.items() if len(seen) > 1)
    return tally


def _grouped(table: pa.Table, names: list[str]) -> list[dict[str, Any]]:
    """How many rows hold each combination of values; none where a column is missing."""
    if not set(names) <= set(table.column_names):
        return []
    return table.group_by(names).aggregate([([], "count_all")]).to_pylist()


def _add_scores(tally: Tally, table: pa.Table, names: Sequence[str]) -> None:
    if not names:
        return
    asked = [(name, kind) for name in names for kind in ("sum", "count", "min", "max")]
    for row in table.group_by(["label"]).aggregate(asked).to_pylist():
        spreads = tally.scores.setdefault(row["label"], {})
        for name in names:
            spread = spreads.setdefault(name, Spread())
            if row[f"{name}_count"]:
                spread.count += row[f"{name}_count"]
                spread.total += row[f"{name}_sum"]
                spread.low = min(spread.low, row[f"{name}_min"])
                spread.high = max(spread.high, row[f"{name}_max"])
