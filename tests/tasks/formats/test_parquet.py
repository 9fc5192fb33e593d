import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.formats import parquet
from tests.fakes.samples import SCORES, table


def _digests(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_kept_rows_lie_by_split_and_all_rows_in_the_ledger(tmp_path: Path) -> None:
    rows = table(60)
    written = parquet.write(rows.to_batches(), tmp_path)
    everything = rows.to_pylist()
    for split in ("train", "val", "test"):
        expected = [row for row in everything if row["verdict"] == "kept" and row["split"] == split]
        path = f"data/{split}-00000-of-00001.parquet"
        assert pq.read_table(tmp_path / path).to_pylist() == expected
        assert written[path] == len(expected)
    ledger = pq.read_table(tmp_path / "ledger.parquet")
    metadata = pq.read_table(tmp_path / "metadata.parquet")
    assert ledger.column("id").to_pylist() == [row["id"] for row in everything]
    assert metadata.column("id").to_pylist() == [row["id"] for row in everything if row["verdict"] == "kept"]
    assert not {"image", "mask", "region"} & {*ledger.column_names, *metadata.column_names}
    assert {*SCORES, "verdict", "reasons", "seed"} <= set(metadata.column_names)
    assert set(written) == set(_digests(tmp_path))


def test_the_same_rows_in_any_order_and_batching_make_the_same_bytes(tmp_path: Path) -> None:
    rows = table(40)
    backwards = rows.take(list(range(39, -1, -1)))
    parquet.write(rows.to_batches(), tmp_path / "a")
    parquet.write(backwards.to_batches(max_chunksize=7), tmp_path / "b")
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")


def test_files_are_written_for_readers_that_seek_and_check(tmp_path: Path) -> None:
    parquet.write(table(40).to_batches(), tmp_path)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert columns["image.bytes"].compression == columns["mask.bytes"].compression == "UNCOMPRESSED"
    assert {column.compression for name, column in columns.items() if not name.endswith(".bytes")} == {"ZSTD"}
    assert columns["label"].has_dictionary_page
    assert not columns["image.bytes"].has_dictionary_page
    assert not columns["image.bytes"].is_stats_set  # or the footer would hold whole images
    assert columns["label"].has_column_index
    assert columns["image.bytes"].has_offset_index
    data = bytearray(path.read_bytes())
    data[columns["image.bytes"].data_page_offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_row_groups_and_shards_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 4_000)
    monkeypatch.setattr(parquet, "SHARD_BYTES", 20_000)
    rows = table(60, only_kept=True)
    written = parquet.write(rows.to_batches(), tmp_path)
    paths = sorted(path for path in written if path.startswith("data/train"))
    assert len(paths) > 1
    assert paths == [f"data/train-{index:05d}-of-{len(paths):05d}.parquet" for index in range(len(paths))]
    ids: list[str] = []
    for path in paths:
        file = pq.ParquetFile(tmp_path / path)
        assert file.metadata.num_row_groups > 1
        ids += file.read(["id"]).column("id").to_pylist()
    assert ids == [row["id"] for row in rows.to_pylist() if row["split"] == "train"]


def test_a_row_larger_than_a_row_group_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 10)
    parquet.write(table(6).to_batches(), tmp_path)
    assert pq.ParquetFile(tmp_path / "data/train-00000-of-00001.parquet").metadata.num_row_groups == 6


def test_many_times_the_rows_take_about_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 100_000)
    once = table(48, px=64, only_kept=True)

    def repeated(times: int) -> Iterator[pa.RecordBatch]:
        for turn in range(times):
            ids = pa.array([f"{turn:04d}-{index:04d}" for index in range(len(once))])
            yield from once.set_column(0, "id", ids).to_batches()

    def peak(times: int) -> int:
        before = pa.total_allocated_bytes()
        highest = 0

        def watched() -> Iterator[pa.RecordBatch]:
            nonlocal highest
            for batch in repeated(times):
                highest = max(highest, pa.total_allocated_bytes() - before)
                yield batch

        tracemalloc.start()
        parquet.write(watched(), tmp_path / f"{times}")
        highest += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, many = peak(2), peak(20)
    assert many < few + 1_500_000  # 20 times 48 rows of 4 kB are 4 MB of pixels; a place costs under 1 kB


def test_splits_that_hold_nothing_have_no_file(tmp_path: Path) -> None:
    written = parquet.write(table(6).to_batches(), tmp_path)
    assert [path for path in written if path.startswith("data/")] == ["data/train-00000-of-00001.parquet"]


def test_the_description_for_datasets_names_every_column(tmp_path: Path) -> None:
    rows = table(6)
    parquet.write(rows.to_batches(), tmp_path)
    metadata = pq.read_schema(tmp_path / "data/train-00000-of-00001.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert list(features) == sorted(rows.column_names)
    assert features["image"] == features["mask"] == features["region"] == {"_type": "Image"}
    assert features["segmenter_dice"] == {"dtype": "float32", "_type": "Value"}


def test_rows_that_cannot_be_published_are_refused(tmp_path: Path) -> None:
    rows = table(6)
    with pytest.raises(ValueError, match="no rows to write"):
        parquet.write([], tmp_path)
    with pytest.raises(ValueError, match="'demo-000000' occurs twice"):
        parquet.write([*rows.to_batches(), *rows.to_batches()], tmp_path)
    position = rows.schema.get_field_index("split")
    with pytest.raises(ValueError, match=r"split 'dev'.*expected train, val, test"):
        parquet.write(rows.set_column(position, "split", pa.array(["dev"] * 6)).to_batches(), tmp_path)
