"""Parquet as `datasets`, pandas and DuckDB like it: shards with pixels, and thin tables without.

- `data/<split>-00000-of-0000N.parquet`: kept samples with all their pictures; at most 500 MB a shard.
- `metadata.parquet`: kept samples without pixels, to filter by label or score before anything large travels.
- `ledger.parquet`: every planned sample without pixels, with its verdict and reasons.
- `index.parquet`: where each picture of each kept sample lies in its shard.

Rows ascend by id in all of them. Same rows, same bytes, however they were batched (with the same pyarrow, whose
version the files name). Everything is written in one pass that holds one row group of each split.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.formats import spans
from storage.formats.hashed import HashedTable, Threads
from storage.formats.spool import Spool, join, read_batches
from storage.records import IMAGE, INDEX_SCHEMA, SPLITS, Written

ROW_GROUP_BYTES = 32 * 2**20
"""What a reader who knows nothing of the index holds in memory, and fetches to see one image."""

ROW_GROUP_ROWS = 500
SHARD_BYTES = 480 * 10**6
"""Below the 500 MB that the Hugging Face hub's viewer expects of a file."""

SHARD_ROWS = 25_000
"""So that a footer, which readers fetch whole and the writer holds, stays small where pictures are small."""

THIN_ROWS = 1_000
"""Rows of a row group in the tables without pixels."""

_ROW_BYTES = 500  # what a row takes besides its pictures, generously
_LARGE = 2**14  # bytes of a row from which its pictures are not copied
_READ_ROWS = 64
_WAITING = 32  # batches: many small ones take far more memory than their rows
_VERDICTS = ("kept", "rejected", "failed")


def write(rows: Iterable[pa.RecordBatch], folder: Path) -> dict[str, Written]:
    """Write samples whose ids ascend.

    Args:
        rows: batches of one `records.sample_schema(…)`; `verdict` is kept, rejected or failed.
        folder: the files go there. Put it where the store can take files over without copying them
            (`Store.staging`).

    Returns:
        What was written, with its sha256, by its path in `folder`.

    Raises:
        ValueError: an id that is not above the one before it, an unknown split or verdict, or no rows at all.
        StoreFullError, StoreUnavailableError: the disk is full, or refuses.
    """
    batches = iter(rows)
    batch = next(batches, None)
    if batch is None:
        raise ValueError("no rows to write: a dataset needs at least one planned sample")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    schema = batch.schema
    thin = pa.schema([field for field in schema if field.type != IMAGE])
    with tempfile.TemporaryDirectory(prefix=".index-", dir=folder) as temporary, Threads() as threads:
        ledger = _Thin(folder / "ledger.parquet", thin, threads)
        metadata = _Thin(folder / "metadata.parquet", thin, threads)
        spools = {split: Spool(Path(temporary) / split, threads) for split in SPLITS}
        shards = {split: _Shards(folder, split, schema, spools[split], threads) for split in SPLITS}
        order = _Order()
        while batch is not None:
            if batch.num_rows:
                splits, kept = order.check(batch)
                plain = _copied(batch.select(thin.names), np.arange(batch.num_rows))
                ledger.add(plain)
                metadata.add(plain.filter(pa.array(kept)))
                sizes = _row_bytes(batch)
                for split in SPLITS:
                    shards[split].add(batch, plain, np.flatnonzero(kept & (splits == split)), sizes)
            batch = next(batches, None)
        written = {"ledger.parquet": ledger.finish(), "metadata.parquet": metadata.finish()}
        for split in SPLITS:
            written |= shards[split].finish()
        index = _Thin(folder / "index.parquet", INDEX_SCHEMA, threads)
        for part in join(folder / "metadata.parquet", spools):
            index.add(part)
        written["index.parquet"] = index.finish()
    return written


def shards_of(folder: Path) -> dict[str, list[Path]]:
    """The data files in a folder filled by `write`, by split; splits that hold nothing are left out."""
    found = {split: sorted((folder / "data").glob(f"{split}-*.parquet")) for split in SPLITS}
    return {split: paths for split, paths in found.items() if paths}


