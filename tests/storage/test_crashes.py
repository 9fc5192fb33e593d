"""Publishers killed at any moment, with a reader watching: a version is whole or it is not there."""

import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage import keys, leases
from storage.errors import VersionNotFoundError
from storage.garbage import collect
from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest, publish
from tests.fakes.samples import table
from tests.storage.forged import write
from tests.storage.racers import environment, publish_one, server

KILLS = 60  # on each backend
SEED = 3


class Reader(threading.Thread):
    """Asks for the latest again and again, and reads all of every version as soon as it can be seen."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.store = Store(url)
        self.end = threading.Event()
        self.seen: dict[int, str] = {}
        self.problems: list[str] = []
        self.polls = 0

    def run(self) -> None:
        try:
            while not self.end.wait(0.005):
                self.poll()
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader should not have met it
            self.problems.append(f"{type(error).__name__}: {error}")

    def poll(self) -> None:
        """Look once."""
        self.polls += 1
        try:
            latest = open_manifest(self.store, "demo@latest").version
        except VersionNotFoundError:
            latest = 0
        assert latest >= len(self.seen)
        for number in range(len(self.seen) + 1, latest + 1):
            manifest = open_manifest(self.store, f"demo@{number}")
            self.problems += verify(self.store, manifest, deep=True)
            self.seen[number] = manifest.publication


@contextmanager
def reading(url: str) -> Generator[Reader]:
    """A reader that polls while the block runs, and has met nothing that is not whole."""
    reader = Reader(url)
    reader.start()
    try:
        yield reader
    finally:
        reader.end.set()
        reader.join(60)
    reader.poll()
    assert not reader.problems, reader.problems[:5]


def _start(url: str, made: Path, about: object):
    """A process that is about to publish, and where it tells what."""
    receiving, sending = server().Pipe(duplex=False)
    process = server().Process(target=publish_one, args=(url, environment(), str(made), about, sending))
    process.start()
    sending.close()
    assert receiving.poll(60)
    assert receiving.recv() == "begun"
    return process, receiving


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 255)  # the latter of a process that is not this one's own child


def _seconds_of_a_publish(url: str, made: Path, seed: int) -> float:
    process, receiving = _start(url, made, write(made, table(6, seed=seed)))
    begun = time.monotonic()
    assert receiving.recv() > 0
    taken = time.monotonic() - begun
    _kill(process)
    return taken


@pytest.mark.slow
@pytest.mark.parametrize("url", ["local", "ceph"], indirect=True)
def test_a_publisher_killed_at_any_moment_leaves_a_whole_version_or_none(url: str, tmp_path: Path) -> None:
    store, rng = Store(url), random.Random(SEED)
    length, published = 0.0, list[bool]()
    with reading(url) as reader:
        for index in range(KILLS):
            if index % 10 == 0:  # the more versions there are, the longer it takes
                length = 1.2 * _seconds_of_a_publish(url, tmp_path / f"measured-{index}", 10_000 + index)
            made = tmp_path / f"killed-{index}"
            about = write(made, table(6, seed=index))
            process, receiving = _start(url, made, about)
            time.sleep(rng.uniform(0, length))
            _kill(process)
            receiving.close()
            if index % 2:  # run again at once; every other publisher is never heard of again
                published.append(not publish(store, "demo", made, about)[1])
    assert any(published), "no kill came after the manifest"
    assert not all(published), "no kill came before it"
    _only_what_versions_name_is_left(store)
    assert {manifest.version: manifest.publication for manifest in list_versions(store)} == reader.seen
    assert len({manifest.digest for manifest in list_versions(store)}) == len(reader.seen)
    print(f"\n{KILLS} kills within {length:.3f} s, {len(reader.seen)} versions, {reader.polls} polls")


def _only_what_versions_name_is_left(store: Store) -> None:
    """Garbage collection takes exactly the orphans, once the leases of the dead have run out."""
    manifests = list(list_versions(store))
    named = {file.key for manifest in manifests for file in manifest.files}
    kept = {keys.manifest_key("demo", manifest.version) for manifest in manifests}
    before = set(store.list())
    flags = {key for key in before if key.startswith(f"{keys.LEASES}/")}
    orphans = before - named - kept - flags
    assert all(keys.is_object(key) or key.startswith(f"{keys.SCRATCH}/") for key in orphans)
    assert orphans
    assert flags
    early: list[str] = []
    collect(store, older_than=timedelta(0), delete=True, each=lambda item: early.append(item.key))
    later = datetime.now(UTC) + leases.TERM + timedelta(seconds=5)
    found = collect(store, older_than=timedelta(0), delete=True, now=later)
    assert found.kept_back == {}
    assert set(early) <= orphans  # those of publishers that were killed before they took a lease: none, in fact
    assert set(store.list()) == named | kept
    assert list(store.walk(keys.SCRATCH)) == []
    assert [verify(store, manifest, deep=True) for manifest in manifests] == [[]] * len(manifests)
    assert collect(store, older_than=timedelta(0), delete=True, now=later).found == {}


@pytest.mark.slow
@pytest.mark.parametrize("url", ["local", "ceph"], indirect=True)
def test_publishers_that_are_killed_and_others_beside_them_leave_no_gap(url: str, tmp_path: Path) -> None:
    """Several at once, so that some die between losing one number and taking the next."""
    store, rng = Store(url), random.Random(SEED)
    with reading(url) as reader:
        for turn in range(5):
            running = []
            for index in range(4):
                made = tmp_path / f"{turn}-{index}"
                running.append((*_start(url, made, write(made, table(6, seed=100 * turn + index))), index))
            time.sleep(rng.uniform(0, 0.3))
            for process, _, index in running:
                if index % 2:
                    _kill(process)
            for process, receiving, index in running:
                if not index % 2:
                    assert receiving.poll(120)
                    assert receiving.recv() > 0
                    _kill(process)
                receiving.close()
    assert len(reader.seen) >= 10
    assert {manifest.version: manifest.publication for manifest in list_versions(store)} == reader.seen
    assert len({manifest.digest for manifest in list_versions(store)}) == len(reader.seen)
