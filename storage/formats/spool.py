"""Index rows on their way: kept on disk by split until the number of shards, and so their names, is known."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.formats.hashed import Threads
from storage.records import INDEX_SCHEMA

_SPOOLED = INDEX_SCHEMA.append(pa.field("shard", pa.int32()))
_ROWS = 10_000


class Spool:
    """The index rows of one split, in order."""

    def __init__(self, path: Path, threads: Threads) -> None:
        self._path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, _SPOOLED)
        threads.at_end(self.close)
        self._names: Sequence[str] = []

    def add(self, rows: pa.RecordBatch, shard: int) -> None:
        """Index rows that lie in a shard."""
        self._writer.write_batch(rows.append_column("shard", pa.array([shard] * rows.num_rows, pa.int32())))

    def finish(self, names: Sequence[str]) -> None:
        """Say what the shards are called, once all rows are there."""
        self._names = names
        self.close()

    def close(self) -> None:
        """Write no more."""
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()

    def read(self) -> Iterator[pa.RecordBatch]:
        """The rows with their file's name."""
        with pa.OSFile(str(self._path)) as source, pa.ipc.open_stream(source) as reader:
            names = pa.array(self._names, pa.string())
            for batch in reader:
                named = names.take(batch.column("shard"))
                yield batch.select(INDEX_SCHEMA.names).set_column(1, INDEX_SCHEMA.field("file"), named)


def join(metadata: Path, spools: Mapping[str, Spool]) -> Iterator[pa.RecordBatch]:
    """All rows in the order of a table that has the columns `id`, ascending, and `split`."""
    streams = {split: _Stream(spool) for split, spool in spools.items()}
    for batch in read_batches(metadata, ["split"], _ROWS):
        counts = Counter(batch.column("split").to_pylist())
        rows = [part for split, count in counts.items() for part in streams[split].take(count)]
        yield from pa.Table.from_batches(rows, INDEX_SCHEMA).sort_by("id").combine_chunks().to_batches()


def read_batches(path: Path, columns: Sequence[str] | None, rows: int) -> Iterator[pa.RecordBatch]:
    """A Parquet file on this machine in batches of at most `rows` rows, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        wanted = None if columns is None else list(columns)
        for group in range(file.num_row_groups):  # all at once would keep every one until the last is read
            yield from file.iter_batches(rows, row_groups=[group], columns=wanted)


class _Stream:
    """Rows of a spool, any number at a time."""

    def __init__(self, spool: Spool) -> None:
        self._batches = spool.read()
        self._rest: pa.RecordBatch | None = None

    def take(self, count: int) -> list[pa.RecordBatch]:
        """The next `count` rows."""
        taken: list[pa.RecordBatch] = []
        while count:
            batch = self._rest if self._rest is not None else next(self._batches)
            taken.append(batch.slice(0, count))
            count -= taken[-1].num_rows
            self._rest = batch.slice(taken[-1].num_rows) if taken[-1].num_rows < batch.num_rows else None
        return taken
