"""Samples, scores and verdicts come together row for row, or not at all."""

from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import CorruptFileError
from storage.records import SYNTHETIC_SCHEMA, Ref, sample_schema
from storage.store import Store
from tasks.merge import merged, verdicts_of
from tests.fakes.samples import SCORES, table

CONSTANTS = {"recipe_digest": "cafe", "licence": "Apache-2.0"}


def _stored(store: Store, rows: pa.Table, cuts: list[int]) -> tuple[list[Ref], Ref]:
    """The steps' tables that `rows` would come from: shards of samples, and one of verdicts."""
    samples = rows.append_column("failure", pa.nulls(len(rows), pa.string())).select(SYNTHETIC_SCHEMA.names)
    shards: list[Ref] = []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        key = f"builds/synthesize/{start}/shard.parquet"
        shards.append(Ref(key=key, sha256=store.put_table(key, samples.slice(start, stop - start))))
    key = "builds/curate/x/verdicts.parquet"
    return shards, Ref(key=key, sha256=store.put_table(key, rows.select(["id", *SCORES, "verdict", "reasons"])))


@pytest.mark.parametrize("cuts", [[], [1], [20, 21, 50], [7, 40]])
def test_every_sample_gets_its_own_scores_and_verdict(tmp_path: Path, cuts: list[int]) -> None:
    store, rows = Store(tmp_path), table(60)
    shards, verdicts = _stored(store, rows, cuts)
    batches = list(merged(store, shards, verdicts, sample_schema(SCORES), CONSTANTS))
    assert pa.Table.from_batches(batches).to_pylist() == rows.to_pylist()


def test_verdicts_of_other_samples_are_refused(tmp_path: Path) -> None:
    store, rows = Store(tmp_path), table(60)
    shards, verdicts = _stored(store, rows, [30])
    schema = sample_schema(SCORES)
    with pytest.raises(CorruptFileError, match=r"verdicts\.parquet is not about the samples of"):
        list(merged(store, shards[::-1], verdicts, schema, CONSTANTS))
    with pytest.raises(CorruptFileError, match=r"verdicts\.parquet ends before the samples do"):
        list(merged(store, [*shards, shards[0]], verdicts, schema, CONSTANTS))
    with pytest.raises(CorruptFileError, match=r"verdicts\.parquet goes on after the last sample"):
        list(merged(store, shards[:1], verdicts, schema, CONSTANTS))


def test_verdicts_alone_are_read_without_scores(tmp_path: Path) -> None:
    store, rows = Store(tmp_path), table(20)
    _, verdicts = _stored(store, rows, [])
    found = pa.Table.from_batches(list(verdicts_of(store, verdicts)))
    assert found.to_pylist() == rows.select(["id", "verdict", "reasons"]).to_pylist()