def read_rows(paths: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of data files one by one; a row group, and of it a few rows twice, are in memory."""
    for path in paths:
        for batch in read_batches(path, columns, _READ_ROWS):
            yield from batch.to_pylist()


def features(schema: pa.Schema) -> dict[str, Any]:
    """A schema as `datasets` describes it: PNG columns are Images, everything else plain values."""
    return {field.name: _feature(field.type) for field in schema}


class _Order:
    """Checks what decides where a row goes."""

    def __init__(self) -> None:
        self._last: str | None = None

    def check(self, batch: pa.RecordBatch) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
        """The split of each row, and whether it was kept."""
        ids, splits, verdicts = (batch.column(name).to_pylist() for name in ("id", "split", "verdict"))
        for name, split, verdict in zip(ids, splits, verdicts, strict=True):
            if split not in SPLITS or verdict not in _VERDICTS:
                raise ValueError(
                    f"row {name}: split {split!r}, verdict {verdict!r}; expected {', '.join(SPLITS)} and "
                    "kept, rejected or failed"
                )
            if self._last is not None and name <= self._last:
                raise ValueError(
                    f"the id {name!r} comes after {self._last!r}: give rows in ascending order of id, each id once"
                )
            self._last = name
        return np.array(splits), np.array(verdicts) == "kept"


class _Thin:
    """A table without pixels, in row groups of `THIN_ROWS`."""

    def __init__(self, path: Path, schema: pa.Schema, threads: Threads) -> None:
        self._schema = schema
        self._table = HashedTable(path, schema, threads)
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows over; they may share no memory with pictures."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if len(self._waiting) > _WAITING:
            self._waiting = pa.Table.from_batches(self._waiting, self._schema).combine_chunks().to_batches()
        while self._rows >= THIN_ROWS:
            rows = pa.Table.from_batches(self._waiting, self._schema)
            self._write(rows.slice(0, THIN_ROWS))
            self._waiting = rows.slice(THIN_ROWS).to_batches()
            self._rows -= THIN_ROWS

    def finish(self) -> Written:
        """Write what is left."""
        if self._rows:
            self._write(pa.Table.from_batches(self._waiting, self._schema))
        self._table.close()
        return self._table.written()

    def _write(self, rows: pa.Table) -> None:
        self._table.write(rows.combine_chunks())  # in one piece, or its pages would depend on the batches


class _Shards:
    """The data files of one split."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, spool: Spool, threads: Threads) -> None:
        self._spool = spool
        self._folder, self._split = folder, split
        self._schema = _with_features(schema)
        self._threads = threads
        self._group = _Group(schema)
        self._tables: list[HashedTable] = []
        self._begins_shard = True
        self._rows = self._bytes = 0  # of the shard at work

    def add(
        self, batch: pa.RecordBatch, plain: pa.RecordBatch, rows: NDArray[np.intp], sizes: NDArray[np.int64]
    ) -> None:
        """Take rows over.

        Args:
            batch: holds them with their pictures.
            plain: the same without, sharing no memory with `batch`.
            rows: which of them.
            sizes: bytes of each row of `batch`.
        """
        if not len(rows):
            return
        pictures, plain = batch.select(self._group.pictures), _copied(plain, rows)
        if 2 * int(sizes[rows].sum()) < int(sizes.sum()):
            # A few rows would keep all pictures of their batch in memory until their row group is full.
            pictures, rows, sizes = _copied(pictures, rows), np.arange(len(rows)), sizes[rows]
        begin = 0
        for index, row in enumerate(rows.tolist()):
            size = int(sizes[row])
            ends_shard = self._rows > 0 and (self._bytes + size > SHARD_BYTES or self._rows >= SHARD_ROWS)
            if ends_shard or self._group.is_full(size):
                self._group.add(pictures, rows[begin:index], plain.slice(begin, index - begin))
                begin = index
                if ends_shard:
                    self._end_shard()
                else:
                    self._end_group()
            self._group.count(size)
            self._bytes += size
            self._rows += 1
        self._group.add(pictures, rows[begin:], plain.slice(begin))

    def finish(self) -> dict[str, Written]:
        """Write what is left and give the files their names."""
        if self._rows:
            self._end_shard()
        self._threads.finder.wait()
        names = shard_names(self._split, len(self._tables))
        self._spool.finish(names)
        written = {name: table.written() for name, table in zip(names, self._tables, strict=True)}
        for name, table in zip(names, self._tables, strict=True):
            table.path.rename(self._folder / name)
        return written

    def _end_group(self) -> None:
        if self._begins_shard:
            path = self._folder / "data" / f".{self._split}-{len(self._tables):05d}"
            self._tables.append(HashedTable(path, self._schema, self._threads))
            self._begins_shard = False
        shard, table = len(self._tables) - 1, self._tables[-1]
        group = self._group.take().replace_schema_metadata(self._schema.metadata)
        start, end = table.write(group)
        self._threads.finder.do(lambda: self._spool.add(spans.find(table.path, start, end, group), shard))

    def _end_shard(self) -> None:
        self._end_group()
        self._tables[-1].close()
        self._begins_shard = True
        self._rows = self._bytes = 0


class _Group:
    """The rows of one row group on their way.

    Pages end after a chunk of memory or after a run of rows. So that the files do not depend on how the rows were
    batched, each large picture is a chunk of its own, which spares a copy, and all else is one chunk.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self.pictures = [field.name for field in schema if field.type == IMAGE]
        self._reset()

    def _reset(self) -> None:
        self._rows = self._bytes = 0
        self._pictures: list[tuple[pa.RecordBatch, NDArray[np.intp]]] = []
        self._plain: list[pa.RecordBatch] = []

    def is_full(self, size: int) -> bool:
        """Whether a row of that size needs a new group."""
        return self._rows > 0 and (self._bytes + size > ROW_GROUP_BYTES or self._rows >= ROW_GROUP_ROWS)

    def count(self, size: int) -> None:
        """Announce a row, which a later `add` brings."""
        self._rows += 1
        self._bytes += size

    def add(self, pictures: pa.RecordBatch, rows: NDArray[np.intp], plain: pa.RecordBatch) -> None:
        """Some rows of `pictures`, and all of `plain`."""
        if len(rows):
            self._pictures.append((pictures, rows))
            self._plain.append(plain)

    def take(self) -> pa.Table:
        """The rows; afterwards there are none."""
        plain = pa.Table.from_batches(self._plain).combine_chunks()
        columns = [
            self._chunked(field.name) if field.name in self.pictures else plain.column(field.name)
            for field in self._schema
        ]
        self._reset()
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _chunked(self, name: str) -> pa.ChunkedArray:
        if self._bytes < _LARGE * self._rows:
            copies = [pictures.column(name).take(pa.array(rows, pa.int64())) for pictures, rows in self._pictures]
            return pa.chunked_array([pa.concat_arrays(copies)])
        columns = [(pictures.column(name), rows.tolist()) for pictures, rows in self._pictures]
        return pa.chunked_array([column.slice(row, 1) for column, rows in columns for row in rows])


def shard_names(split: str, count: int) -> list[str]:
    """Names of all data files of a split.

    >>> shard_names("val", 2)
    ['data/val-00000-of-00002.parquet', 'data/val-00001-of-00002.parquet']
    """
    return [f"data/{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def _copied(batch: pa.RecordBatch, rows: NDArray[np.intp]) -> pa.RecordBatch:
    """Some rows in memory of their own."""
    return batch.take(pa.array(rows, pa.int64()))


def _with_features(schema: pa.Schema) -> pa.Schema:
    info = {"info": {"features": features(schema)}}
    return schema.with_metadata({"huggingface": json.dumps(info, sort_keys=True)})


def _row_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """About how many bytes each row takes in a data file."""
    total = np.full(batch.num_rows, _ROW_BYTES, np.int64)
    for field in batch.schema:
        if field.type == IMAGE:
            lengths: Any = pc.call_function("binary_length", [batch.column(field.name).flatten()[0]])
            total += lengths.fill_null(0).to_numpy(zero_copy_only=False)
    return total


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    names = {pa.float64(): "float64", pa.float32(): "float32"}  # pyarrow calls them double and float
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}
