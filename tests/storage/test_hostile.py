"""What somebody who may write the store can do to those who read it: nothing but make them refuse, clearly."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import keys
from storage.errors import CorruptFileError, StorageError, UnsafePathError
from storage.images import encode_grey
from storage.manifests import read
from storage.pulling import pull
from storage.records import Manifest, parquet_options
from storage.store import Store
from storage.verifying import verify
from storage.versions import open_manifest
from tests.storage.forged import SHARD, Damage, Rows, changed, forge, publish_damaged, replaced, sealed

SHA = "0" * 64
FORMATS = ["parquet", "coco", "webdataset"]
Content = dict[str, Any]


def _path(*paths: str) -> Callable[[Content], None]:
    """Rename the first files of a manifest."""

    def change(content: Content) -> None:
        for file, path in zip(content["files"], paths, strict=False):
            file["path"] = path

    return change


def _key(key: str) -> Callable[[Content], None]:
    return lambda content: content["files"][0].update(key=key)


def _file(**values: object) -> Callable[[Content], None]:
    return lambda content: content["files"][0].update(values)


def _manifest(**values: object) -> Callable[[Content], None]:
    return lambda content: content.update(values)


PATHS = {
    "../evil": "could leave its folder",
    "a/../../evil": "could leave its folder",
    "/etc/passwd": "could leave its folder",
    "//evil": "could leave its folder",
    "": "could leave its folder",
    ".": "could leave its folder",
    "..": "could leave its folder",
    "a/./b": "could leave its folder",
    "a//b": "could leave its folder",
    "a/": "could leave its folder",
    "C:\\evil": "could leave its folder",
    "C:/evil": "could leave its folder",
    "\\\\server\\share": "could leave its folder",
    "..\\evil": "could leave its folder",
    "CON": "could leave its folder",
    "data/nul.parquet": "could leave its folder",
    "COM1": "could leave its folder",
    "a:b": "could leave its folder",
    "a\0b": "could leave its folder",
    "a\nb": "could leave its folder",
    "a\x1b[2Jb": "could leave its folder",
    "a\u202eb": "could leave its folder",
    " a": "could leave its folder",
    "a.": "could leave its folder",
    "a*": "could leave its folder",
    "x" * 300: "could leave its folder",
    "/".join(["x"] * 5000): "could leave its folder",
    "\ud800": "sealed JSON",
}
MANIFESTS = {
    "a path twice": (_path("a", "a"), "same path twice"),
    "a path twice but for capitals": (_path("README.md", "readme.MD"), "same path twice"),
    "a path twice but for its accents": (_path("é", "e\u0301"), "same path twice"),
    "a file that is a folder": (_path("a", "a/b"), "is a file and a folder"),
    "a file that is a folder but for capitals": (_path("A/b/c", "a/B"), "is a file and a folder"),
    "a key that climbs": (_key("../../etc/passwd"), "is kept under"),
    "a key that climbs from the objects": (_key(f"demo/objects/../../{SHA}"), "is kept under"),
    "an absolute key": (_key("/etc/passwd"), "is kept under"),
    "a key of another dataset": (_key(f"other/objects/{SHA}"), "is kept under"),
    "a key of a build": (_key("builds/train/secret/weights"), "is kept under"),
    "a key of another object": (_key(f"demo/objects/{SHA}"), "is kept under"),
    "no sha256": (_file(sha256="abc"), "sha256"),
    "a sha256 that climbs": (_file(sha256="../" + "a" * 61), "sha256"),
    "a sha256 in capitals": (_file(sha256="A" * 64), "sha256"),
    "negative bytes": (_file(bytes=-1), "bytes"),
    "more bytes than there are": (_file(bytes=10**18), "bytes"),
    "bytes beyond any integer": (_file(bytes=10**40), "bytes"),
    "bytes that are no number": (_file(bytes="many"), "bytes"),
    "negative rows": (_file(rows=-5), "rows"),
    "too many rows": (_file(rows=10**15), "rows"),
    "rows that are not a number": (_file(rows=float("nan")), "sealed JSON"),
    "infinite rows": (_file(rows=float("inf")), "sealed JSON"),
    "unknown fields of a file": (_file(run="rm -rf /"), "Extra inputs"),
    "no files": (_manifest(files=None), "files"),
    "too many planned": (_manifest(planned=10**15), "planned"),
    "negative kept": (_manifest(kept=-1), "kept"),
    "negative rejections": (_manifest(rejected={"a": -1}), "rejected"),
    "rejections that are not a number": (_manifest(rejected={"a": float("nan")}), "sealed JSON"),
    "another dataset": (_manifest(dataset="other"), "is kept under"),
    "a dataset that climbs": (_manifest(dataset="../other"), "cannot name a dataset"),
    "another version": (_manifest(version=7), "calls itself demo@7"),
    "a version that is none": (_manifest(version="../7"), "version"),
    "a newer format": (_manifest(format="sonoforge-manifest-99"), "a newer one may"),
    "unknown fields": (_manifest(hook="evil"), "Extra inputs"),
    "half a character": (_manifest(licences=["\ud800"]), "sealed JSON"),
    "scores that are not a number": (_manifest(recipe={"a": float("nan")}), "sealed JSON"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with things in it that nobody may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/mine").write_text("mine")
    return tmp_path


@pytest.fixture
def guarded(place: Path) -> Iterator[Callable[[], None]]:
    """Nothing but `out`, the store and what pulls leave to be gone on with may be there afterwards."""

    def check() -> None:
        assert sorted(path.name for path in (place / "outside").iterdir()) == ["mine"]
        assert (place / "outside/mine").read_text() == "mine"
        strange = [
            path.name
            for path in place.iterdir()
            if path.name not in ("outside", "store", "folder", "out") and not path.name.endswith((".partial", ".lock"))
        ]
        assert strange == []

    yield check
    check()


def _forged(place: Path, change: Callable[[Content], object]) -> Store:
    store, version = publish_damaged(place)
    forge(store, version, change)
    return store


def _refused(store: Store, place: Path, said: str) -> None:
    """Every way to a version ends in one storage error that says what is wrong."""
    for look in (lambda: open_manifest(store, "demo@1"), lambda: open_manifest(store, "demo@latest")):
        with pytest.raises(StorageError) as caught:
            look()
        assert said in str(caught.value)
        assert len(str(caught.value)) < 2000
    assert not (place / "out").exists()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:20])
def test_paths_in_a_sealed_manifest_are_refused(place: Path, guarded: Callable[[], None], path: str) -> None:
    _refused(_forged(place, _path(path)), place, PATHS[path])


@pytest.mark.parametrize("path", [path for path in PATHS if path.isprintable()], ids=lambda path: ascii(path)[:20])
def test_a_pull_checks_paths_itself(place: Path, guarded: Callable[[], None], path: str) -> None:
    store, version = publish_damaged(place)
    evil = version.files[0].model_copy(update={"path": path})
    for format in FORMATS:
        with pytest.raises(UnsafePathError, match="could leave its folder"):
            pull(store, version.model_copy(update={"files": [*version.files, evil]}), place / "out", format=format)  # type: ignore[arg-type]
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_with_valid_seals_are_refused(place: Path, guarded: Callable[[], None], name: str) -> None:
    change, said = MANIFESTS[name]
    _refused(_forged(place, change), place, said)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"seal": 1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        b'{"seal": "x", "version": 1e999}',
        sealed({"nested": json.loads("[" * 500 + "]" * 500)}),
    ],
    ids=lambda data: ascii(data)[:20],
)
def test_what_is_no_manifest_is_refused(place: Path, guarded: Callable[[], None], data: bytes) -> None:
    store, version = publish_damaged(place)
    store.put(keys.manifest_key("demo", 1), data)
    with pytest.raises(CorruptFileError, match=r"is no manifest|is damaged"):
        open_manifest(store, "demo@1")
    assert any(problem.startswith("manifest: ") for problem in verify(store, version, deep=True))


def test_a_manifest_without_end_is_not_read_to_its_end(
    place: Path, guarded: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, version = publish_damaged(place)
    monkeypatch.setattr("storage.store.SMALL_BYTES", 100)
    with pytest.raises(CorruptFileError, match="has more than 100 bytes"):
        open_manifest(store, "demo@1")
    monkeypatch.undo()
    assert open_manifest(store, "demo@1") == version


# Content of files


def _png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says it is so large, with a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _rows(**values: object) -> Damage:
    return changed(lambda rows: rows[0].update(values))


def _image(data: bytes) -> Damage:
    return changed(lambda rows: rows[0]["image"].update(bytes=data))


def _retable(path: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> Damage:
    def damage(folder: Path) -> None:
        new = change(pq.read_table(folder / path))
        pq.write_table(new, folder / path, **(options or parquet_options(new.schema)))

    return damage


def _retyped(name: str, column: pa.Array | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        new = pa.array(range(rows.num_rows), pa.int64()) if column is None else column
        return rows.set_column(rows.schema.get_field_index(name), name, new)

    return change


def _long(name: str, size: int) -> Callable[[pa.Table], pa.Table]:
    """One value of `size` bytes in every row: nothing as a dictionary, gigabytes unpacked."""

    def change(rows: pa.Table) -> pa.Table:
        return _retyped(name, pa.array(["x" * size] * rows.num_rows))(rows)

    return change


def _twin(rows: Rows) -> None:
    rows[1]["id"] = rows[0]["id"]


def _case_twin(rows: Rows) -> None:
    rows[0]["id"], rows[1]["id"] = "DEMO", "demo"


FILES: dict[str, tuple[Damage, str]] = {
    "an id that climbs": (_rows(id="../../outside/evil"), "cannot name a row"),
    "an absolute id": (_rows(id="/outside/evil"), "cannot name a row"),
    "a hidden id": (_rows(id=".bashrc"), "cannot name a row"),
    "an id with a slash": (_rows(id="a/b"), "cannot name a row"),
    "an id that is a device": (_rows(id="NUL"), "cannot name a row"),
    "an id with a line break": (_rows(id="a\nb"), "cannot name a row"),
    "an endless id": (_rows(id="x" * 5000), "cannot name a row"),
    "no id": (_rows(id=None), "cannot name a row"),
    "an empty id": (_rows(id=""), "cannot name a row"),
    "an id twice": (changed(_twin), "occurs twice"),
    "no image": (_rows(image=None), "does not decode"),
    "no label": (_rows(label=None), "differs in label"),
    "no split": (_rows(split=None), "differs in split"),
    "another split": (_rows(split="../evil"), "differs in split"),
    "an empty image": (_image(b""), "is no PNG"),
    "a PNG of 60000 x 60000": (_image(_png(60000, 60000)), "60000 x 60000 pixels"),
    "a PNG of no pixels": (_image(_png(0, 0)), "0 x 0 pixels"),
    "a PNG of 2^31 x 2^31": (_image(_png(2**31 - 1, 2**31 - 1)), "pixels, more than"),
    "a PNG without its pixels": (_image(_png(4000, 4000)), "does not decode"),
    "a JPEG": (_image(b"\xff\xd8\xff\xe0" + b"x" * 100), "is no PNG"),
    "a TIFF": (_image(b"II*\0" + b"\0" * 100), "is no PNG"),
    "no Parquet": (replaced(SHARD, b"PAR1" + b"x" * 100 + b"PAR1"), "is no readable Parquet file"),
    "an empty file": (replaced(SHARD, b""), "is no readable Parquet file"),
    "a footer larger than the file": (replaced(SHARD, b"PAR1\xff\xff\xff\x7fPAR1"), "is no readable Parquet file"),
    "a column of another type": (_retable(SHARD, _retyped("id")), "columns differ: id int64"),
    "a column that is missing": (_retable(SHARD, lambda rows: rows.drop_columns("image")), "image missing"),
    "labels of another type": (_retable(SHARD, _retyped("label")), "differs in label"),
    "a table without columns": (_retable(SHARD, lambda rows: rows.select([])), "id missing"),
    "a dictionary that unpacks to gigabytes": (
        _retable(SHARD, _long("organ", 10**7), use_dictionary=True, compression="zstd"),
        "a dictionary of",
    ),
    "a page that unpacks to gigabytes": (
        _retable(SHARD, _long("organ", 2 * 10**7), use_dictionary=False, compression="zstd"),
        "unpacks to",
    ),
    "strings that repeat those before": (
        _retable(
            SHARD,
            _long("organ", 1000),
            use_dictionary=False,
            column_encoding={"organ": "DELTA_BYTE_ARRAY"},
            compression="zstd",
        ),
        "DELTA_BYTE_ARRAY",
    ),
    "a list without end": (
        _retable(
            SHARD,
            lambda rows: _retyped("reasons", pa.array([[None] * 10**6] * rows.num_rows, pa.list_(pa.string())))(rows),
        ),
        "values for",
    ),
    "metadata of another type": (_retable("metadata.parquet", _retyped("label")), "label int64, expected string"),
    "metadata without a split": (
        _retable("metadata.parquet", lambda rows: rows.drop_columns("split")),
        "split missing",
    ),
    "metadata that unpacks to gigabytes": (
        _retable("metadata.parquet", _long("prompt", 10**7), use_dictionary=True, compression="zstd"),
        "a dictionary of",
    ),
    "metadata with an id that climbs": (
        changed(lambda rows: rows[0].update(id="../../outside/evil"), "metadata.parquet"),
        "cannot name a row",
    ),
    "an index of another type": (_retable("index.parquet", _retyped("image_blake3")), "image_blake3 int64"),
    "an index of other rows": (
        changed(lambda rows: rows.reverse(), "index.parquet"),
        "stands where demo-000000 is expected",
    ),
}
INDEX: dict[str, tuple[dict[str, object], str]] = {
    "behind the file": ({"image_at": 10**12}, "does not lie at"),
    "before the file": ({"image_at": -5}, "does not lie at"),
    "longer than the file": ({"image_bytes": 2**31 - 1}, "the index says"),
    "of negative length": ({"image_bytes": -1}, "the index says"),
    "of no length": ({"image_bytes": None}, "in only one of"),
    "without a digest": ({"image_blake3": None}, "in only one of"),
    "with another digest": ({"image_blake3": b"x" * 16}, "another digest"),
    "over another picture": ({"image_at": 200}, "does not lie at"),
    "in no file": ({"file": "data/other.parquet"}, "is expected"),
    "outside": ({"file": "../../outside/mine"}, "is expected"),
    "in a file without a name": ({"file": None}, "is expected"),
    "where none is": ({"background_at": 4, "background_bytes": 4, "background_blake3": b"x" * 16}, "in only one of"),
}


def _pulls(store: Store, version: Manifest, place: Path) -> dict[str, str]:
    """What each kind of pull says; "" where it succeeds, which is right where it does not look at what is wrong."""
    said: dict[str, str] = {}
    for format in FORMATS:
        for where in (None, "label <> 'cyst'"):
            out = place / "out"
            said[f"{format} {where}"] = ""
            try:
                pull(store, version, out, format=format, where=where)  # type: ignore[arg-type]
            except StorageError as error:
                said[f"{format} {where}"] = str(error)
            assert said[f"{format} {where}"].isprintable()
            assert out.exists() == (said[f"{format} {where}"] == "")
            _remove(out)
    return said


def _remove(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", FILES)
def test_files_with_right_digests_are_refused_for_what_they_hold(
    place: Path, guarded: Callable[[], None], name: str
) -> None:
    damage, said = FILES[name]
    store, version = publish_damaged(place, damage)
    problems = verify(store, version, deep=True)
    assert any(said in problem for problem in problems), problems
    assert all(problem.isprintable() and len(problem) < 400 for problem in problems)
    found = _pulls(store, version, place)
    assert found["parquet None"] == ""  # the files as they are, under names that were checked


_CHILD = """
import resource, sys
from pathlib import Path
from storage.errors import StorageError
from storage.manifests import read
from storage.pulling import pull
from storage.store import Store
from storage.verifying import verify

