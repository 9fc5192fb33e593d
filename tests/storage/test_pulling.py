import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import storage.folder
from storage import pictures
from storage.errors import (
    BusyError,
    CorruptFileError,
    RetractedError,
    SelectionError,
    StoreFullError,
    UnsafePathError,
)
from storage.formats import parquet
from storage.images import decode_grey, decode_mask, png_digest
from storage.landing import claimed
from storage.pulling import PullFormat, planned_bytes, pull
from storage.records import PIXEL_COLUMNS, Manifest
from storage.retractions import retract
from storage.store import Store
from storage.versions import open_manifest, publish
from tests.fakes.samples import table
from tests.storage.forged import SHARD, changed, publish_damaged
from tests.storage.published import fill
from tests.storage.small import ABOUT

LAID = ["SHA256SUMS", "version.json"]


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Manifest:
    return publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder"))[0]


@pytest.fixture
def here(tmp_path: Path) -> tuple[Store, Manifest]:
    """A version in a local store, for what does not depend on the backend."""
    store = Store(tmp_path / "store")
    about = fill(tmp_path / "folder", 60)
    (tmp_path / "folder" / "report.html").write_text("<p>all rows</p>")
    (tmp_path / "folder" / "provenance.json").write_text("{}")
    return store, publish(store, "demo", tmp_path / "folder", about)[0]


def left(tmp_path: Path) -> list[str]:
    """What lies where pulls go, hidden or not."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("folder", "store"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row of the data files, by id."""
    return {row["id"]: row for path in (folder / "data").glob("*") for row in pq.read_table(path).to_pylist()}


def tap(store: Store, monkeypatch: pytest.MonkeyPatch, seen: Callable[[str, memoryview], object]) -> None:
    """Show a function all bytes that arrive from a store, before anybody else sees them."""
    backend: Any = store._backend
    fill_buffer, stream = backend.fill, backend.stream

    def filled(key: str, start: int, view: memoryview) -> int:
        count = fill_buffer(key, start, view)
        seen(key, view[:count])
        return count

    def streamed(key: str, start: int) -> Iterator[memoryview]:
        for piece in stream(key, start):
            seen(key, piece)
            yield piece

    monkeypatch.setattr(backend, "fill", filled)
    monkeypatch.setattr(backend, "stream", streamed)


# Whole versions


def test_parquet_is_pulled_byte_for_byte(store: Store, version: Manifest, tmp_path: Path) -> None:
    moved: list[int] = []
    expected: list[int] = []
    pulled = pull(store, version, tmp_path / "out", advance=moved.append, expect=expected.append)
    published = {path: data for path, data in files(tmp_path / "folder").items() if not path.startswith("coco/")}
    found = files(tmp_path / "out")
    assert {path: data for path, data in found.items() if path not in LAID} == published
    assert sum(moved) == sum(expected) == pulled.bytes_moved == planned_bytes(version)
    assert (pulled.path, pulled.rows, pulled.up_to_date) == (tmp_path / "out", version.kept, False)
    assert left(tmp_path) == ["out"]


