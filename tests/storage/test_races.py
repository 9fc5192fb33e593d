"""Many processes at one store at once: every number is given once, and nothing is lost."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from storage import channels, keys
from storage.garbage import collect
from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest
from tests.storage.racers import move_some, publish_some, publish_the_same, race
from tests.storage.small import version

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("url", ["local", "ceph"], indirect=True)]

PROCESSES, TURNS = 20, 5
TOTAL = PROCESSES * TURNS


def test_every_racing_publisher_gets_numbers_of_its_own_and_nothing_is_lost(url: str, tmp_path: Path) -> None:
    made = race(url, PROCESSES, publish_some, (str(tmp_path), TURNS))
    store = Store(url)
    there = list(list_versions(store, "demo"))
    assert [manifest.version for manifest in there] == list(range(1, TOTAL + 1))
    assert sorted((one for own in made for one in own), key=lambda manifest: manifest.version) == there
    assert all([one.version for one in own] == sorted(one.version for one in own) for own in made)
    assert len({manifest.digest for manifest in there}) == TOTAL
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda manifest: verify(store, manifest, deep=True), there)] == [[]] * TOTAL
    assert open_manifest(store, "demo@latest") == there[-1]
    assert store.list(keys.LEASES) == []
    assert collect(store, older_than=timedelta(0)).found == {}


def test_racing_publishers_of_the_same_files_make_them_a_version_once(url: str, tmp_path: Path) -> None:
    made = race(url, PROCESSES, publish_the_same, (str(tmp_path), TURNS))
    there = list(list_versions(Store(url), "demo"))
    assert [manifest.version for manifest in there] == list(range(1, TURNS + 1))
    for turn in range(TURNS):
        assert len({own[turn][0] for own in made}) == 1
        assert [own[turn][1] for own in made].count(True) == 1


def test_no_move_of_a_channel_is_lost(url: str, tmp_path: Path) -> None:
    store = Store(url)
    for text in ("one", "two"):
        version(store, tmp_path, text)
    made = race(url, PROCESSES, move_some, TURNS)
    history = channels.history(store, "demo", "production")
    assert [entry.number for entry in history] == list(range(1, TOTAL + 1))
    assert sorted((entry for own in made for entry in own), key=lambda entry: entry.number) == history
    assert len({entry.id for entry in history}) == TOTAL
    assert all([entry.number for entry in own] == sorted(entry.number for entry in own) for own in made)
    assert channels.resolve(store, "demo", "production") == history[-1].version