store = Store(sys.argv[1])
manifest = read(store, "demo", 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
problems = verify(store, manifest, deep=True)
assert any("a dictionary of" in problem for problem in problems), problems
for format in ("parquet", "coco", "webdataset"):
    try:
        pull(store, manifest, Path(sys.argv[2]), format=format, where="label <> 'cyst'")
    except StorageError as error:
        assert "a dictionary of" in str(error), error
    else:
        raise AssertionError("pulled")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_few_kilobytes_that_unpack_to_gigabytes_take_no_memory(place: Path, guarded: Callable[[], None]) -> None:
    def inflate(folder: Path) -> None:
        rows = pa.concat_tables([pq.read_table(folder / "metadata.parquet")] * 200)
        text = pa.DictionaryArray.from_arrays(pa.array([0] * rows.num_rows, pa.int32()), pa.array(["x" * 2**20]))
        bomb = rows.set_column(rows.schema.get_field_index("prompt"), "prompt", text)
        pq.write_table(bomb, folder / "metadata.parquet", store_schema=False, compression="zstd")

    store, version = publish_damaged(place, inflate)
    assert next(file for file in version.files if file.path == "metadata.parquet").bytes < 500_000
    command = [sys.executable, "-c", _CHILD, store.url, str(place / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300  # MiB; what is in the file has 3 GiB


@pytest.mark.parametrize("name", INDEX)
def test_an_index_that_lies_is_found_and_never_followed(place: Path, guarded: Callable[[], None], name: str) -> None:
    values, said = INDEX[name]
    store, version = publish_damaged(place, changed(lambda rows: rows[0].update(values), "index.parquet"))
    problems = verify(store, version, deep=True)
    assert any(problem.startswith("index.parquet: ") and said in problem for problem in problems), problems
    found = _pulls(store, version, place)
    for format in FORMATS:
        assert found[f"{format} label <> 'cyst'"], f"{format} took {name}"


# The folder that is pulled to


def _pull_or_refuse(store: Store, version: Manifest, out: Path) -> str:
    """What a pull says that is refused; "" where it is not."""
    try:
        pull(store, version, out)
    except (StorageError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("inside", ["", "data", "README.md"])
def test_a_link_in_the_folder_is_never_followed(place: Path, guarded: Callable[[], None], inside: str) -> None:
    store, version = publish_damaged(place)
    out = place / "out"
    if inside:
        pull(store, version, out)
        _remove(out / inside)
    (out / inside).symlink_to(place / "outside" / ("mine" if inside.endswith(".md") else ""))
    said = _pull_or_refuse(store, version, out)
    assert ("out" in said) == (out / inside).is_symlink()


@pytest.mark.parametrize("inside", ["", "folder", "folder/data", "folder/README.md", "work", "work/arriving"])
def test_a_link_in_the_hidden_folder_is_never_followed(place: Path, guarded: Callable[[], None], inside: str) -> None:
    store, version = publish_damaged(place)
    out = place / "out"

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(store, version, out, advance=stop)
    (partial,) = place.glob(".out.*.partial")
    target = partial / inside
    _remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(place / "outside" / ("mine" if inside.endswith(".md") else ""))
    assert _pull_or_refuse(store, version, out) == ""
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert len(list(out.rglob("*.parquet"))) == sum(file.path.endswith(".parquet") for file in version.files)


def test_a_link_in_place_of_the_lock_makes_no_file(place: Path, guarded: Callable[[], None]) -> None:
    store, version = publish_damaged(place)
    (place / ".out.lock").symlink_to(place / "outside/made")
    assert "out" in _pull_or_refuse(store, version, place / "out")
    assert not (place / "outside/made").exists()


def test_bytes_that_are_not_those_promised_never_arrive(place: Path, guarded: Callable[[], None]) -> None:
    store, version = publish_damaged(place)
    for file in version.files:
        store.put(file.key, os.urandom(file.bytes))
    for format in FORMATS:
        with pytest.raises(CorruptFileError, match="disagrees with its manifest"):
            pull(store, version, place / "out", format=format)  # type: ignore[arg-type]
        assert not (place / "out").exists()


def test_more_bytes_than_promised_do_not_fill_the_disk(place: Path, guarded: Callable[[], None]) -> None:
    store, version = publish_damaged(place)
    file = next(file for file in version.files if file.path == "README.md")
    store.put(file.key, b"x" * 50_000_000)
    moved: list[int] = []
    with pytest.raises(CorruptFileError, match="has more bytes"):
        pull(store, version, place / "out", advance=moved.append)
    assert sum(moved) < 10_000_000


def test_pictures_are_measured_before_they_are_unpacked() -> None:
    from storage import images

    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert images.size(encode_grey(image)) == (8, 8)
    assert np.array_equal(images.decode_grey(encode_grey(image)), image)
    for bad in (_png(60000, 60000), b"", b"x" * 100, encode_grey(image)[:40]):
        with pytest.raises((ValueError, OSError)):
            images.decode_grey(bad)


def test_a_sound_manifest_is_read(place: Path) -> None:
    store, version = publish_damaged(place)
    forge(store, version, lambda content: None)
    assert read(store, "demo", 1) == version
