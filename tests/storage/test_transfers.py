import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from storage.errors import CorruptFileError, StoreFullError
from storage.store import Store


def test_ranges_come_in_the_order_asked_for(store: Store) -> None:
    data = os.urandom(3 * 2**20)
    store.put("key", data)
    spans = [(5, 10), (20, 1), (20, 1), (2**20, 2**20), (0, 3), (7, 0), (len(data) - 4, 4), (10, 100), (8, 4)]
    assert list(store.ranges("key", spans)) == [data[start : start + length] for start, length in spans]
    assert list(store.ranges("key", iter(spans[:1]))) == [data[5:15]]


def test_ranges_of_what_is_not_there_are_an_error(store: Store) -> None:
    store.put("key", b"0123456789")
    with pytest.raises(CorruptFileError, match=r"key ends at byte 10, expected at least 12"):
        list(store.ranges("key", [(0, 3), (8, 4)]))
    with pytest.raises(CorruptFileError, match=r"expected at least 30"):
        list(store.ranges("key", [(20, 10)]))
    with pytest.raises(FileNotFoundError, match="nothing under this key"):
        list(store.ranges("absent", [(0, 1)]))


def test_an_opened_key_is_a_seekable_file(store: Store) -> None:
    store.put("key", b"0123456789")
    with store.open("key") as file:
        assert file.read(3) == b"012"
        assert file.seek(-2, os.SEEK_END) == 8
        assert file.read() == b"89"
        assert file.read(1) == b""
        assert (file.seek(4), file.read(2), file.tell()) == (4, b"45", 6)
    with pytest.raises(FileNotFoundError, match="nothing under this key"), store.open("absent"):
        pass
    with pytest.raises(RuntimeError, match="mine"), store.open("key"):
        raise RuntimeError("mine")
    with pytest.raises(PermissionError, match="mine"), store.open("key"):  # not the store's
        raise PermissionError("mine")


def test_a_fetch_goes_on_where_it_was_broken_off(store: Store, tmp_path: Path) -> None:
    data = os.urandom(2**20 + 17)
    store.put("key", data)
    moved: list[int] = []

    def interrupted(count: int) -> None:
        moved.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch("key", tmp_path / "out", interrupted, size=len(data))
    part = tmp_path / "out.part"
    assert not (tmp_path / "out").exists()
    assert part.read_bytes() == data[: sum(moved)]
    part.write_bytes(data[:-1000])
    moved.clear()
    digest = store.fetch("key", tmp_path / "out", moved.append, size=len(data))
    assert sum(moved) == 1000
    assert digest == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "out").read_bytes() == data
    assert not part.exists()


def test_a_complete_or_too_long_beginning_is_dealt_with(store: Store, tmp_path: Path) -> None:
    data = os.urandom(1000)
    store.put("key", data)
    moved: list[int] = []
    (tmp_path / "out.part").write_bytes(data)
    assert store.fetch("key", tmp_path / "out", moved.append, size=1000) == hashlib.sha256(data).hexdigest()
    assert moved == []
    (tmp_path / "out.part").write_bytes(b"x" * 2000)
    assert store.fetch("key", tmp_path / "out", moved.append, size=1000) == hashlib.sha256(data).hexdigest()
    assert sum(moved) == 1000


def test_a_damaged_beginning_shows_in_the_digest(store: Store, tmp_path: Path) -> None:
    data = os.urandom(1000)
    store.put("key", data)
    (tmp_path / "out.part").write_bytes(b"x" + data[1:500])
    assert store.fetch("key", tmp_path / "out", size=1000) != hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [999, 1001])
def test_a_key_of_another_size_is_called_corrupt(store: Store, tmp_path: Path, size: int) -> None:
    store.put("key", b"x" * 1000)
    with pytest.raises(CorruptFileError, match=rf"expected {size}"):
        store.fetch("key", tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_while_fetching_names_the_place(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("key", b"x")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StoreFullError, match=rf"cannot write {tmp_path}/out: no space left"):
        store.fetch("key", tmp_path / "out")
