"""Rows of a version in one uncompressed file on this machine: any row at once, none of them held in memory."""

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.pictures import Chunk

_PLACE = "@"  # before the names of index columns, so that they collide with none


class Listing:
    """Rows by position, with where their pictures lie. Pickles as its path: the file is mapped anew.

    Args:
        path: a file that `write` made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} is gone: rows of a version can be read only while the Version that listed them exists"
            ) from error
        lengths = [self._file.get_batch(number).num_rows for number in range(self._file.num_record_batches)]
        self._ends: list[int] = np.cumsum(lengths).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return Listing, (self._path,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def take(self, positions: Sequence[int]) -> Chunk:
        """The rows at some positions, in the order given, as thin rows and places."""
        parts = [self._one(position) for position in positions]
        rows = pa.concat_batches(parts) if parts else self._file.schema.empty_table().to_batches()[0]
        thin = [name for name in rows.schema.names if not name.startswith(_PLACE)]
        places = [name for name in rows.schema.names if name.startswith(_PLACE)]
        return rows.select(thin), rows.select(places).rename_columns([name.removeprefix(_PLACE) for name in places])

    def find(self, id: str) -> int | None:
        """The position of a row, where it is there. Needs ascending ids."""
        number = bisect.bisect_left(range(len(self._ends)), True, key=lambda batch: self._last_id(batch) >= id)
        if number == len(self._ends):
            return None
        batch = self._file.get_batch(number)
        at = pc.call_function("index", [batch.column(f"{_PLACE}id")], pc.IndexOptions(pa.scalar(id))).as_py()
        return None if at < 0 else self._ends[number] - batch.num_rows + at

    def _one(self, position: int) -> pa.RecordBatch:
        if not 0 <= position < len(self):
            raise IndexError(f"there is no row {position}: there are {len(self)}")
        number = bisect.bisect_right(self._ends, position)
        batch = self._file.get_batch(number)
        return batch.slice(position - (self._ends[number] - batch.num_rows), 1)

    def _last_id(self, number: int) -> str:
        ids = self._file.get_batch(number).column(f"{_PLACE}id")
        return ids[len(ids) - 1].as_py()


def write(path: Path, chosen: Iterator[Chunk]) -> None:
    """List rows, batch by batch, in one file."""
    writer: pa.ipc.RecordBatchFileWriter | None = None
    with pa.OSFile(str(path), "wb") as sink:
        for rows, places in chosen:
            fields = [*rows.schema, *(field.with_name(_PLACE + field.name) for field in places.schema)]
            schema = pa.schema(fields)
            writer = writer or pa.ipc.new_file(sink, schema)
            if rows.num_rows:
                writer.write_batch(pa.RecordBatch.from_arrays([*rows.columns, *places.columns], schema=schema))
        if writer is not None:
            writer.close()
