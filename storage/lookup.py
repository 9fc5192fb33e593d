"""Single rows of a large thin table by id: the footer and one row group travel, not the table.

Ids ascend, so the statistics of the row groups say which one can hold an id. What travels is too little to be checked
against the file's sha256; the pages' own checksums are verified instead.
"""

import difflib
from bisect import bisect_left
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import CorruptFileError, StorageError
from storage.parquet_limits import GROUP_BYTES, check_group, footer_bytes
from storage.records import ManifestFile
from storage.store import Store, scratch

_TAIL = 2**17  # bytes that hold the footer of most tables
_NEAR = 3


class Lookup:
    """A table of a version on its way here, as far as it is needed; see `lookup`."""

    def __init__(self, store: Store, file: ManifestFile, local: Path) -> None:
        self._store, self._file, self._local = store, file, local
        size = file.bytes
        with local.open("wb") as sparse:
            sparse.truncate(size)
        tail = self._copy(max(0, size - _TAIL), size)
        length = footer_bytes(tail, size)
        if length > len(tail):
            self._copy(size - length, size - len(tail))
        self._metadata = pq.read_metadata(local)
        self._names = [self._metadata.schema.column(i).path for i in range(self._metadata.num_columns)]
        self._here: set[int] = set()

    def find(self, id: str) -> dict[str, Any] | None:
        """The row of this id, None where there is none."""
        for group in self._candidates(id):
            table = self._group(group)
            places = pc.call_function("equal", [table.column("id"), pa.scalar(id)])
            found = table.filter(places).to_pylist()
            if found:
                return found[0]
        return None

    def near(self, id: str) -> list[str]:
        """Some ids like this one, or those that stand where it would."""
        bounds = [self._bounds(group) for group in range(self._metadata.num_row_groups)]
        known = [text for pair in bounds if pair is not None for text in pair]
        place = bisect_left(known, id)
        beside = known[max(0, place - 1) : place + 1]
        for group in self._candidates(id) or ([0] if bounds else []):
            ids = [text for text in self._group(group, ["id"]).column("id").to_pylist() if text is not None]
            place = bisect_left(ids, id)
            beside = [*difflib.get_close_matches(id, ids, _NEAR), *ids[max(0, place - 1) : place + 1], *beside]
        return list(dict.fromkeys(beside))[: 2 * _NEAR]

    def _candidates(self, id: str) -> list[int]:
        found: list[int] = []
        for group in range(self._metadata.num_row_groups):
            bounds = self._bounds(group)
            if bounds is None or bounds[0] <= id <= bounds[1]:
                found.append(group)
        if len(found) > 2:
            raise ValueError("its ids do not ascend")
        return found

    def _bounds(self, group: int) -> tuple[str, str] | None:
        statistics: Any = self._metadata.row_group(group).column(self._names.index("id")).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        return str(statistics.min), str(statistics.max)

    def _group(self, number: int, columns: list[str] | None = None) -> pa.Table:
        group = self._metadata.row_group(number)
        if number not in self._here:
            parts = [group.column(i) for i in range(group.num_columns)]
            starts = [
                min(part.data_page_offset, part.dictionary_page_offset or part.data_page_offset) for part in parts
            ]
            stop = max(start + part.total_compressed_size for start, part in zip(starts, parts, strict=True))
            if min(starts) < 0 or stop > self._file.bytes or stop - min(starts) > GROUP_BYTES:
                raise ValueError(f"row group {number} lies outside the file")
            self._copy(min(starts), stop)
            with self._local.open("rb") as file:
                check_group(file, group, number, self._file.bytes)
            self._here.add(number)
        with pq.ParquetFile(self._local, page_checksum_verification=True, pre_buffer=False) as file:
            return file.read_row_group(number, columns=columns, use_threads=False)

    def _copy(self, start: int, stop: int) -> bytes:
        data = b"".join(self._store.ranges(self._file.key, [(start, stop - start)]))
        with self._local.open("r+b") as file:
            file.seek(start)
            file.write(data)
        return data


@contextmanager
def lookup(store: Store, files: Iterable[ManifestFile], path: str, name: str) -> Generator[Lookup | None]:
    """Open a table for single rows; None where the version has no such file.

    Args:
        store: where it is.
        files: those of the version.
        path: of the table: "ledger.parquet".
        name: of the version, for errors: "demo@3".

    Raises:
        CorruptFileError: it cannot be read, now or while the block runs.
    """
    file = next((file for file in files if file.path == path), None)
    if file is None:
        yield None
        return
    with scratch() as temporary:
        try:
            yield Lookup(store, file, Path(temporary) / "table.parquet")
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path} of {name} is gone from the store ({store.uri(file.key)})") from error
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptFileError(
                f"{path} of {name} cannot be read ({reason}): `sonoforge verify --deep` says more"
            ) from error
