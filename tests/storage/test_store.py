import errno
import hashlib
import os
import pickle
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.backends import RemoteFolder
from storage.errors import (
    CorruptFileError,
    ExclusiveCreateError,
    StoreFullError,
    StoreUnavailableError,
    UnsafePathError,
)
from storage.records import IMAGE
from storage.store import Store


def test_what_is_put_is_read_listed_and_fetched(store: Store, tmp_path: Path) -> None:
    store.put("a/b/one.txt", b"one")
    store.put("a/two.txt", b"two")
    assert store.read("a/b/one.txt") == b"one"
    assert store.list() == ["a/b/one.txt", "a/two.txt"]
    assert store.list("a/b") == ["a/b/one.txt"]
    assert store.folders() == ["a"]
    assert store.folders("a") == ["b"]
    assert store.size("a/two.txt") == 3
    assert store.fetch("a/two.txt", tmp_path / "two.txt").startswith("3fc4ccfe7458")
    assert (tmp_path / "two.txt").read_bytes() == b"two"


def test_what_is_not_there_is_absent_everywhere(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"x")
    assert not store.exists("a")
    assert not store.exists("a/c")
    assert store.list("c") == []
    assert store.folders("c") == []
    store.delete("c")
    for read in (
        store.read,
        lambda key: store.fetch(key, tmp_path / "x"),
        lambda key: list(store.chunks(key)),
    ):
        with pytest.raises(FileNotFoundError, match="nothing under this key"):
            read("c")
    assert list(tmp_path.glob("*x*")) == []


def test_a_put_replaces_and_a_delete_removes(store: Store) -> None:
    store.put("key", b"old")
    store.put("key", b"new")
    assert store.read("key") == b"new"
    store.delete("key")
    assert not store.exists("key")


def test_only_the_first_create_writes(store: Store) -> None:
    assert store.create("versions/1", b"first")
    assert not store.create("versions/1", b"second")
    assert store.read("versions/1") == b"first"


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(lambda index: store.create("key", f"creator {index}".encode()), range(12)))
    assert won.count(True) == 1
    assert store.read("key") == f"creator {won.index(True)}".encode()


def test_an_empty_create_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="empty object cannot be created exclusively"):
        store.create("key", b"")


def test_files_of_several_chunks_arrive_whole(store: Store, tmp_path: Path) -> None:
    data = os.urandom(2**20) * 17
    (tmp_path / "large").write_bytes(data)
    counted: list[int] = []
    store.put_file("large", tmp_path / "large")
    store.fetch("large", tmp_path / "back", counted.append)
    assert (tmp_path / "back").read_bytes() == data
    assert sum(counted) == len(data)
    assert len(counted) > 1


def test_an_empty_file_arrives_and_comes_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.put_file("empty", tmp_path / "empty")
    assert store.size("empty") == 0
    assert store.read("empty") == b""
    assert list(store.ranges("empty", [])) == []
    for size in (None, 0):
        assert store.fetch("empty", tmp_path / f"back{size}", size=size) == hashlib.sha256().hexdigest()
        assert (tmp_path / f"back{size}").read_bytes() == b""


def test_a_create_that_finds_its_own_bytes_has_won(store: Store) -> None:
    assert store.create("key", b"mine")
    assert store.create("key", b"mine")
    assert not store.create("key", b"theirs")


def test_walk_gives_sizes_and_times(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    for index in range(5):
        store.put(f"a/{index}/x", b"x" * index if index else b"")
    store.put("b", b"1")
    found = {stored.key: stored for stored in store.walk("a")}
    assert {key: stored.bytes for key, stored in found.items()} == {f"a/{index}/x": index for index in range(5)}
    assert all(before < stored.modified < datetime.now(UTC) + timedelta(minutes=1) for stored in found.values())
    assert {stored.key for stored in store.walk()} == {*found, "b"}
    assert list(store.walk("absent")) == []


def test_many_are_deleted_and_absent_ones_do_not_matter(store: Store) -> None:
    for index in range(12):
        store.put(f"a/{index}", b"x")
    store.delete_many(f"a/{index}" for index in range(20))
    assert store.list() == []


def test_a_torn_object_is_replaced(store: Store, tmp_path: Path) -> None:
    data = os.urandom(20 * 2**20)  # two parts on S3
    for name, whole in (("large", data), ("small", data[:1000])):
        path = tmp_path / name
        path.write_bytes(whole)
        for torn in (whole[:-1], whole[:500] + b"?" + whole[501:]):
            (tmp_path / "torn").write_bytes(torn)
            store.put_file(name, tmp_path / "torn")
            store.put_file(name, path)
            assert store.read(name) == whole


def test_what_is_there_already_is_not_sent_again(store: Store, tmp_path: Path) -> None:
    if store.url.startswith("memory"):
        pytest.skip("fsspec's memory keeps no digest to compare")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(17 * 2**20))
    store.put_file("key", path)
    (before,) = store.walk()
    time.sleep(1.1)  # S3 tells times in whole seconds
    store.put_file("key", path)
    assert list(store.walk()) == [before]


def test_files_are_staged_and_their_folder_goes(store: Store) -> None:
    with store.staging() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"staged")
        store.put_file("key", folder / "deep" / "file")
        assert store.list() == ["key"]
    assert not folder.exists()
    assert store.read("key") == b"staged"
    with pytest.raises(RuntimeError), store.staging() as folder:
        raise RuntimeError
    assert not folder.exists()


