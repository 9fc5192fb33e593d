import errno
import os
import time
from pathlib import Path

import pytest

from storage.folder import LocalFolder
from storage.store import Store


def test_a_staged_file_is_not_copied_and_can_no_longer_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.staging() as folder:
        path = folder / "file"
        path.write_bytes(b"staged")
        store.put_file("a/key", path)
        stored = Path(store.uri("a/key"))
        assert stored.stat().st_ino == path.stat().st_ino
        assert not stored.stat().st_mode & 0o222
    assert stored.stat().st_nlink == 1
    assert stored.read_bytes() == b"staged"


def test_a_file_from_elsewhere_is_copied(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    store.put_file("key", path)
    path.write_bytes(b"changed later")
    assert store.read("key") == b"mine"


def test_a_disk_without_links_is_copied_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path)
    with store.staging() as folder:
        (folder / "file").write_bytes(b"staged")
        store.put_file("key", folder / "file")
    assert store.read("key") == b"staged"


def test_what_is_stored_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    done: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")

    def noted_link(source: Path, target: Path) -> None:
        link(source, target)
        done.append("link")

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        done.append("rename")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    monkeypatch.setattr(os, "replace", noted_replace)
    store.put("a", b"x")
    assert done == ["file", "rename", "folder"]
    done.clear()
    store.create("b", b"x")
    assert done == ["file", "link", "folder"]
    with store.staging() as folder:
        (folder / "file").write_bytes(b"x")
        done.clear()
        store.put_file("c", folder / "file")
    assert done == ["file", "link", "rename", "folder"]
    done.clear()
    store.put("new/deep/d", b"x")
    assert done == ["file", "folder", "folder", "rename", "folder"]


def test_leftovers_of_killed_writers_are_swept_when_old_and_nobodys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staging() as alive:
        (alive / "file").write_bytes(b"x")
        dead, fresh, loose = tmp_path / ".tmp/staging-dead", tmp_path / ".tmp/staging-fresh", tmp_path / ".tmp/loose"
        for folder in (dead, fresh):
            folder.mkdir()
            (folder / "file").write_bytes(b"x")
        loose.write_bytes(b"x")
        long_ago = time.time() - 2 * 24 * 3600
        for path in (alive, dead, loose):
            os.utime(path, (long_ago, long_ago))
        with store.staging() as second:
            assert {path.name for path in (tmp_path / ".tmp").iterdir()} == {alive.name, second.name, fresh.name}
        assert (alive / "file").read_bytes() == b"x"


def test_links_in_a_store_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"x")
    store = Store(tmp_path / "store")
    store.put("a/key", b"x")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "store" / "broken").symlink_to(tmp_path / "nowhere")
    assert store.list() == ["a/key"]


def test_what_is_deleted_while_it_is_listed_hides_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index in range(20):
        store.put(f"a/{index}", b"x")
    listing = store.walk("a")
    seen = {next(listing).key}
    gone = next(f"a/{index}" for index in range(20) if f"a/{index}" not in seen)
    store.delete(gone)
    seen |= {stored.key for stored in listing}
    assert seen | {gone} == {f"a/{index}" for index in range(20)}


def test_a_read_past_the_end_gives_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123")
    view = memoryview(bytearray(10))
    assert LocalFolder(tmp_path).fill("key", 2, view) == 2
    assert bytes(view[:2]) == b"23"
