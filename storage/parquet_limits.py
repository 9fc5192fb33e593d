"""Parquet from strangers: a few kilobytes may unpack to gigabytes, so the pages are looked at before they are read.

A page says in its header how large it is unpacked, how many values it holds and how they are encoded, and a reader
believes it. So the headers of all pages are read first, which costs a seek a page. They are Thrift structures in the
compact protocol.

Format: https://github.com/apache/parquet-format, `PageHeader` in parquet.thrift.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from storage.records import INDEX_SCHEMA, SOURCE_SCHEMA, sample_schema

PAGE_BYTES = 128 * 2**20
"""Of one page unpacked; writers end a page soon after 1 MiB, so only a single huge picture makes it larger."""

DICTIONARY_BYTES = 2**16
"""Of one dictionary; every row of a batch may hold its longest value."""

GROUP_BYTES = 512 * 2**20
"""Of one row group unpacked; ours are of 32 MiB."""

GROUP_ROWS = 2**20
"""Of one row group."""

LIST_VALUES = 32
"""Values a row on average, in a column of lists."""

_TYPES = {field.name: field.type for schema in (sample_schema([]), SOURCE_SCHEMA, INDEX_SCHEMA) for field in schema}
_HEADER_BYTES = 2**14
_FOOTER_BYTES = 64 * 2**20
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7  # each string may repeat all of the one before
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 0, 1, 2, 3, 7, 8, 12
_INTEGERS = (4, 5, 6)


def check_limits(path: Path) -> None:
    """Refuse a Parquet file that would take more memory than a version's files do.

    Raises:
        ValueError: it is no Parquet file, or too large; the message says what is.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            file.seek(max(0, size - 8))
            footer_bytes(file.read(8), size)
            file.seek(0)
            metadata = pq.read_metadata(file)
            if metadata.num_rows > 8 * size:
                raise ValueError(f"says that it holds {metadata.num_rows} rows, in {size} bytes")
            for number in range(metadata.num_row_groups):
                check_group(file, metadata.row_group(number), number, size)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise ValueError(f"is no readable Parquet file: {str(error).splitlines()[0]}") from error


def check_columns(path: Path, schema: pa.Schema) -> None:
    """Refuse a table of a version that lacks what every such table has, or has it in another type.

    Args:
        path: tells by its name and folder which table it is.
        schema: its own.

    Raises:
        ValueError: a column is missing, or of another type.
    """
    needed = {"id"}
    if path.parent.name == "data" or path.name in ("metadata.parquet", "ledger.parquet"):
        needed |= {"label", "split", "verdict"}
    if path.parent.name == "data":
        needed.add("image")
    missing = sorted(needed - set(schema.names))
    if missing:
        raise ValueError(f"has no column {', '.join(missing)}")
    for field in schema:
        if field.type != _TYPES.get(field.name, field.type):
            raise ValueError(f"has a column {field.name} of {field.type}, expected {_TYPES[field.name]}")


class _Page(NamedTuple):
    """What a page's header says; `length` is its own."""

    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int
    length: int


def footer_bytes(tail: bytes, size: int) -> int:
    """Length of the footer of a file of `size` bytes that ends in `tail`, eight bytes or more; ValueError as above."""
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or length + 8 > size:
        raise ValueError("is no readable Parquet file: it does not end in a footer")
    if length > _FOOTER_BYTES:
        raise ValueError(f"its footer has {length} bytes, more than the {_FOOTER_BYTES} that are read")
    return length + 8


def check_group(file: BinaryIO, group: pq.RowGroupMetaData, number: int, size: int) -> None:
    """Check one row group of a file of `size` bytes; ValueError as above."""
    rows = group.num_rows
    if not 0 <= rows <= GROUP_ROWS:
        raise ValueError(f"row group {number} has {rows} rows: at most {GROUP_ROWS} are read")
    total = 0
    for index in range(group.num_columns):
        column = group.column(index)
        start, stop = column.data_page_offset, column.total_compressed_size
        if column.dictionary_page_offset is not None:
            start = min(start, column.dictionary_page_offset)
        stop += start
        if start < 0 or not start <= stop <= size:
            raise ValueError(f"column {column.path_in_schema} of row group {number} lies outside the file")
        values = 0
        # Of a group without rows pyarrow reads no page, and says no true offset where one was to be of a dictionary.
        for page in _pages(file, start, stop) if rows else ():
            total += page.unpacked
            values += page.values if page.kind != _DICTIONARY_PAGE else 0
            excess = _excess(page, total, values, rows)
            if excess:
                raise ValueError(f"column {column.path_in_schema} of row group {number} {excess}")


def _excess(page: _Page, total: int, values: int, rows: int) -> str:
    """What is too much of a page, or of all before it and itself; "" where nothing is."""
    if page.unpacked > PAGE_BYTES or total > GROUP_BYTES:
        found = max(page.unpacked, total)
        return f"unpacks to {found} bytes: at most {PAGE_BYTES} a page and {GROUP_BYTES} a row group are read"
    if page.kind == _DICTIONARY_PAGE and page.unpacked > DICTIONARY_BYTES:
        return f"has a dictionary of {page.unpacked} bytes: at most {DICTIONARY_BYTES} are read"
    if values > LIST_VALUES * rows + 1000:
        return f"has {values} values for {rows} rows: at most {LIST_VALUES} a row are read"
    if page.encoding == _DELTA_BYTE_ARRAY:
        return "is encoded as DELTA_BYTE_ARRAY, which unpacks to any size: write it as PLAIN"
    return ""


def _pages(file: BinaryIO, start: int, stop: int) -> Iterator[_Page]:
    """The pages in a span of the file."""
    while start < stop:
        file.seek(start)
        page = _Header(file.read(min(_HEADER_BYTES, stop - start))).read()
        if min(page.packed, page.unpacked, page.values) < 0:
            raise ValueError("is no readable Parquet file: a page of negative size")
        yield page
        start += page.length + page.packed


class _Header:
    """The bytes of a page's header, taken one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._numbers: dict[tuple[int, ...], int] = {}  # by field, or by field and field within it

    def read(self) -> _Page:
        """The header, from its first byte to its last."""
        try:
            self._struct(())
        except IndexError:
            raise ValueError("is no readable Parquet file: a page's header does not end") from None
        kind, unpacked, packed = (self._numbers.get((field,), -1) for field in (1, 2, 3))
        # 5: data page, 7: dictionary page, 8: data page of version 2; the number of values is the first in each.
        values = max(self._numbers.get((field, 1), 0) for field in (5, 7, 8))
        encoding = max(self._numbers.get((5, 2), 0), self._numbers.get((8, 4), 0))
        return _Page(kind, unpacked, packed, values, encoding, self._at)

    def _struct(self, within: tuple[int, ...]) -> None:
        if len(within) > 3:
            raise ValueError("is no readable Parquet file: a page's header goes too deep")
        field = 0
        while (kind := (byte := self._byte()) & 15) != _STOP:
            field = field + (byte >> 4) if byte >> 4 else self._number()
            if kind in _INTEGERS:
                self._numbers[*within, field] = self._number()
            elif kind == _STRUCT:
                self._struct((*within, field))
            elif kind in (_BYTE, _DOUBLE, _BINARY):
                length = {_BYTE: 1, _DOUBLE: 8}[kind] if kind != _BINARY else self._varint()
                self._at += length  # not in one step: reading the length moves it too
            elif kind not in (_TRUE, _FALSE):
                raise ValueError(f"is no readable Parquet file: a page's header holds type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("is no readable Parquet file: a page's header holds an endless number")
        return value | byte << shift

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
