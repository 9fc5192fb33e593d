"""Make the part of a version that was asked for, in the layout of the whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import CorruptFileError, SelectionError
from storage.formats.parquet import THIN_ROWS
from storage.landing import in_parallel
from storage.pictures import Chunk, Pictures, chunks, sizes, with_pictures
from storage.records import PIXEL_COLUMNS, Manifest, Written, parquet_options
from storage.selecting import Selection, select, select_places
from storage.store import Store

METADATA, LEDGER, INDEX, SOURCES = "metadata.parquet", "ledger.parquet", "index.parquet", "sources.parquet"

_PARALLEL = 3  # chunks of pictures at once, each of at most 16 MiB


def narrow(tables: Path, folder: Path, split: str) -> dict[str, Written]:
    """Write the thin tables in `tables` anew into `folder`, with the rows of one split; what was written."""
    written: dict[str, Written] = {}
    for name in (METADATA, LEDGER):
        if (tables / name).exists():
            written[name] = write_table(select(tables / name, split=split), tables / name, folder / name)
    if (tables / INDEX).exists():
        places = (places for _, places in select_places(tables / METADATA, tables / INDEX, split=split))
        written[INDEX] = write_table(places, tables / INDEX, folder / INDEX)
    return written


def write_table(batches: Iterator[pa.RecordBatch], like: Path, path: Path) -> Written:
    """Write batches to one file with the schema of another, in row groups of an even size."""
    schema, rows = pq.read_schema(like), 0
    with pq.ParquetWriter(path, schema, **parquet_options(schema)) as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            if sum(each.num_rows for each in waiting) >= THIN_ROWS:
                writer.write_table(pa.Table.from_batches(waiting).cast(schema))
                waiting = []
        if any(batch.num_rows for batch in waiting):
            writer.write_table(pa.Table.from_batches(waiting).cast(schema))
    return Written(rows=rows)


class Rows:
    """The rows that meet a condition, with their pictures: fetched into files of 16 MiB that outlive a crash.

    Args:
        store: where the version is.
        manifest: the version.
        selection: with a condition.
        tables: a folder with the version's `metadata.parquet` and `index.parquet`.
        work: where the files go; those that are there and right are used.

    Raises:
        SelectionError: no row meets the condition.
    """

    def __init__(self, store: Store, manifest: Manifest, selection: Selection, tables: Path, work: Path) -> None:
        self._pictures = Pictures(store, manifest)
        self._selection, self._tables = selection, tables
        self._folder = work / "pictures"
        self._folder.mkdir(exist_ok=True)
        self.bytes_missing = 0
        """Of pictures that are not there yet."""
        self._count = 0
        for number, (rows, places) in enumerate(self._chunks()):
            self._count = number + 1
            if not self._is_there(number, rows, places):
                self._path(number).unlink(missing_ok=True)
                self.bytes_missing += sum(sizes(places))
        if self._count == 0:
            raise SelectionError(
                f"no row of {manifest.dataset}@{manifest.version} ({manifest.kept} rows) meets {selection}"
            )

    def fetch(self, advance: Callable[[int], None], stop: Callable[[], None]) -> None:
        """Bring the pictures that are missing."""

        def bring(numbered: tuple[int, Chunk]) -> None:
            number, (rows, places) = numbered
            found = self._pictures.fetch(places, PIXEL_COLUMNS)
            advance(sum(sizes(places)))
            batch = with_pictures(rows, found)
            temporary = self._path(number).with_suffix(".part")
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            temporary.replace(self._path(number))

        missing = (pair for pair in enumerate(self._chunks()) if not self._path(pair[0]).exists())
        for _ in in_parallel(bring, missing, _PARALLEL, stop):
            pass

    def write(self, folder: Path) -> dict[str, Written]:
        """The rows as a version would hold them: data, metadata, index; what was written."""
        from storage.formats import parquet

        try:
            written = parquet.write(self._read(), folder)
        except ValueError as error:
            raise CorruptFileError(f"the rows are none that sonoforge publishes: {error}") from error
        (folder / LEDGER).unlink()  # it would say that nothing else was ever planned
        return {path: said for path, said in written.items() if path != LEDGER}

    def _chunks(self) -> Iterator[Chunk]:
        where, split = self._selection.where, self._selection.split
        return chunks(select_places(self._tables / METADATA, self._tables / INDEX, where, split))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.arrow"

    def _is_there(self, number: int, rows: pa.RecordBatch, places: pa.RecordBatch) -> bool:
        """Whether an earlier run left this chunk, whole: its name says that it was verified when it was written."""
        try:
            (batch,) = _batches(self._path(number))
        except (OSError, pa.ArrowException, ValueError):
            return False
        return self._pictures.agree(batch, places) and batch.select(rows.schema.names).equals(rows)

    def _read(self) -> Iterator[pa.RecordBatch]:
        for number in range(self._count):
            yield from _batches(self._path(number))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        yield from reader
