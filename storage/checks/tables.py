"""Thin tables row by row: in order, each name once, the same rows in every table that lists them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import keys
from storage.checks.problems import Problems
from storage.parquet_limits import check_limits
from storage.records import LINEAGE_FIELDS

BATCH = 4096

Keep = Callable[[pa.RecordBatch], pa.RecordBatch]


class Rows:
    """The rows of a Parquet file, to be taken some at a time; pages' checksums are verified.

    Args:
        path: the file.
        columns: those wanted; all where None.
        keep: what to leave of a batch.
    """

    def __init__(self, path: Path, columns: list[str] | None = None, keep: Keep | None = None) -> None:
        self._batches = batches(path, BATCH, columns)
        self._keep = keep
        self._waiting: pa.Table | None = None

    def take(self, count: int) -> pa.Table | None:
        """The next `count` rows, fewer at the end, None behind it."""
        while self._waiting is None or self._waiting.num_rows < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            kept = batch if self._keep is None else self._keep(batch)
            more = pa.Table.from_batches([kept])
            self._waiting = more if self._waiting is None else pa.concat_tables([self._waiting, more])
        if self._waiting is None:
            return None
        taken, rest = self._waiting.slice(0, count), self._waiting.slice(count)
        self._waiting = rest if rest.num_rows else None
        return taken if taken.num_rows else None

    def skip(self, count: int) -> None:
        """Pass over `count` rows."""
        while count > 0 and (taken := self.take(min(count, BATCH))) is not None:
            count -= taken.num_rows


def batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A Parquet file in batches, one row group open at a time.

    Raises:
        ValueError: the file is none, or would take more memory than its kind ever does.
    """
    check_limits(path)
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


def misses(path: Path, expected: pa.Schema, *, exactly: bool = False) -> str:
    """What a Parquet file's columns lack of the schema `expected`, as a sentence; "" where they lack nothing.

    Columns of lineage and measurements of masks may be missing unless `exactly` is asked for: older versions have fewer
    of them.
    """
    check_limits(path)
    found = pq.read_schema(path)
    names = set(found.names)
    if len(names) < len(found.names):
        return "columns differ: one stands there twice"
    optional = set() if exactly else {"head_circumference_mm", *(name for name, _ in LINEAGE_FIELDS)} - names
    wrong = [
        f"{field.name} {found.field(field.name).type if field.name in names else 'missing'}, expected {field.type}"
        for field in expected
        if field.name not in optional and (field.name not in names or found.field(field.name).type != field.type)
    ]
    if exactly and not wrong and found.names != expected.names:
        wrong = [f"columns {', '.join(found.names[:50])}; expected {', '.join(expected.names)}"]
    return f"columns differ: {'; '.join(wrong)}" if wrong else ""


class Ascending:
    """That ids are names of rows, ascend and so occur once."""

    def __init__(self, where: str, problems: Problems) -> None:
        self._where, self._problems = where, problems
        self._last = ""

    def check(self, ids: pa.Array) -> None:
        """The next ids."""
        for value in ids.to_pylist():
            if value is None:
                self._problems.add(self._where, "a row has no id: None cannot name a row")
            elif not keys.is_row_id(value):
                self._problems.add(self._where, f"{str(value)[:60]!r} cannot name a row")
            elif value == self._last:
                self._problems.add(self._where, f"the id {value!r} occurs twice")
            elif value < self._last:
                self._problems.add(
                    self._where, f"the id {value!r} stands behind {self._last[:60]!r}: ids do not ascend"
                )
            self._last = value or ""


def different(one: pa.Table | None, two: pa.Table | None) -> list[tuple[str, str]]:
    """Rows that differ between two slices which should be equal, as (id, what differs); "" of one that is missing."""
    if one is not None and two is not None and one.equals(two):
        return []
    left: list[dict[str, Any]] = [] if one is None else one.to_pylist()
    right: list[dict[str, Any]] = [] if two is None else two.to_pylist()
    found: list[tuple[str, str]] = []
    for a, b in zip(left, right, strict=False):
        if a["id"] != b["id"]:
            return [*found, (str(a["id"]), f"stands where {b['id']} is expected")]
        columns = [name for name in a if name not in b or repr(a[name]) != repr(b[name])]  # repr: NaN equals NaN
        if columns:
            found.append((str(a["id"]), f"differs in {', '.join(columns)}"))
    for row in left[len(right) :] or right[len(left) :]:
        found.append((str(row["id"]), "is in only one of them"))
    return found


def pairs(batch: pa.RecordBatch | pa.Table, *columns: str) -> set[tuple[Any, ...]]:
    """The different combinations of values in some columns, those with a null left out."""
    rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    return {row for row in rows if None not in row}


def equals(column: str, value: str) -> Keep:
    """Keeps the rows that hold this value."""
    return lambda batch: batch.filter(pc.call_function("equal", [batch.column(column), pa.scalar(value)]))


def begins(column: str, text: str) -> Keep:
    """Keeps the rows whose value begins with this text."""
    options = pc.MatchSubstringOptions(text)
    return lambda batch: batch.filter(pc.call_function("starts_with", [batch.column(column)], options))
