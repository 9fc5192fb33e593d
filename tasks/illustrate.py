"""Illustrate: choose what a report shows of a version, and fetch that much and no more."""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.formats.parquet import read_batches
from storage.images import decode_grey, decode_mask
from storage.records import Ref
from storage.store import Store
from tasks import report
from tasks.report.grid import Example
from tasks.report.summary import spread

Row = dict[str, Any]

_ROWS = 10_000
_SCANS = 64
_SHOWN = ("image", "mask")


class Watched:
    """Rows that pass by; those wanted are kept, pictures and all, in the order wanted."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self._found: dict[str, Row] = {}

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches as they are."""
        for batch in batches:
            for row in _rows_of(batch, self._wanted):
                self._found[row["id"]] = row
            yield batch

    @property
    def rows(self) -> list[Row]:
        """What was found."""
        return [self._found[id] for id in self._wanted]


def thin(folder: Path, name: str, columns: list[str] | None = None) -> Callable[[], Iterator[pa.RecordBatch]]:
    """The rows of "ledger.parquet" or another thin table in a folder, a few thousand in memory at a time."""

    def rows() -> Iterator[pa.RecordBatch]:
        yield from read_batches(folder / name, columns, _ROWS)

    return rows


def kept_examples(folder: Path) -> list[Row]:
    """The kept samples that a report shows, with image and mask, from the files of a version."""
    wanted = report.pick_kept(thin(folder, "metadata.parquet", ["id", "label", "verdict"]))
    rows = {row["id"]: row for row in _picked(thin(folder, "metadata.parquet"), wanted)}
    for place in _picked(thin(folder, "index.parquet"), wanted):
        with (folder / place["file"]).open("rb") as file:
            rows[place["id"]] |= {name: _picture(file, place, name) for name in _SHOWN}
    return [rows[id] for id in wanted]


@dataclass(frozen=True)
class RealExamples:
    """Lesion scans of held-out groups, so that no picture beside the synthetic ones was trained on.

    `by_label` are evenly spaced over each label, `first` the first in order of id.
    """

    by_label: list[Example]
    first: list[Example]


def real_examples(store: Store, scans: Ref, count: int) -> RealExamples:
    """Real scans to show; `count` of them are `first`."""
    held_out: list[tuple[str, str]] = []
    for batch in store.batches(scans.key, ["id", "label", "split", "verdict", "mask"], _SCANS):
        for row in batch.to_pylist():
            shown = row["verdict"] == "kept" and row["split"] != "train" and row["mask"] is not None
            if shown and decode_mask(row["mask"]["bytes"]).any():
                held_out.append((row["id"], row["label"]))
    held_out.sort()
    first = [id for id, _ in held_out[:count]]
    by_label = spread(lambda: [(label, id) for id, label in held_out], lambda labels: report.PER_LABEL)
    wanted = {*first, *by_label}
    rows = {row["id"]: row for batch in store.batches(scans.key, rows=_SCANS) for row in _rows_of(batch, wanted)}
    return RealExamples([example(rows[id]) for id in by_label], [example(rows[id]) for id in first])


def example(row: Row) -> Example:
    """Image, mask and label of a row with pictures."""
    mask = row["mask"]
    drawn = None if mask is None or mask["bytes"] is None else decode_mask(mask["bytes"])
    return decode_grey(row["image"]["bytes"]), drawn, row["label"]


def _picked(rows: Callable[[], Iterator[pa.RecordBatch]], wanted: Collection[str]) -> Iterator[Row]:
    for batch in rows():
        yield from _rows_of(batch, wanted)


def _rows_of(batch: pa.RecordBatch, wanted: Collection[str]) -> list[Row]:
    """The rows of a batch whose ids are wanted."""
    found: Any = pc.call_function(
        "is_in", [batch.column("id")], pc.SetLookupOptions(value_set=pa.array(list(wanted), pa.string()))
    )
    return batch.filter(found).to_pylist() if found.true_count else []


def _picture(file: io.BufferedReader, place: Row, name: str) -> Row | None:
    if place[f"{name}_at"] is None:
        return None
    file.seek(place[f"{name}_at"])
    return {"bytes": file.read(place[f"{name}_bytes"]), "path": None}
