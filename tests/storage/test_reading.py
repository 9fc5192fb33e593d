import copy
import gc
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from storage import open_version, pictures
from storage.errors import CorruptFileError, RetractedError, SelectionError, VersionNotFoundError
from storage.images import decode_grey, decode_mask
from storage.reading import Version
from storage.records import PIXEL_COLUMNS, Manifest
from storage.retractions import retract
from storage.store import Store
from storage.versions import publish
from tests.storage.published import fill

WHERE = "label = 'malignant' or seed > 20"


@pytest.fixture
def manifest(store: Store, tmp_path: Path) -> Manifest:
    return publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder", 60))[0]


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """A version in a local store, for what does not depend on the backend."""
    store = Store(tmp_path / "store")
    return Version(store, publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder", 60))[0])


@pytest.fixture
def frame(version: Version, tmp_path: Path) -> pd.DataFrame:
    return pd.read_parquet(tmp_path / "folder" / "metadata.parquet")


def published(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row of the data files by id, with decoded pictures."""
    rows = [row for path in (folder / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    for row in rows:
        for name in PIXEL_COLUMNS:
            decode: Callable[[bytes], Any] = decode_mask if name in ("mask", "region") else decode_grey
            row[name] = None if row[name] is None else decode(row[name]["bytes"])
    return {row["id"]: row for row in rows}


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_rows_come_as_published(store: Store, manifest: Manifest, tmp_path: Path) -> None:
    expected = published(tmp_path / "folder")
    with open_version("demo@latest", store) as version:
        assert len(version) == manifest.kept == len(expected)
        found = list(version.rows())
        assert [row["id"] for row in found] == sorted(expected)
        assert all(same(row, expected[row["id"]]) for row in found)
        picked = sorted(expected)[3]
        assert same(version.row(picked), expected[picked])
    assert found[0]["image"].dtype == np.uint8
    assert found[0]["mask"].dtype == np.bool_


def test_the_table_is_what_pandas_reads(version: Version, frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(version.metadata(), frame)
    wanted = frame[(frame["label"] == "malignant") | (frame["seed"] > 20)]
    wanted = wanted[wanted["split"] == "train"][["seed", "id"]].reset_index(drop=True)
    assert len(wanted) > 0
    pd.testing.assert_frame_equal(version.metadata(["seed", "id"], WHERE, "train"), wanted)
    nothing = version.metadata(["seed", "id"], "label = 'other'")
    assert (len(nothing), list(nothing.columns)) == (0, ["seed", "id"])


def test_only_what_is_asked_for_travels(version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    fetch = pictures.Pictures.fetch

    def watched(self: pictures.Pictures, places: Any, columns: Any = PIXEL_COLUMNS) -> Any:
        asked.extend(f"{id} {column}" for id in places.column("id").to_pylist() for column in columns)
        return fetch(self, places, columns)

    monkeypatch.setattr(pictures.Pictures, "fetch", watched)
    rows = list(version.rows(["label", "id"], WHERE))
    assert [list(row) for row in rows] == [["label", "id"]] * len(rows)
    assert not asked
    rows = list(version.rows(["mask", "label"], WHERE, "val"))
    assert [list(row) for row in rows] == [["mask", "label"]] * len(rows)
    ids = version.metadata(["id"], WHERE, "val")["id"].tolist()
    assert asked == [f"{id} mask" for id in ids]
    asked.clear()
    version.row(ids[0], ["image"])
    assert asked == [f"{ids[0]} image"]


def test_rows_are_read_ahead_but_not_all(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CHUNK_BYTES", 2000)
    begun: list[int] = []
    fetch = pictures.Pictures.fetch

    def watched(self: pictures.Pictures, places: Any, columns: Any = PIXEL_COLUMNS) -> Any:
        begun.append(places.num_rows)
        return fetch(self, places, columns)

    monkeypatch.setattr(pictures.Pictures, "fetch", watched)
    rows = version.rows()
    next(rows)
    assert 1 <= len(begun) <= 4
    rest = len(list(rows))
    assert 1 + rest == sum(begun) == len(version)
    assert len(begun) > 8


def test_any_rows_can_be_taken_in_any_order(version: Version, frame: pd.DataFrame, tmp_path: Path) -> None:
    expected = published(tmp_path / "folder")
    ids = frame["id"].sample(frac=1, random_state=0).tolist()
    taken = version.take([*ids, ids[0]])
    assert [row["id"] for row in taken] == [*ids, ids[0]]
    assert all(same(row, expected[row["id"]]) for row in taken)
    for absent in ("", "demo-0000005", "zzz"):
        with pytest.raises(LookupError, match=f"demo@1 has no row '{absent}'"):
            version.row(absent)


def test_what_is_not_there_is_named(version: Version, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="no column 'maske': did you mean mask"):
        next(version.rows(["maske"]))
    with pytest.raises(SelectionError, match="no column 'lable'"):
        version.metadata(where="lable = 'a'")
    with pytest.raises(SelectionError, match="no column 'image'"):
        version.metadata(["image"])
    with pytest.raises(VersionNotFoundError, match="demo"):
        open_version("domo", tmp_path / "store")


def test_a_retracted_version_is_refused_with_the_reason(store: Store, manifest: Manifest) -> None:
    retract(store, manifest, "a patient withdrew")
    with pytest.raises(RetractedError, match="a patient withdrew"):
        open_version("demo@1", store)


def test_a_flipped_byte_is_never_read(version: Version, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    index = pq.read_table(tmp_path / "folder" / "index.parquet").to_pylist()
    place = [row for row in index if row["mask_at"] is not None][5]
    key = next(file.key for file in version.manifest.files if file.path == place["file"])
    data = bytearray(store.read(key))
    data[place["mask_at"] + 30] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(CorruptFileError, match=f"the mask of {place['id']} in {place['file']} of demo@1"):
        version.row(place["id"])
    assert version.row(place["id"], ["image"])["image"] is not None
    with pytest.raises(CorruptFileError, match="differs from its digest"):
        list(version.rows())


def test_what_was_fetched_goes_with_the_version(version: Version) -> None:
    version.metadata()
    folder = version._folder
    assert folder.exists()
    version.close()
    assert not folder.exists()


def test_a_version_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))
    version = open_version("demo", store)
    version.metadata()
    folder = version._folder
    del version
    gc.collect()
    assert not folder.exists()


def test_opening_a_version_imports_neither_prefect_nor_torch(version: Version, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from storage import open_version\n"
        f"version = open_version('demo', {str(tmp_path / 'store')!r})\n"
        "assert len(version.metadata(where=\"label = 'benign'\")) > 0\n"
        "next(version.rows())\n"
        "heavy = {'prefect', 'torch', 'diffusers', 'transformers', 'tasks', 'flows', 's3fs'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# torch


def test_a_torch_dataset_holds_the_rows_asked_for(version: Version, frame: pd.DataFrame, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    dataset = version.torch("train", WHERE)
    expected = published(tmp_path / "folder")
    wanted = version.metadata(["id"], WHERE, "train")["id"].tolist()
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert [dataset[number]["id"] for number in range(len(dataset))] == wanted
    assert dataset[-1]["id"] == wanted[-1]
    with pytest.raises(IndexError, match=f"there are {len(wanted)}"):
        dataset[len(wanted)]
    for item in dataset.__getitems__(range(len(dataset))):
        row = expected[item["id"]]
        assert np.array_equal(item["image"][0], row["image"])
        blank = np.zeros_like(row["image"], bool)
        assert np.array_equal(item["mask"][0], blank if row["mask"] is None else row["mask"])
        assert (item["image"].dtype, item["mask"].dtype) == (torch.uint8, torch.bool)
    with pytest.raises(SelectionError, match="no row of demo@1"):
        version.torch(where="label = 'other'")


@pytest.mark.parametrize(
    ("place", "context"),
    [
        pytest.param("local", "spawn", marks=pytest.mark.slow),  # starting torch twice takes seconds
        ("moto", "fork"),
        ("ceph", "fork"),
    ],
)
def test_workers_read_for_themselves(place: str, context: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.data")
    environments = {"moto": "s3_environment", "ceph": "ceph_environment"}
    url = request.getfixturevalue(environments[place]) if place in environments else str(tmp_path / "store")
    publish(Store(url), "demo", tmp_path / "folder", fill(tmp_path / "folder", 60))
    # In a process of its own: forking one in which Prefect has run ends every child with exit code 1.
    ran = subprocess.run(
        [sys.executable, "-m", "tests.storage.loading", url, context], capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr


def test_items_of_a_loader_can_be_collated_as_they_are(version: Version) -> None:
    data = pytest.importorskip("torch.utils.data")
    batches = list(data.DataLoader(version.torch(), batch_size=7, shuffle=True))
    assert sorted(id for batch in batches for id in batch["id"]) == version.metadata()["id"].tolist()
    assert batches[0]["image"].shape == (7, 1, 32, 32)


def test_a_dataset_pickles_without_its_rows(version: Version) -> None:
    pytest.importorskip("torch")
    dataset = version.torch()
    assert b"demo-000003" not in bytes(ForkingPickler.dumps(dataset))
    assert copy.deepcopy(dataset)[3]["id"] == dataset[3]["id"]  # as pickling does it
    version.close()
    with pytest.raises(FileNotFoundError, match="only while the Version that listed them exists"):
        copy.deepcopy(dataset)
