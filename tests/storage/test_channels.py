from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from storage import channels, keys
from storage.errors import CorruptFileError, RetractedError, VersionNotFoundError
from storage.retractions import retract
from storage.store import Store
from storage.versions import open_manifest
from tests.storage.small import version


def test_a_channel_means_what_it_was_moved_to_last(store: Store, tmp_path: Path) -> None:
    one, two = version(store, tmp_path, "one"), version(store, tmp_path, "two")
    assert channels.resolve(store, "demo", "production") is None
    assert channels.names(store, "demo") == []
    for target in (2, 1, 2, 2):
        channels.move(store, "demo", "production", target)
    channels.move(store, "demo", "canary", 1)
    assert channels.names(store, "demo") == ["canary", "production"]
    assert open_manifest(store, "demo@production") == two
    assert open_manifest(store, "demo@canary") == one
    history = channels.history(store, "demo", "production")
    assert [(entry.number, entry.version) for entry in history] == [(1, 2), (2, 1), (3, 2), (4, 2)]
    assert len({entry.id for entry in history}) == 4
    times = [datetime.fromisoformat(entry.moved) for entry in history]
    assert times == sorted(times)
    assert all(moment.tzinfo is not None for moment in times)
    assert channels.history(store, "demo", "absent") == []


def test_each_of_many_movers_at_once_gets_an_entry_of_its_own(store: Store, tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        version(store, tmp_path, text)
    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(lambda turn: channels.move(store, "demo", "production", 1 + turn % 3), range(24)))
    history = channels.history(store, "demo", "production")
    assert [entry.number for entry in history] == list(range(1, 25))
    assert sorted(moved, key=lambda entry: entry.number) == history
    assert channels.resolve(store, "demo", "production") == history[-1].version


def test_a_listing_that_leaves_out_the_newest_moves_hides_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("one", "two"):
        version(store, tmp_path, text)
    for target in (1, 2, 1, 2):
        channels.move(store, "demo", "production", target)
    whole = store.list
    monkeypatch.setattr(store, "list", lambda prefix="": [key for key in whole(prefix) if "0000000" not in key])
    assert channels.resolve(store, "demo", "production") == 2
    assert channels.move(store, "demo", "production", 1).number == 5


def test_a_channel_is_not_moved_to_what_is_not_to_be_used(store: Store, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="there is no dataset 'demo'"):
        channels.move(store, "demo", "production", 1)
    retract(store, version(store, tmp_path, "one"), "leaked patients")
    with pytest.raises(RetractedError, match=r"demo@1 was retracted on 20.*: leaked patients"):
        channels.move(store, "demo", "production", 1)
    for absent in (0, 2, -1):
        with pytest.raises(VersionNotFoundError, match=f"there is no demo@{absent} .* the last is demo@1"):
            channels.move(store, "demo", "production", absent)
    assert channels.history(store, "demo", "production") == []


def test_a_channel_whose_version_was_retracted_says_where_to_move_it(store: Store, tmp_path: Path) -> None:
    version(store, tmp_path, "one")
    two = version(store, tmp_path, "two")
    channels.move(store, "demo", "production", 2)
    retract(store, two, "wrong masks")
    with pytest.raises(RetractedError, match=r"wrong masks\. Move it: `sonoforge promote demo@1 production`"):
        open_manifest(store, "demo@production")
    channels.move(store, "demo", "production", 1)
    assert open_manifest(store, "demo@production").version == 1
    retract(store, open_manifest(store, "demo@1"), "as well")
    with pytest.raises(RetractedError, match="No version is live: publish one"):
        open_manifest(store, "demo@production")


@pytest.mark.parametrize("name", ["", "latest", "3", "Production", "a/b", "../x", "a" * 51, "sha256:abcdef"])
def test_names_that_cannot_be_channels_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a channel"):
        channels.move(Store(tmp_path), "demo", name, 1)


def test_a_damaged_or_misplaced_entry_is_not_believed(store: Store, tmp_path: Path) -> None:
    version(store, tmp_path, "one")
    channels.move(store, "demo", "production", 1)
    data = store.read(keys.channel_key("demo", "production", 1))
    store.put(keys.channel_key("demo", "production", 2), data)
    with pytest.raises(CorruptFileError, match="calls itself move 1 of demo@production"):
        channels.resolve(store, "demo", "production")
    store.put(keys.channel_key("demo", "production", 2), data.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(CorruptFileError, match="is damaged"):
        open_manifest(store, "demo@production")