def test_a_store_is_pickled_and_survives_a_fork(store: Store) -> None:
    store.put("key", b"x")
    if store.url.startswith("memory"):
        pytest.skip("memory is this process's own")
    assert pickle.loads(pickle.dumps(store)).read("key") == b"x"  # noqa: S301 - our own bytes
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read("key") == b"x" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.read("key") == b"x"


def test_a_missing_file_to_store_is_not_called_a_missing_key(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file to store"):
        store.put_file("key", tmp_path / "absent")


def test_tables_come_back_whole_by_column_and_in_batches(store: Store) -> None:
    images = pa.array([{"bytes": bytes([index]), "path": None} for index in range(5)], IMAGE)
    table = pa.table({"id": [f"{index}" for index in range(5)], "image": images, "reasons": [["a"], [], ["b"], [], []]})
    digest = store.put_table("t.parquet", table)
    assert store.open_table("t.parquet").equals(table)
    assert store.open_table("t.parquet", ["id"]).column_names == ["id"]
    assert [batch.num_rows for batch in store.batches("t.parquet", rows=2)] == [2, 2, 1]
    assert store.put_table("again.parquet", pa.concat_tables([table[:2], table[2:]])) == digest


def test_a_file_that_is_no_table_is_called_corrupt(store: Store) -> None:
    store.put("t.parquet", b"not Parquet at all")
    with pytest.raises(CorruptFileError, match=r"t\.parquet is no readable Parquet file"):
        store.open_table("t.parquet")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a\\..\\b", "a\nb", "a\0"])
def test_keys_that_could_leave_the_store_are_refused(store: Store, key: str) -> None:
    for operation in (store.read, store.exists, store.delete, store.uri, lambda key: store.put(key, b"x")):
        with pytest.raises(UnsafePathError, match="could leave the store"):
            operation(key)


def test_the_probe_passes_and_leaves_nothing(store: Store) -> None:
    store.probe()
    store.probe()
    assert store.list() == []


def test_the_probe_refuses_a_backend_that_ignores_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MemoryFileSystem.pipe_file

    def careless(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        original(self, path, value, mode="overwrite", **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", careless)
    with pytest.raises(ExclusiveCreateError, match=r"memory://careless lets a second writer replace"):
        Store("memory://careless").probe()


def test_the_probe_refuses_a_backend_that_looks_and_then_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: RemoteFolder, key: str, data: bytes) -> bool:
        if self.size(key) is not None:
            return False
        time.sleep(0.05)
        self.put(key, data)
        return True

    monkeypatch.setattr(RemoteFolder, "create", hasty)
    with pytest.raises(ExclusiveCreateError, match=r"memory://hasty lets a second writer replace"):
        Store("memory://hasty").probe()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_keeps_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store(tmp_path / "store")
    store.put("key", b"old")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError, match=r"no space left.*Free some space.*what is finished is kept"):
            store.put("key", b"new")
        with pytest.raises(StoreFullError):
            store.create("other", b"new")
        with pytest.raises(StoreFullError):
            store.put_file("other", Path(__file__))
    assert store.read("key") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["key"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_may_not_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreUnavailableError, match=r"cannot write .*Check the permissions"):
        Store(tmp_path / "store").put("key", b"x")


def test_a_store_below_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailableError, match="cannot write"):
        Store(tmp_path / "file").put("key", b"x")


def test_a_disk_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ExclusiveCreateError, match="without hard links"):
        Store(tmp_path).probe()


def test_a_server_that_does_not_answer_is_unavailable() -> None:
    nobody = Store("s3://bucket/prefix", patience_s=0.2, key="a", secret="b", endpoint_url="http://127.0.0.1:9")
    for operation in (
        nobody.list,
        nobody.folders,
        nobody.probe,
        lambda: nobody.read("key"),
        lambda: nobody.exists("k"),
    ):
        with pytest.raises(StoreUnavailableError, match="Check that the place is there and reachable"):
            operation()


def test_missing_credentials_say_where_to_put_them(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreUnavailableError, match=r"credentials.*AWS_\* variables"):
        Store(s3_environment, anon=False, skip_instance_cache=True).put("key", b"x")


def test_a_bucket_that_is_not_there_is_named(s3_environment: str) -> None:
    store = Store("s3://sonoforge-no-such-bucket/x")
    for operation in (store.probe, store.folders, store.list):
        with pytest.raises(StoreUnavailableError, match="no such bucket"):
            operation()


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA123:topsecret@bucket/prefix",
        "simplecache::s3://a:topsecret@b",
        "https://h/b?X-Amz-Signature=topsecret",
    ],
)
def test_credentials_in_the_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="holds credentials") as caught:
        Store(url)
    assert "topsecret" not in str(caught.value)


def test_secret_options_are_in_no_message() -> None:
    store = Store(
        "s3://bucket/prefix",
        patience_s=0,
        key="AKIDtopsecret1",
        secret="topsecret2",
        client_kwargs={"aws_session_token": "topsecret3"},
        endpoint_url="http://127.0.0.1:9/topsecret2",
    )
    with pytest.raises(StoreUnavailableError) as caught:
        store.read("key")
    shown = f"{store!r} {store.url} " + "".join(traceback.format_exception(caught.value))
    assert "127.0.0.1:9/[hidden]" in shown
    assert "topsecret" not in shown


def test_a_protocol_nobody_knows_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError, match="no store this installation can open"):
        Store("nonsense://x")


def test_addresses_are_what_other_tools_open(tmp_path: Path) -> None:
    assert Store(tmp_path).uri("a/b") == str(tmp_path / "a" / "b")
    assert Store(f"file://{tmp_path}").uri("a") == str(tmp_path / "a")
    assert Store("s3://bucket/prefix/").uri("a") == "s3://bucket/prefix/a"
