"""Parquet as `datasets`, pandas and DuckDB like it: shards with pixels, and thin tables without.

- `data/<split>-00000-of-0000N.parquet`: kept samples with image, mask and region; at most 500 MB a shard.
- `metadata.parquet`: kept samples without pixels, to filter by label or score before anything large travels.
- `ledger.parquet`: every planned sample without pixels, with its verdict and reasons.

Rows are sorted by id. Same rows, same bytes (with the same pyarrow, whose version the file names).
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.records import IMAGE, SPLITS, parquet_options

ROW_GROUP_BYTES = 32 * 2**20
"""A reader holds one row group in memory, and fetches it whole to see one image."""

ROW_GROUP_ROWS = 1000
SHARD_BYTES = 480 * 10**6
"""Below the 500 MB that the Hugging Face hub's viewer expects of a file."""


def write(rows: Iterable[pa.RecordBatch], folder: Path) -> dict[str, int]:
    """Write samples, in any order, holding one row group in memory.

    Args:
        rows: batches of one `records.sample_schema(…)`; ids are unique, `verdict` kept, rejected or failed.
        folder: the files go there; it needs room for the rows twice while this runs.

    Returns:
        Rows of each file written, by its path in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder) as temporary:
        spool = Path(temporary) / "rows.arrow"
        schema = _spool(rows, spool)
        with pa.memory_map(str(spool)) as mapped:
            batches = _Batches(pa.ipc.open_file(mapped))
            order = batches.order()
            written = {"ledger.parquet": _thin(batches, schema, order, folder / "ledger.parquet")}
            kept = [place for place in order if place.verdict == "kept"]
            written["metadata.parquet"] = _thin(batches, schema, kept, folder / "metadata.parquet")
            for split in SPLITS:
                chosen = [place for place in kept if place.split == split]
                written |= _shards(batches, schema, chosen, folder, split)
    return written


def features(schema: pa.Schema) -> dict[str, Any]:
    """A schema as `datasets` describes it: PNG columns are Images, everything else plain values."""
    return {field.name: _feature(field.type) for field in schema}


class _Place:
    """Where one row lies in the spool, and what decides its file."""

    __slots__ = ("batch", "id", "row", "size", "split", "verdict")

    def __init__(self, id: str, split: str, verdict: str, batch: int, row: int, size: int) -> None:
        self.id, self.split, self.verdict = id, split, verdict
        self.batch, self.row, self.size = batch, row, size


class _Batches:
    """The spooled rows, memory-mapped: the operating system keeps what fits."""

    def __init__(self, file: pa.ipc.RecordBatchFileReader) -> None:
        self._file = file

    def order(self) -> list[_Place]:
        """All rows by id."""
        places: list[_Place] = []
        for index in range(self._file.num_record_batches):
            batch = self._file.get_batch(index)
            columns = [batch.column(name).to_pylist() for name in ("id", "split", "verdict")]
            sizes = _row_bytes(batch)
            for row, (name, split, verdict) in enumerate(zip(*columns, strict=True)):
                if split not in SPLITS or verdict not in ("kept", "rejected", "failed"):
                    raise ValueError(
                        f"row {name}: split {split!r}, verdict {verdict!r}; expected {', '.join(SPLITS)} and "
                        "kept, rejected or failed"
                    )
                places.append(_Place(name, split, verdict, index, row, sizes[row]))
        places.sort(key=lambda place: place.id)
        for one, two in pairwise(places):
            if one.id == two.id:
                raise ValueError(f"the id {one.id!r} occurs twice: every sample needs its own")
        return places

    def take(self, places: list[_Place], schema: pa.Schema) -> pa.Table:
        """Rows in the order given, with the columns of `schema`; neighbours are taken together."""
        pieces: list[pa.RecordBatch] = []
        start = 0
        for stop in range(1, len(places) + 1):
            before = places[stop - 1]
            if stop < len(places) and places[stop].batch == before.batch and places[stop].row == before.row + 1:
                continue
            batch = self._file.get_batch(before.batch).select(schema.names)
            pieces.append(batch.slice(places[start].row, stop - start))
            start = stop
        bare = schema.remove_metadata()
        return pa.Table.from_batches(pieces, bare).combine_chunks().replace_schema_metadata(schema.metadata)


def _spool(rows: Iterable[pa.RecordBatch], path: Path) -> pa.Schema:
    """Write batches to one uncompressed file as they come; their schema."""
    batches = iter(rows)
    first = next(batches, None)
    if first is None:
        raise ValueError("no rows to write: a dataset needs at least one planned sample")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    return first.schema


def _thin(batches: _Batches, schema: pa.Schema, places: list[_Place], path: Path) -> int:
    thin = pa.schema([field for field in schema if field.type != IMAGE])
    with _writer(path, thin) as writer:
        for start in range(0, len(places), 10_000):
            writer.write_table(batches.take(places[start : start + 10_000], thin))
    return len(places)


def _shards(batches: _Batches, schema: pa.Schema, places: list[_Place], folder: Path, split: str) -> dict[str, int]:
    shards = list(_cut(places, SHARD_BYTES, len(places) + 1))
    marked = _with_features(schema)
    written: dict[str, int] = {}
    for index, shard in enumerate(shards):
        path = f"data/{split}-{index:05d}-of-{len(shards):05d}.parquet"
        (folder / "data").mkdir(exist_ok=True)
        with _writer(folder / path, marked) as writer:
            for group in _cut(shard, ROW_GROUP_BYTES, ROW_GROUP_ROWS):
                writer.write_table(batches.take(group, marked))
        written[path] = len(shard)
    return written


def _cut(places: list[_Place], most_bytes: int, most_rows: int) -> Iterator[list[_Place]]:
    """Consecutive runs of rows within both limits; a row that is too large alone makes a run of its own."""
    run: list[_Place] = []
    size = 0
    for place in places:
        if run and (size + place.size > most_bytes or len(run) >= most_rows):
            yield run
            run, size = [], 0
        run.append(place)
        size += place.size
    if run:
        yield run


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, **parquet_options(schema))


def _with_features(schema: pa.Schema) -> pa.Schema:
    info = {"info": {"features": features(schema)}}
    return schema.with_metadata({"huggingface": json.dumps(info, sort_keys=True)})


def _row_bytes(batch: pa.RecordBatch) -> list[int]:
    """Bytes of pixels in each row."""
    total = [0] * batch.num_rows
    for field in batch.schema:
        if field.type == IMAGE:
            lengths = pc.call_function("binary_length", [batch.column(field.name).flatten()[0]]).to_pylist()
            total = [so_far + (length or 0) for so_far, length in zip(total, lengths, strict=True)]
    return total


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    names = {pa.float64(): "float64", pa.float32(): "float32"}  # pyarrow calls them double and float
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}
