"""Merge: planned samples with their scores and verdicts, in step, a few rows of each in memory."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from storage.errors import CorruptFileError
from storage.records import Ref
from storage.store import Store

_VERDICT_ROWS = 10_000


def merged(
    store: Store, shards: Sequence[Ref], verdicts: Ref, schema: pa.Schema, constants: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """All planned samples as rows of `schema`, in order of id; pictures are not copied.

    Args:
        store: where the tables are.
        shards: of samples; their ids ascend from each to the next.
        verdicts: a row a sample, in the same order: id, scores, verdict, reasons.
        schema: of the rows.
        constants: columns that hold the same text everywhere.

    Raises:
        CorruptFileError: the verdicts are not those of the shards.
    """
    decided = _Verdicts(store, verdicts)
    for shard in shards:
        for batch in store.batches(shard.key):
            rows = decided.take(batch.num_rows)
            if not rows.column("id").equals(batch.column("id")):
                raise CorruptFileError(f"{store.uri(verdicts.key)} is not about the samples of {store.uri(shard.key)}")
            yield pa.RecordBatch.from_arrays(
                [_column(field, rows, batch, constants) for field in schema], schema=schema
            )
    decided.check_end()


def verdicts_of(store: Store, verdicts: Ref) -> Iterator[pa.RecordBatch]:
    """Id, verdict and reasons of every planned sample, in order of id."""
    yield from store.batches(verdicts.key, ["id", "verdict", "reasons"], _VERDICT_ROWS)


class _Verdicts:
    """Rows of the verdict table, any number at a time."""

    def __init__(self, store: Store, verdicts: Ref) -> None:
        self._batches = store.batches(verdicts.key, rows=_VERDICT_ROWS)
        self._rest: pa.Table | None = None
        self._where = store.uri(verdicts.key)

    def take(self, count: int) -> pa.RecordBatch:
        """The next `count` rows."""
        while self._rest is None or self._rest.num_rows < count:
            batch = next(self._batches, None)
            if batch is None:
                raise CorruptFileError(f"{self._where} ends before the samples do: delete that step's folder")
            more = pa.Table.from_batches([batch])
            self._rest = more if self._rest is None else pa.concat_tables([self._rest, more])
        taken, self._rest = self._rest.slice(0, count), self._rest.slice(count)
        return taken.combine_chunks().to_batches()[0]

    def check_end(self) -> None:
        """Raise where rows are left."""
        if (self._rest is not None and self._rest.num_rows) or next(self._batches, None) is not None:
            raise CorruptFileError(f"{self._where} goes on after the last sample: delete that step's folder")


def _column(
    field: pa.Field, verdicts: pa.RecordBatch, samples: pa.RecordBatch, constants: Mapping[str, str]
) -> pa.Array:
    if field.name in constants:
        return pa.array([constants[field.name]] * samples.num_rows, field.type)
    found = verdicts if field.name in verdicts.schema.names else samples
    column = found.column(field.name)
    return column if column.type == field.type else column.cast(field.type)
