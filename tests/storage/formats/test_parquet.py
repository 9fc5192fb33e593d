import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import StoreFullError, StoreUnavailableError
from storage.formats import hashed, parquet
from tests import REPOSITORY
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
        assert written[path].rows == len(expected)
    ledger = pq.read_table(tmp_path / "ledger.parquet")
    metadata = pq.read_table(tmp_path / "metadata.parquet")
    assert ledger.column("id").to_pylist() == [row["id"] for row in everything]
    assert metadata.column("id").to_pylist() == [row["id"] for row in everything if row["verdict"] == "kept"]
    assert not {"image", "mask", "region"} & {*ledger.column_names, *metadata.column_names}
    assert {*SCORES, "verdict", "reasons", "seed"} <= set(metadata.column_names)
    assert set(written) == set(_digests(tmp_path))


@pytest.mark.parametrize("large", [1, 10**9], ids=["copying none", "copying all"])
@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_the_same_rows_in_any_batching_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, large: int
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 12_000)
    monkeypatch.setattr(parquet, "THIN_ROWS", 16)
    monkeypatch.setattr(parquet, "_LARGE", large)
    rows = table(100)
    parquet.write(rows.combine_chunks().to_batches(), tmp_path / "a")
    parquet.write(rows.to_batches(max_chunksize=at_once), tmp_path / "b")
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


def test_shards_of_small_pictures_are_cut_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SHARD_ROWS", 8)
    written = parquet.write(table(60, only_kept=True).to_batches(max_chunksize=11), tmp_path)
    assert [file.rows for path, file in written.items() if path.startswith("data/train")] == [8, 8, 8, 6]


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    written = parquet.write(table(60).to_batches(), tmp_path)
    assert {path: file.sha256 for path, file in written.items()} == _digests(tmp_path)
    for path, file in written.items():
        assert file.rows == pq.ParquetFile(tmp_path / path).metadata.num_rows


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
    with pytest.raises(ValueError, match="'demo-000000' comes after 'demo-000005'"):
        parquet.write([*rows.to_batches(), *rows.to_batches()], tmp_path)
    position = rows.schema.get_field_index("split")
    with pytest.raises(ValueError, match=r"split 'dev'.*expected train, val, test"):
        parquet.write(rows.set_column(position, "split", pa.array(["dev"] * 6)).to_batches(), tmp_path)


@pytest.mark.parametrize("verdict", ["kept", "rejected"])
def test_rows_in_another_order_are_refused_whatever_their_verdict(tmp_path: Path, verdict: str) -> None:
    rows = table(6)
    rows = rows.set_column(rows.schema.get_field_index("verdict"), "verdict", pa.array([verdict] * 6))
    with pytest.raises(ValueError, match="'demo-000003' comes after 'demo-000004'"):
        parquet.write(rows.take([0, 1, 2, 4, 3, 5]).to_batches(), tmp_path)
    with pytest.raises(ValueError, match=r"'demo-000001' comes after 'demo-000001'.*each id once"):
        parquet.write(rows.take([0, 1, 1]).to_batches(max_chunksize=2), tmp_path)


def test_a_failure_half_way_leaves_no_thread_and_no_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 3_000)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def breaking() -> Iterator[pa.RecordBatch]:
        yield from table(60).to_batches(max_chunksize=10)
        raise StoreUnavailableError("the store is gone")

    with pytest.raises(StoreUnavailableError, match="the store is gone"):
        parquet.write(breaking(), tmp_path)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_disk_that_refuses_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        with pytest.raises(StoreUnavailableError, match=r"cannot write .*data/\.train-00000: .*File too large"):
            parquet.write(table(60).to_batches(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hashed, "_to_disk", refuse)
    monkeypatch.setattr(hashed, "_SYNC_BYTES", 1)
    with pytest.raises(StoreFullError, match="no space left on the device"):
        parquet.write(table(60).to_batches(), tmp_path)


_MEASURE = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from storage.formats import coco, parquet, webdataset
from tests.fakes.samples import table
count, folder = int(sys.argv[1]), Path(sys.argv[2])
once = table(60, 192, only_kept=True).combine_chunks().to_batches()[0]
rows = (
    once.set_column(0, "id", pa.array([f"syn-{start + i:08d}" for i in range(60)])) for start in range(0, count, 60)
)
for write, source in ((parquet.write, rows), (coco.write, folder), (webdataset.write, folder)):
    write(source, folder)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_many_times_the_rows_take_the_same_memory(tmp_path: Path) -> None:
    def peaks(count: int) -> list[int]:
        command = [sys.executable, "-c", _MEASURE, str(count), str(tmp_path / str(count))]
        return [int(line) for line in subprocess.check_output(command, cwd=REPOSITORY, text=True).split()]

    few, many = peaks(4_500), peaks(13_500)  # 170 and 510 MB: all row groups are full with the first
    for one, three in zip(few, many, strict=True):
        assert three < 1.15 * one
