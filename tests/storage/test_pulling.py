import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.errors import CorruptFileError, StoreFullError, UnsafePathError
from storage.images import decode_grey, decode_mask
from storage.pulling import files_for, pull
from storage.records import Manifest
from storage.store import Store
from storage.versions import publish
from tests.storage.published import fill


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Manifest:
    return publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]


def _left(tmp_path: Path) -> list[str]:
    """What lies where pulls go, hidden or not."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("folder", "store"))


def test_parquet_is_pulled_byte_for_byte(store: Store, version: Manifest, tmp_path: Path) -> None:
    moved: list[int] = []
    out = pull(store, version, tmp_path / "out", "parquet", moved.append)
    for path in (path for path in (tmp_path / "folder").rglob("*") if path.is_file()):
        relative = path.relative_to(tmp_path / "folder")
        if relative.parts[0] == "coco":
            assert not (out / relative).exists()
        else:
            assert (out / relative).read_bytes() == path.read_bytes()
    assert sum(moved) == sum(file.bytes for file in files_for(version, "parquet"))
    assert _left(tmp_path) == ["out"]


def test_coco_is_pulled_as_loaders_expect_it(store: Store, version: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    out = pull(store, version, tmp_path / "out", "coco")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "annotations", "images", "masks"]
    rows = [row for shard in (tmp_path / "folder/data").glob("*") for row in pq.read_table(shard).to_pylist()]
    assert len(rows) == version.kept
    for row in rows:
        with Image.open(out / "images" / f"{row['id']}.png") as image:
            assert np.array_equal(np.asarray(image), decode_grey(row["image"]["bytes"]))
        mask = out / "masks" / f"{row['id']}.png"
        assert mask.exists() == (row["mask"] is not None)
        if row["mask"] is not None:
            assert np.array_equal(decode_mask(mask.read_bytes()), decode_mask(row["mask"]["bytes"]))
    for split in ("train", "val", "test"):
        content = json.loads((out / "annotations" / f"{split}.json").read_bytes())
        assert all((out / image["file_name"]).is_file() for image in content["images"])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_pull_leaves_no_directory(
    store: Store, version: Manifest, tmp_path: Path, stop: type[BaseException] | OSError
) -> None:
    calls: list[int] = []

    def interrupt(count: int) -> None:
        calls.append(count)
        if len(calls) == 3:
            raise stop

    expected = StoreFullError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        pull(store, version, tmp_path / "out", "parquet", interrupt)
    assert len(calls) == 3
    assert _left(tmp_path) == []
    assert pull(store, version, tmp_path / "out").is_dir()


@pytest.mark.parametrize("format", ["parquet", "coco"])
def test_a_flipped_byte_stops_the_pull(store: Store, version: Manifest, tmp_path: Path, format: Any) -> None:
    file = next(file for file in version.files if file.path.startswith("data/train"))
    data = bytearray(store.read(file.key))
    data[len(data) // 2] ^= 1
    store.put(file.key, bytes(data))
    with pytest.raises(CorruptFileError, match=r"data/train.* disagrees with its manifest"):
        pull(store, version, tmp_path / "out", format)
    assert _left(tmp_path) == []


def test_a_file_that_is_gone_stops_the_pull(store: Store, version: Manifest, tmp_path: Path) -> None:
    store.delete(version.files[0].key)
    with pytest.raises(CorruptFileError, match="is gone from the store"):
        pull(store, version, tmp_path / "out")
    assert _left(tmp_path) == []


@pytest.mark.parametrize(
    "path", ["../evil", "/tmp/evil", "data/../../evil", "a\\..\\evil", "C:/evil", "data//evil", ""]
)
@pytest.mark.parametrize("format", ["parquet", "coco"])
def test_a_manifest_that_points_outside_is_refused_before_anything_is_copied(
    tmp_path: Path, path: str, format: Any
) -> None:
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]
    evil = version.files[-1].model_copy(update={"path": path})
    with pytest.raises(UnsafePathError, match="could leave its folder"):
        pull(store, version.model_copy(update={"files": [*version.files, evil]}), tmp_path / "out", format)
    assert _left(tmp_path) == []


def test_a_manifest_with_a_key_outside_the_store_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]
    (tmp_path / "secret").write_text("secret")
    evil = version.files[-1].model_copy(update={"key": "../secret"})
    with pytest.raises(UnsafePathError, match="could leave the store"):
        pull(store, version.model_copy(update={"files": [evil]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_lists_a_path_twice_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]
    again = version.files[0].model_copy(update={"path": version.files[0].path.upper()})
    with pytest.raises(UnsafePathError, match="same path twice"):
        pull(store, version.model_copy(update={"files": [*version.files, again]}), tmp_path / "out")


def _rewritten(tmp_path: Path, change: Callable[[list[dict[str, Any]]], None]) -> tuple[Store, Manifest]:
    """A version whose ids somebody else wrote."""
    folder = tmp_path / "folder"
    about = fill(folder)
    shard = folder / "data/train-00000-of-00001.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), shard)
    store = Store(tmp_path / "store")
    return store, publish(store, "demo", folder, about)[0]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "", ".hidden", "a/b"])
def test_an_id_that_is_a_path_writes_nothing(tmp_path: Path, name: str) -> None:
    store, version = _rewritten(tmp_path, lambda rows: rows[0].update(id=name))
    with pytest.raises(UnsafePathError, match="cannot name a file"):
        pull(store, version, tmp_path / "out", "coco")
    assert _left(tmp_path) == []


def test_ids_that_repeat_or_disagree_with_coco_are_refused(tmp_path: Path) -> None:
    store, version = _rewritten(tmp_path, lambda rows: rows[0].update(id=rows[1]["id"]))
    with pytest.raises(CorruptFileError, match="occurs twice"):
        pull(store, version, tmp_path / "out", "coco")


def test_coco_that_names_other_images_is_refused(tmp_path: Path) -> None:
    store, version = _rewritten(tmp_path, lambda rows: rows[0].update(id="other"))
    with pytest.raises(CorruptFileError, match="no image of this version"):
        pull(store, version, tmp_path / "out", "coco")


def test_a_folder_with_something_in_it_is_never_touched(store: Store, version: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        pull(store, version, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        pull(store, version, tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(ValueError, match="not an empty folder"):
        pull(store, version, tmp_path / "link")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_version_without_coco_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]
    plain = version.model_copy(update={"files": [f for f in version.files if not f.path.startswith("coco/")]})
    with pytest.raises(ValueError, match="published without COCO"):
        pull(store, plain, tmp_path / "out", "coco")
