"""Publishers beside a garbage collection, in every order in which they can meet.

In each, the publisher relies on a file that is in the store already, and that nothing refers to: somebody died before
naming it. Whatever happens, the version that comes to be holds every file that it names.
"""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from storage import keys, leases
from storage.errors import BusyError
from storage.garbage import Garbage, collect
from storage.records import Manifest, Stored
from storage.store import Store
from storage.versions import list_versions, publish
from tests.storage.small import ABOUT, folder, version

PATIENT = 20.0  # seconds after which a test that hangs fails


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_POLL", 0.02)


class Publisher(threading.Thread):
    """Publishes the folder; with `pause`, stops before it creates the manifest until it is let go."""

    def __init__(self, url: str, made: Path, *, pause: bool = False) -> None:
        super().__init__(daemon=True)
        self.made, self.store = made, Store(url)
        self.store.probe()
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.result: tuple[Manifest, bool] | None = None
        if pause:
            self.store.create = self._paused  # type: ignore[method-assign]

    def _paused(self, key: str, data: bytes) -> bool:
        self.reached.set()
        assert self.let_go.wait(PATIENT)
        return Store.create(self.store, key, data)

    def run(self) -> None:
        self.result = publish(self.store, "demo", self.made, ABOUT)

    def ended(self) -> Manifest:
        """Its version, once it is done."""
        self.let_go.set()
        self.join(PATIENT)
        assert self.result is not None
        assert self.result[1]
        return self.result[0]


@pytest.fixture
def made(url: str, tmp_path: Path) -> Path:
    """A folder whose files are all in the store, named by nobody."""
    store = Store(url)
    version(store, tmp_path, "one")
    store.delete(keys.manifest_key("demo", 1))
    assert len(store.list("demo/objects")) == 2
    return folder(tmp_path / "again", "one")


def _collect(url: str, each: Callable[[Stored], None] | None = None, store: Store | None = None) -> Garbage:
    return collect(store or Store(url), older_than=timedelta(0), delete=True, each=each)


def _whole(url: str, manifest: Manifest) -> bool:
    store = Store(url)
    assert list(list_versions(store)) == [manifest]
    assert store.list(keys.LEASES) == store.list(keys.COLLECTING) == []
    return {file.key: file.bytes for file in manifest.files} == {
        item.key: item.bytes for item in store.walk("demo/objects")
    }


class Before(Store):
    """A store that does something once, right before it first lists a folder."""

    def __init__(self, url: str, folder: str, act: Callable[[], None]) -> None:
        super().__init__(url)
        self._folder, self._acts = folder, [act]

    def walk(self, prefix: str = "") -> Iterator[Stored]:
        if prefix == self._folder and self._acts:
            self._acts.pop()()
        return super().walk(prefix)


def test_a_collection_keeps_what_a_publisher_has_looked_at(url: str, made: Path) -> None:
    publisher = Publisher(url, made, pause=True)
    publisher.start()
    assert publisher.reached.wait(PATIENT)
    found = _collect(url)
    assert found.found == {}
    assert [heap.objects for heap in found.kept_back.values()] == [2]
    assert _whole(url, publisher.ended())


def test_a_publisher_sends_what_a_collection_has_taken(url: str, made: Path) -> None:
    publisher = Publisher(url, made)

    def meanwhile(item: Stored) -> None:
        if not publisher.is_alive() and publisher.result is None:
            publisher.start()
            publisher.join(0.5)
        assert publisher.result is None, "it did not wait"

    found = _collect(url, meanwhile)
    assert found.objects == 2
    assert _whole(url, publisher.ended())


def test_a_lease_raised_after_the_mark_is_honoured_by_both(url: str, made: Path) -> None:
    publisher = Publisher(url, made)

    def lease() -> None:
        publisher.start()
        watching = Store(url)
        while not watching.list(keys.LEASES):
            publisher.join(0.01)

    found = _collect(url, store=Before(url, keys.LEASES, lease))
    assert found.found == {}
    assert [heap.objects for heap in found.kept_back.values()] == [2]
    assert _whole(url, publisher.ended())


@pytest.mark.parametrize("moment", [keys.COLLECTING, keys.LEASES])
def test_a_version_that_appears_before_leases_are_read_is_seen(url: str, made: Path, moment: str) -> None:
    publisher = Publisher(url, made, pause=True)
    publisher.start()
    assert publisher.reached.wait(PATIENT)
    found = _collect(url, store=Before(url, moment, lambda: publisher.ended() and None))
    assert (found.found, found.kept_back) == ({}, {})
    assert _whole(url, publisher.ended())


def test_a_collection_thought_dead_does_no_harm_when_it_wakes(
    url: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "MARK_RENEWAL", 1000.0)  # asleep
    monkeypatch.setattr(leases, "COLLECTOR_GIVES_UP", 0.2)
    monkeypatch.setattr(leases, "PATIENCE", 0.5)
    publisher = Publisher(url, made)

    def sleep(item: Stored) -> None:
        if not publisher.is_alive() and publisher.result is None:
            publisher.start()
            publisher.join(PATIENT)

    with pytest.raises(BusyError, match="it stopped"):
        _collect(url, sleep)
    assert _whole(url, publisher.ended())


def _sleep(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an hour: the lease runs out, and a collection takes what the publisher relies on."""
    store, now = Store(url), leases._now
    for lease in store.list(keys.LEASES):
        store.delete(lease)
    assert _collect(url).objects == 2
    monkeypatch.setattr(leases, "_now", lambda: now() + 3600)


def test_a_publisher_that_slept_looks_again_before_it_names_anything(
    url: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(url, made)
    put_file, one, looked = publisher.store.put_file, threading.Lock(), []

    def put_and_sleep(key: str, path: Path) -> None:
        put_file(key, path)
        with one:
            looked.append(key)
            if len(looked) == 2:
                _sleep(url, monkeypatch)

    monkeypatch.setattr(publisher.store, "put_file", put_and_sleep)
    publisher.start()
    assert _whole(url, publisher.ended())
    assert len(looked) == 4


def test_a_publisher_that_slept_at_the_last_moment_mends_what_it_named(
    url: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(url, made, pause=True)
    publisher.start()
    assert publisher.reached.wait(PATIENT)
    _sleep(url, monkeypatch)
    assert _whole(url, publisher.ended())
