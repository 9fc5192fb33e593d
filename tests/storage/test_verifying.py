import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.images import encode_grey
from storage.records import Manifest
from storage.store import Store
from storage.versions import publish, verify
from tests.storage.published import fill

SHARD = "data/train-00000-of-00001.parquet"


def _version(tmp_path: Path, damage: Callable[[Path], None]) -> tuple[Store, Manifest]:
    """A version whose publisher was wrong before the digests were taken."""
    folder = tmp_path / "folder"
    about = fill(folder)
    damage(folder)
    store = Store(tmp_path / "store")
    return store, publish(store, "demo", folder, about)[0]


def _change_rows(change: Callable[[list[dict[str, Any]]], object], name: str = SHARD) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        table = pq.read_table(folder / name)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / name)

    return damage


def test_a_flipped_byte_is_found_wherever_it_is(store: Store, tmp_path: Path) -> None:
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]
    assert verify(store, version) == []
    for number, file in enumerate(version.files):
        data = bytearray(store.read(file.key))
        data[number * len(data) // len(version.files)] ^= 1
        store.put(file.key, bytes(data))
    assert [problem.split(":")[0] for problem in verify(store, version)] == [file.path for file in version.files]


def test_a_missing_file_is_found(store: Store, tmp_path: Path) -> None:
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]
    store.delete(version.files[0].key)
    assert verify(store, version) == [f"{version.files[0].path}: missing from the store"]


def test_an_image_that_does_not_decode_is_found(tmp_path: Path) -> None:
    def break_png(rows: list[dict[str, Any]]) -> None:
        rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:60]

    store, version = _version(tmp_path, _change_rows(break_png))
    [problem] = verify(store, version)
    assert problem.startswith(f"{SHARD}: row demo-000002 does not decode")


def test_pixels_that_are_not_those_that_were_hashed_are_found(tmp_path: Path) -> None:
    def exchange(rows: list[dict[str, Any]]) -> None:
        rows[0]["image"]["bytes"] = encode_grey(np.zeros((32, 32), np.uint8))

    store, version = _version(tmp_path, _change_rows(exchange))
    assert verify(store, version) == [f"{SHARD}: row demo-000000: pixels differ from their sha256"]


def test_a_missing_row_is_found(tmp_path: Path) -> None:
    store, version = _version(tmp_path, _change_rows(lambda rows: rows.pop()))
    problems = verify(store, version)
    assert any("rows" in problem and "declared" in problem for problem in problems)


def test_a_group_in_two_splits_is_found(tmp_path: Path) -> None:
    def leak(folder: Path) -> None:
        group = pq.read_table(folder / "data/val-00000-of-00001.parquet").column("group")[0].as_py()
        _change_rows(lambda rows: rows[0].update(group=group))(folder)

    store, version = _version(tmp_path, leak)
    problems = verify(store, version)
    assert problems
    assert all(problem.startswith("data/val") and problem.endswith("is in train too") for problem in problems)


def test_coco_and_parquet_that_disagree_are_found(tmp_path: Path) -> None:
    def forget(folder: Path) -> None:
        content = json.loads((folder / "coco/train.json").read_bytes())
        content["annotations"].pop()
        (folder / "coco/train.json").write_text(json.dumps(content))

    store, version = _version(tmp_path, forget)
    [problem] = verify(store, version)
    assert problem.startswith("coco/train.json: ")
    assert "masks in Parquet" in problem


def test_a_ledger_that_forgot_somebody_is_found(tmp_path: Path) -> None:
    store, version = _version(tmp_path, lambda folder: None)
    assert verify(store, version.model_copy(update={"planned": 99})) == ["ledger.parquet: 24 rows, expected 99"]


def test_files_that_are_not_what_they_are_called_are_found(tmp_path: Path) -> None:
    def replace(folder: Path) -> None:
        (folder / "coco/val.json").write_text("[]")
        (folder / "metadata.parquet").write_text("no Parquet")

    store, version = _version(tmp_path, replace)
    problems = verify(store, version)
    assert [problem.split(":")[0] for problem in problems] == ["coco/val.json", "metadata.parquet"]


def test_an_unsafe_manifest_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    store, version = _version(tmp_path, lambda folder: None)
    evil = version.files[0].model_copy(update={"path": "../evil"})
    [problem] = verify(store, version.model_copy(update={"files": [evil]}))
    assert "could leave its folder" in problem
