import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.formats import parquet, webdataset
from storage.images import decode_grey, decode_mask
from storage.records import PIXEL_COLUMNS
from tests.fakes.samples import table


def _kept(rows: pa.Table, split: str) -> list[dict[str, Any]]:
    return [row for row in rows.to_pylist() if row["verdict"] == "kept" and row["split"] == split]


# webdataset 1.0 leaves closing to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_library_reads_every_sample_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("webdataset")
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 40_000)
    rows = table(60)
    parquet.write(rows.to_batches(), tmp_path)
    written = webdataset.write(tmp_path, tmp_path)
    for split in ("train", "val", "test"):
        paths = sorted(str(tmp_path / path) for path in written if path.startswith(f"webdataset/{split}-"))
        samples = list(library.WebDataset(paths, shardshuffle=False).decode("l8"))
        expected = _kept(rows, split)
        assert [sample["__key__"] for sample in samples] == [row["id"] for row in expected]
        for sample, row in zip(samples, expected, strict=True):
            assert np.array_equal(sample["png"], decode_grey(row["image"]["bytes"]))
            assert ("mask.png" in sample) == (row["mask"] is not None)
            if row["mask"] is not None:
                assert np.array_equal(sample["mask.png"] > 0, decode_mask(row["mask"]["bytes"]))
            assert sample["json"] == {name: value for name, value in row.items() if name not in PIXEL_COLUMNS}
    assert sum(path.startswith("webdataset/train-") for path in written) > 1


def test_shards_are_numbered_cut_by_bytes_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 40_000)
    rows = table(60, only_kept=True)
    parquet.write(rows.to_batches(), tmp_path)
    written = webdataset.write(tmp_path, tmp_path)
    train = [path for path in written if path.startswith("webdataset/train-")]
    assert train == [f"webdataset/train-{number:06d}.tar" for number in range(len(train))]
    assert sum(written[path].rows for path in train) == len(_kept(rows, "train"))
    for path, file in written.items():
        data = (tmp_path / path).read_bytes()
        assert len(data) <= 40_000 + tarfile.RECORDSIZE
        assert file.sha256 == hashlib.sha256(data).hexdigest()


def test_a_sample_larger_than_a_shard_has_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 10)
    parquet.write(table(6).to_batches(), tmp_path)
    written = webdataset.write(tmp_path, tmp_path)
    assert [file.rows for file in written.values()] == [1] * 6


def test_the_same_rows_make_the_same_bytes_that_name_no_machine_and_no_time(tmp_path: Path) -> None:
    parquet.write(table(30).to_batches(), tmp_path)
    assert webdataset.write(tmp_path, tmp_path / "a") == webdataset.write(tmp_path, tmp_path / "b")
    for path in (tmp_path / "a/webdataset").iterdir():
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.isreg()


def test_the_thin_row_is_plain_json(tmp_path: Path) -> None:
    rows = table(6)
    parquet.write(rows.to_batches(), tmp_path)
    webdataset.write(tmp_path, tmp_path)
    metadata = pq.read_table(tmp_path / "metadata.parquet").to_pylist()
    with tarfile.open(tmp_path / "webdataset/train-000000.tar") as tar:
        texts = [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]  # pyright: ignore[reportOptionalMemberAccess]
    assert [json.loads(text) for text in texts] == metadata


@pytest.mark.parametrize("name", ["a.b", "../a", "/a", "a b", ""])
def test_an_id_that_readers_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    rows = table(1)
    parquet.write(rows.set_column(0, "id", pa.array([name])).to_batches(), tmp_path)
    with pytest.raises(ValueError, match="cannot be a key of WebDataset"):
        webdataset.write(tmp_path, tmp_path)
