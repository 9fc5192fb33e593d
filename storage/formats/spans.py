"""Where PNGs lie in a Parquet file, byte for byte, so that one can be fetched without its neighbours.

PNG columns are PLAIN encoded and uncompressed, so every PNG stands in the file as it is, behind its length as
four bytes, little-endian. Rather than trust that, the file is searched for each PNG, column by column in the
order in which Parquet writes them, and compared from the first byte to the last.
"""

import os
from pathlib import Path

import pyarrow as pa

from storage.images import png_digest
from storage.records import IMAGE, INDEX_SCHEMA, PIXEL_COLUMNS

_BEGINNING = 64  # bytes to search for; what is found is then compared whole
_WINDOW = 4096  # bytes to search at a time: between two values lies little


def find(path: Path, start: int, end: int, group: pa.Table) -> pa.RecordBatch:
    """The index rows of one row group; `file` is null.

    Args:
        path: the Parquet file, which may go on behind the row group or end there.
        start: where the row group begins.
        end: where it ends.
        group: the rows.

    Raises:
        RuntimeError: a PNG is not there as it is.
    """
    columns: dict[str, pa.Array] = {"id": group.column("id").combine_chunks()}
    with path.open("rb", buffering=0) as file:
        search = _Search(file.fileno(), start, end)
        for field in group.schema:
            if field.type == IMAGE and field.name in PIXEL_COLUMNS:
                columns |= _column(search, field.name, group.column(field.name))
    nothing = {field.name: pa.nulls(group.num_rows, field.type) for field in INDEX_SCHEMA}
    return pa.RecordBatch.from_arrays([(nothing | columns)[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)


def values(images: pa.StructArray) -> list[memoryview | None]:
    """The bytes of an `IMAGE` array, not copied; None where there is no picture."""
    encoded = images.flatten()[0]
    _, offsets, data = encoded.buffers()
    if len(encoded) == 0 or offsets is None:
        return []
    ends = memoryview(offsets).cast("i")[encoded.offset : encoded.offset + len(encoded) + 1].tolist()
    content = memoryview(b"" if data is None else data)
    present = encoded.is_valid().to_pylist()
    return [content[ends[i] : ends[i + 1]] if present[i] else None for i in range(len(encoded))]


def _column(search: "_Search", name: str, column: pa.ChunkedArray) -> dict[str, pa.Array]:
    found: list[tuple[int | None, int | None, bytes | None]] = []
    for chunk in column.chunks:
        found += [(None, None, None) if png is None else search.next(png) for png in values(chunk)]
    parts = zip(("at", "bytes", "blake3"), zip(*found, strict=True), strict=True)
    return {f"{name}_{part}": pa.array(cells, INDEX_SCHEMA.field(f"{name}_{part}").type) for part, cells in parts}


class _Search:
    """Finds values in the order in which they were written.

    Taking the first place that fits is right even where a header happens to read like a value: the bytes there
    are those wanted, and what follows lies behind the value's true place, which is never before the one found.
    """

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._file, self._at, self._end = descriptor, start, end
        self._window, self._window_at = b"", start
        self._read = bytearray()  # one for all: fresh memory costs more than reading into it

    def next(self, value: memoryview) -> tuple[int, int, bytes]:
        """Where the next value lies in the file, its length and digest."""
        length = len(value)
        beginning = length.to_bytes(4, "little") + bytes(value[:_BEGINNING])
        at = self._at
        while at + len(beginning) <= self._end:
            if at + len(beginning) > self._window_at + len(self._window):
                self._window, self._window_at = os.pread(self._file, min(_WINDOW, self._end - at), at), at
            place = self._window.find(beginning, at - self._window_at)
            if place < 0:
                at = max(at, self._window_at + len(self._window) - len(beginning)) + 1
                continue
            at = self._window_at + place
            if at + 4 + length <= self._end and self._lies_at(value, at + 4):
                self._at = at + 4 + length
                return at + 4, length, png_digest(value)
            at += 1
        raise RuntimeError(
            f"a PNG of {length} bytes is not in the file as it is: pyarrow {pa.__version__} does not write "
            "`records.parquet_options` as this needs it; use the version that uv.lock names"
        )

    def _lies_at(self, value: memoryview, at: int) -> bool:
        """Whether exactly this lies there."""
        if at + len(value) <= self._window_at + len(self._window):
            return self._window.startswith(value, at - self._window_at)
        if len(self._read) < len(value):
            self._read = bytearray(len(value))
        with memoryview(self._read)[: len(value)] as room:
            return os.preadv(self._file, [room], at) == len(value) and self._read.startswith(value)