def test_a_pulled_folder_can_be_checked_without_sonoforge(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    for format in ("parquet", "coco"):
        out = pull(*here, tmp_path / format, format=format).path
        listed = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
        found = {path: hashlib.sha256(data).hexdigest() for path, data in files(out).items() if path not in LAID}
        assert listed == found


def test_coco_is_pulled_as_loaders_expect_it(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    (tmp_path / "out").mkdir()
    out = pull(store, version, tmp_path / "out", format="coco").path
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "SHA256SUMS", "about", "annotations", "images", "masks", "version.json",
    ]  # fmt: skip
    rows = rows_of(tmp_path / "folder")
    assert len(rows) == version.kept == len(list((out / "images").iterdir()))
    for name, row in rows.items():
        with Image.open(out / "images" / f"{name}.png") as image:
            assert np.array_equal(np.asarray(image), decode_grey(row["image"]["bytes"]))
        mask = out / "masks" / f"{name}.png"
        assert mask.exists() == (row["mask"] is not None)
        if row["mask"] is not None:
            assert np.array_equal(decode_mask(mask.read_bytes()), decode_mask(row["mask"]["bytes"]))


def test_whole_coco_equals_what_was_published(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    out = pull(*here, tmp_path / "out", format="coco").path
    for split in ("train", "val", "test"):
        assert (out / f"annotations/{split}.json").read_bytes() == (tmp_path / f"folder/coco/{split}.json").read_bytes()


def test_webdataset_is_pulled_as_shards(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("storage.formats.webdataset")
    webdataset.write(tmp_path / "folder", tmp_path / "written")
    out = pull(*here, tmp_path / "out", format="webdataset").path
    written = files(tmp_path / "written" / "webdataset")
    assert "train-000000.tar" in written
    assert {path: data for path, data in files(out).items() if path.endswith(".tar")} == written


# Parts


@pytest.mark.parametrize("where", [None, "label = 'malignant' and segmenter_dice > 0.5", "seed % 7 = 3"])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_part_holds_exactly_its_rows(
    here: tuple[Store, Manifest], tmp_path: Path, split: str | None, where: str | None
) -> None:
    store, version = here
    pulled = pull(store, version, tmp_path / "out", split=split, where=where)
    frame = pd.read_parquet(tmp_path / "folder/metadata.parquet")
    if where is not None:
        malignant = (frame["label"] == "malignant") & (frame["segmenter_dice"] > 0.5)
        frame = frame[malignant if "label" in where else frame["seed"] % 7 == 3]
    frame = frame if split is None else frame[frame["split"] == split]
    assert 0 < len(frame) == pulled.rows
    whole, part = rows_of(tmp_path / "folder"), rows_of(tmp_path / "out")
    assert sorted(part) == frame["id"].tolist()
    for id, row in part.items():
        pixels = {name: (row[name] or {}).get("bytes") for name in PIXEL_COLUMNS}
        assert pixels == {name: (whole[id][name] or {}).get("bytes") for name in PIXEL_COLUMNS}
        thin = {name: value for name, value in row.items() if name not in PIXEL_COLUMNS}
        assert thin == {name: value for name, value in whole[id].items() if name not in PIXEL_COLUMNS}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out/metadata.parquet"), frame.reset_index(drop=True))
    for path in (tmp_path / "out/data").iterdir():
        original = next((tmp_path / "folder/data").glob(f"{path.name.split('-')[0]}-*"))
        assert pq.read_schema(path).equals(pq.read_schema(original), check_metadata=True)


def test_the_index_of_a_part_points_into_its_own_files(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    for name, options in {"split": {"split": "train"}, "where": {"where": "label = 'benign'"}}.items():
        out = pull(*here, tmp_path / name, **options).path
        for row in pq.read_table(out / "index.parquet").to_pylist():
            data = (out / row["file"]).read_bytes()
            picture = data[row["image_at"] : row["image_at"] + row["image_bytes"]]
            assert png_digest(picture) == row["image_blake3"]


def test_nothing_in_a_part_speaks_of_the_whole_as_if_it_were_all_there(
    here: tuple[Store, Manifest], tmp_path: Path
) -> None:
    store, version = here
    out = pull(store, version, tmp_path / "out", where="label = 'benign'").path
    found = files(out)
    assert sorted(path for path in found if not path.startswith("data/")) == [
        "README.md", "SHA256SUMS", "about/README.md", "about/provenance.json", "index.parquet", "metadata.parquet",
        "sources.parquet", "version.json",
    ]  # fmt: skip
    assert found["about/README.md"] == (tmp_path / "folder/README.md").read_bytes()
    assert found["about/provenance.json"] == b"{}"
    rows = len(pq.read_table(out / "metadata.parquet"))
    assert f"{rows} of the {version.kept} rows of demo@1" in found["README.md"].decode()
    assert json.loads(found["version.json"])["selection"]["where"] == "label = 'benign'"


def test_a_part_loads_with_datasets(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pulled = pull(*here, tmp_path / "out", split="val", where="label <> 'normal'")
    loaded = datasets.load_dataset(str(pulled.path), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in loaded.items()} == {"val": pulled.rows}


@pytest.mark.parametrize("options", [{"split": "val"}, {"where": "label = 'malignant'"}, {"where": "true"}])
def test_categories_of_a_part_have_the_numbers_of_the_whole(
    here: tuple[Store, Manifest], tmp_path: Path, options: dict[str, str]
) -> None:
    whole = json.loads((tmp_path / "folder/coco/val.json").read_bytes())
    part = json.loads(
        (pull(*here, tmp_path / "out", format="coco", **options).path / "annotations/val.json").read_bytes()
    )
    assert part["categories"] == whole["categories"]
    numbers = {
        image["sonoforge"]["id"]: annotation["category_id"]
        for image in whole["images"]
        for annotation in whole["annotations"]
        if annotation["image_id"] == image["id"]
    }
    names = {image["id"]: image["sonoforge"]["id"] for image in part["images"]}
    assert part["annotations"]
    assert all(numbers[names[each["image_id"]]] == each["category_id"] for each in part["annotations"])
    assert [image["id"] for image in part["images"]] == list(range(1, len(part["images"]) + 1))


def test_only_the_files_of_a_split_travel(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    other = sum(
        file.bytes for file in version.files if file.path.startswith(("data/train", "data/test", "coco/", "report"))
    )
    pulled = pull(store, version, tmp_path / "out", split="val")
    assert pulled.bytes_moved == sum(file.bytes for file in version.files) - other
    assert planned_bytes(version, split="val") == pulled.bytes_moved
    assert planned_bytes(version, where="true") is None


def test_one_row_in_a_hundred_moves_less_than_one_byte_in_twenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder", 800, px=128))[0]
    arrived: list[int] = []
    tap(store, monkeypatch, lambda key, view: arrived.append(len(view)))
    pulled = pull(store, version, tmp_path / "out", where="seed % 100 = 3")
    assert 0.005 < pulled.rows / version.kept < 0.015
    total = sum(file.bytes for file in version.files)
    assert pulled.bytes_moved <= sum(arrived) <= 0.05 * total


def test_a_condition_that_no_row_meets_is_an_error(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    with pytest.raises(SelectionError, match=r"no row of demo@1 \(\d+ rows\) meets .*label = 'other'"):
        pull(store, version, tmp_path / "out", where="label = 'other'")
    with pytest.raises(SelectionError, match="did you mean label"):
        pull(store, version, tmp_path / "out", where="lable = 'other'")
    with pytest.raises(SelectionError, match="expected train, val, test"):
        pull(store, version, tmp_path / "out", split="all")
    assert not (tmp_path / "out").exists()


def test_a_version_without_an_index_says_so(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    plain = version.model_copy(update={"files": [file for file in version.files if file.path != "index.parquet"]})
    with pytest.raises(SelectionError, match=r"published without index\.parquet"):
        pull(store, plain, tmp_path / "out", where="true")
    assert left(tmp_path) == []


# Again


def test_pulling_again_transfers_nothing(store: Store, version: Manifest, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"split": "train"}, {"where": "label = 'benign'"}, {"format": "coco"}]
    for number, option in enumerate(options):
        out = tmp_path / f"out{number}"
        pull(store, version, out, **option)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        pulled = pull(store, version, out, **option, advance=lambda count: pytest.fail(f"{count} bytes moved"))
        assert (pulled.bytes_moved, pulled.up_to_date) == (0, True)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_files_that_are_missing_or_damaged_are_fetched_again_alone(
    store: Store, version: Manifest, tmp_path: Path
) -> None:
    out = pull(store, version, tmp_path / "out").path
    whole = files(out)
    (out / "metadata.parquet").unlink()
    damaged = bytearray((out / "ledger.parquet").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (out / "ledger.parquet").write_bytes(damaged)
    (out / "mine.txt").write_text("mine")
    untouched = (out / SHARD).stat()
    pulled = pull(store, version, out)
    sizes = {file.path: file.bytes for file in version.files}
    assert pulled.bytes_moved == sizes["metadata.parquet"] + sizes["ledger.parquet"]
    assert files(out) == {**whole, "mine.txt": b"mine"}
    assert (out / SHARD).stat().st_ino == untouched.st_ino
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "options",
    [{"split": "train"}, {"where": "label = 'benign'"}, {"format": "coco"}, {"format": "coco", "split": "val"}],
)
def test_files_that_were_made_here_are_made_again(
    here: tuple[Store, Manifest], tmp_path: Path, options: dict[str, Any]
) -> None:
    out = pull(*here, tmp_path / "out", **options).path
    whole = files(out)
    for victim in sorted(path for path in out.rglob("*") if path.is_file() and path.name not in LAID)[::3]:
        victim.write_bytes(b"damaged")
    (out / "SHA256SUMS").write_text("damaged")
    assert not pull(*here, out, **options).up_to_date
    assert files(out) == whole
    assert pull(*here, out, **options).up_to_date


def test_a_file_of_the_user_is_left_alone_and_no_error(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    out = pull(*here, tmp_path / "out").path
    (out / "data" / "notes.txt").write_text("mine")
    assert pull(*here, out).up_to_date
    assert (out / "data" / "notes.txt").read_text() == "mine"


def test_a_folder_with_something_else_is_never_touched(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match=r"not an empty folder.*holds mine"):
        pull(*here, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not a folder"):
        pull(*here, tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(ValueError, match="not a folder"):
        pull(*here, tmp_path / "link")
    assert files(tmp_path / "out") == {"mine": b"mine"}


def test_a_folder_with_another_version_is_refused_with_what_it_holds(
    here: tuple[Store, Manifest], tmp_path: Path
) -> None:
    store, version = here
    out = pull(store, version, tmp_path / "out").path
    second = publish(store, "demo", tmp_path / "folder2", fill(tmp_path / "folder2", 30, seed=1))[0]
    with pytest.raises(ValueError, match=r"holds demo@1 \(--format parquet\), and demo@2 \(--format parquet\)"):
        pull(store, second, out)
    with pytest.raises(ValueError, match=r"demo@1 \(--format parquet --split val\) is asked for"):
        pull(store, version, out, split="val")
    assert pull(store, version, out).up_to_date


def test_a_damaged_statement_of_what_is_there_is_not_believed(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    out = pull(*here, tmp_path / "out").path
    (out / "version.json").write_bytes((out / "version.json").read_bytes().replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(CorruptFileError, match=r"version\.json is damaged"):
        pull(*here, out)


def test_a_retracted_version_is_refused_with_the_reason(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    pull(store, version, tmp_path / "out")
    retract(store, version, "a patient withdrew")
    for out in ("out", "new"):
        with pytest.raises(RetractedError, match="a patient withdrew"):
            pull(store, version, tmp_path / out)
    assert left(tmp_path) == ["out"]


# Interrupted


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (KeyboardInterrupt(), {}),
        (OSError(errno.ENOSPC, "No space left on device"), {"format": "coco"}),
        (OSError(errno.ENOSPC, "No space left on device"), {"where": "label = 'benign'"}),
    ],
)
def test_an_interrupted_pull_goes_on_where_it_stopped(
    store: Store, version: Manifest, tmp_path: Path, stop: BaseException, options: dict[str, Any]
) -> None:
    moved: list[int] = []

    def interrupt(count: int) -> None:
        moved.append(count)
        if len(moved) == 3:
            raise stop

    expected = StoreFullError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        pull(store, version, tmp_path / "out", advance=interrupt, **options)
    assert not (tmp_path / "out").exists()
    first = sum(moved)
    second = pull(store, version, tmp_path / "out", **options)
    fresh = pull(store, version, tmp_path / "fresh", **options)
    assert files(second.path) == files(fresh.path)
    lost = 0 if "where" not in options else fresh.bytes_moved - planned_thin(version)  # one chunk holds all pictures
    assert first + second.bytes_moved <= fresh.bytes_moved + lost
    assert left(tmp_path) == ["fresh", "out"]


def planned_thin(version: Manifest) -> int:
    return sum(file.bytes for file in version.files if file.path in ("metadata.parquet", "index.parquet", "README.md"))


def throttled(store: Path, out: Path, log: Path, options: dict[str, Any]) -> None:
    """A pull in small steps, which says in a file how many bytes each brought."""
    storage.folder._READ = 16384
    pictures.CHUNK_BYTES = 20_000
    opened = Store(store)
    manifest = open_manifest(opened, "demo@1")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def advance(count: int) -> None:
        os.write(descriptor, f"{count}\n".encode())
        time.sleep(0.004)

    os.write(descriptor, b"0\n")
    pull(opened, manifest, out, advance=advance, **options)


@pytest.mark.parametrize("options", [{}, {"split": "train"}, {"format": "coco"}, {"where": "label <> 'normal'"}])
def test_a_pull_that_is_killed_at_any_moment_goes_on(tmp_path: Path, options: dict[str, Any]) -> None:
    store = Store(tmp_path / "store")
    here = store, publish(store, "demo", tmp_path / "folder", fill(tmp_path / "folder", 60, px=128))[0]
    fresh = pull(*here, tmp_path / "fresh", **options)
    log = tmp_path / "log"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.storage.test_pulling"])
    rng = random.Random(str(options))
    killed = 0
    for attempt in range(12):
        child = context.Process(target=throttled, args=(tmp_path / "store", tmp_path / "out", log, options))
        before = log.stat().st_size if log.exists() else 0
        child.start()
        while child.is_alive() and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.001)
        if attempt < 11:
            time.sleep(rng.uniform(0, 0.05))
            child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        child.close()
        if (tmp_path / "out").exists():
            assert files(tmp_path / "out") == files(fresh.path)  # complete as soon as it is there
            break
    assert killed >= 2
    assert files(tmp_path / "out") == files(fresh.path)
    moved = sum(int(line) for line in log.read_text().split())
    # With a process die what its four transfers have not handed to the system yet, and three chunks of pictures.
    lost = 4 * io.DEFAULT_BUFFER_SIZE + (3 * 20_000 if "where" in options else 0)
    assert moved <= fresh.bytes_moved + killed * lost
    assert pull(*here, tmp_path / "out", **options).up_to_date
    assert [name for name in left(tmp_path) if name.startswith(".")] == []


def hold(out: Path, log: Path) -> None:
    with claimed(out):
        log.write_text("held")
        time.sleep(60)


def test_a_second_pull_to_one_place_is_told_to_wait_and_a_dead_one_is_not_waited_for(
    here: tuple[Store, Manifest], tmp_path: Path
) -> None:
    child = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "out", tmp_path / "log"))
    child.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    with pytest.raises(BusyError, match=r"another pull to .*out is running"):
        pull(*here, tmp_path / "out")
    with pytest.raises(BusyError):
        pull(*here, tmp_path / "out", split="val")
    assert pull(*here, tmp_path / "beside").rows > 0
    child.kill()
    child.join()
    assert pull(*here, tmp_path / "out").rows > 0
    assert [name for name in left(tmp_path) if name.startswith(".")] == []


def test_what_another_selection_left_is_not_mixed_in(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    for options in ({}, {"split": "val"}, {"where": "label = 'benign'"}):
        with pytest.raises(KeyboardInterrupt):
            pull(*here, tmp_path / "out", advance=interrupt, **options)
    assert len([name for name in left(tmp_path) if name.endswith(".partial")]) == 3
    out = pull(*here, tmp_path / "out", split="test").path
    fresh = pull(*here, tmp_path / "fresh", split="test").path
    assert files(out) == files(fresh)
    assert left(tmp_path) == ["fresh", "out"]  # the others can never become `out` now


# Damaged and hostile


@pytest.mark.parametrize("options", [{}, {"format": "coco"}, {"where": "true"}])
def test_a_flipped_byte_stops_the_pull(
    store: Store, version: Manifest, tmp_path: Path, options: dict[str, Any]
) -> None:
    file = next(file for file in version.files if file.path.startswith("data/train"))
    right = store.read(file.key)
    place = pq.read_table(tmp_path / "folder/index.parquet").to_pylist()[0]["image_at"]
    store.put(file.key, right[: place + 20] + bytes([right[place + 20] ^ 1]) + right[place + 21 :])
    said = "differs from its digest" if options.get("where") else "data/train.* disagrees with its manifest"
    with pytest.raises(CorruptFileError, match=said):
        pull(store, version, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    store.put(file.key, right)
    assert pull(store, version, tmp_path / "out", **options).rows == version.kept


@pytest.mark.parametrize("options", [{}, {"where": "label = 'benign'"}])
def test_a_byte_that_flips_on_its_way_once_is_fetched_again(
    here: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    store, version = here
    flipped: set[str] = set()

    def flip(key: str, view: memoryview) -> None:
        if key not in flipped:
            flipped.add(key)
            view[len(view) // 2] ^= 1

    tap(store, monkeypatch, flip)
    out = pull(store, version, tmp_path / "out", **options).path
    assert flipped
    monkeypatch.undo()
    assert files(out) == files(pull(store, version, tmp_path / "fresh", **options).path)


def test_a_file_that_is_gone_stops_the_pull(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    store.delete(next(file.key for file in version.files if file.path == "data/train-00000-of-00001.parquet"))
    with pytest.raises(CorruptFileError, match="is gone from the store"):
        pull(store, version, tmp_path / "out")
    with pytest.raises(CorruptFileError, match="is gone from the store"):
        pull(store, version, tmp_path / "out", where="true")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path",
    ["../evil", "/tmp/evil", "data/../../evil", "a\\..\\evil", "C:/evil", "data//evil", "", "version.json", "ABOUT/x"],
)
@pytest.mark.parametrize("format", ["parquet", "coco", "webdataset"])
def test_a_manifest_that_points_outside_is_refused_before_anything_is_copied(
    here: tuple[Store, Manifest], tmp_path: Path, path: str, format: PullFormat
) -> None:
    store, version = here
    evil = version.files[-1].model_copy(update={"path": path})
    with pytest.raises(UnsafePathError):
        pull(store, version.model_copy(update={"files": [*version.files, evil]}), tmp_path / "out", format=format)
    assert left(tmp_path) == []


def test_a_manifest_with_a_key_outside_the_store_is_refused(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    (tmp_path / "secret").write_text("secret")
    evil = version.files[-1].model_copy(update={"key": "../secret"})
    with pytest.raises(UnsafePathError, match="could leave the store"):
        pull(store, version.model_copy(update={"files": [evil]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_lists_a_path_twice_is_refused(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, version = here
    again = version.files[0].model_copy(update={"path": version.files[0].path.upper()})
    with pytest.raises(UnsafePathError, match="same path twice"):
        pull(store, version.model_copy(update={"files": [*version.files, again]}), tmp_path / "out")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "", ".hidden", "a/b", "nul"])
@pytest.mark.parametrize("format", ["coco", "webdataset"])
def test_an_id_that_is_a_path_writes_nothing(tmp_path: Path, name: str, format: PullFormat) -> None:
    if format == "webdataset":
        pytest.importorskip("storage.formats.webdataset")
    store, version = publish_damaged(tmp_path, changed(lambda rows: rows[0].update(id=name)))
    with pytest.raises(UnsafePathError, match="cannot name a file"):
        pull(store, version, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


def test_ids_that_repeat_are_refused(tmp_path: Path) -> None:
    store, version = publish_damaged(tmp_path, changed(lambda rows: rows[0].update(id=rows[1]["id"])))
    with pytest.raises(CorruptFileError, match="occurs twice"):
        pull(store, version, tmp_path / "out", format="coco")


@pytest.mark.parametrize(
    "change",
    [
        {"image_at": -1},
        {"image_at": 2**40},
        {"image_bytes": 2**31 - 1},
        {"image_bytes": 0},
        {"file": "data/../README.md"},
        {"file": None},
        {"image_blake3": None},
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    store, version = publish_damaged(tmp_path, changed(lambda rows: rows[0].update(change), "index.parquet"))
    with pytest.raises(CorruptFileError, match="which cannot be"):
        pull(store, version, tmp_path / "out", where="true")
    assert not (tmp_path / "out").exists()


def test_pulling_to_a_full_disk_says_so_once(here: tuple[Store, Manifest], tmp_path: Path) -> None:
    import storage.landing

    def full(*_: object) -> Iterator[None]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.landing.Partial, "seal", full)
        with pytest.raises(StoreFullError, match=r"no space left.*what is finished is kept"):
            pull(*here, tmp_path / "out")
    assert pull(*here, tmp_path / "out").bytes_moved == 0


MEMORY = """
import resource, sys
from pathlib import Path
from storage.pulling import pull
from storage.store import Store
from storage.versions import open_manifest
store = Store(sys.argv[1])
pull(store, open_manifest(store, "many"), Path(sys.argv[2]), where="seed >= 0", format=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def many(count: int) -> Iterator[pa.RecordBatch]:
    """Rows that differ in nothing but their number."""
    (one,) = table(1, px=8).to_pylist()
    for start in range(0, count, 1000):
        numbers = range(start, min(count, start + 1000))
        rows = [one | {"id": f"many-{number:08d}", "seed": number} for number in numbers]
        yield pa.RecordBatch.from_pylist(rows, schema=table(1, px=8).schema)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    used: dict[tuple[str, int], int] = {}
    for count in (10_000, 100_000):
        store = Store(tmp_path / f"store{count}")
        with store.staging() as folder:
            written = parquet.write(many(count), folder / "version")
            about = ABOUT.model_copy(update={"planned": count, "kept": count, "written": written})
            publish(store, "many", folder / "version", about)
        for format in ("parquet", "coco"):
            out = tmp_path / f"{format}{count}"
            command = [sys.executable, "-c", MEMORY, str(tmp_path / f"store{count}"), str(out), format]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            used[format, count] = int(done.stdout)
    for format in ("parquet", "coco"):
        assert used[format, 100_000] <= 1.15 * used[format, 10_000], used
