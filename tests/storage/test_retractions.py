from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import keys, retractions
from storage.errors import CorruptFileError, RetractedError
from storage.store import Store
from storage.versions import list_versions, open_manifest, publish
from tests.storage.small import ABOUT, folder, version


def test_a_retracted_version_is_looked_at_and_not_used(store: Store, tmp_path: Path) -> None:
    one, two = version(store, tmp_path, "one"), version(store, tmp_path, "two")
    retractions.refuse(store, two)
    tombstone = retractions.retract(store, two, " wrong masks\n")
    assert (tombstone.dataset, tombstone.version, tombstone.reason) == ("demo", 2, "wrong masks")
    assert retractions.find(store, "demo", 2) == tombstone
    assert retractions.find(store, "demo", 1) is None
    assert open_manifest(store, "demo") == open_manifest(store, "demo@latest") == one
    assert open_manifest(store, "demo@2") == open_manifest(store, f"demo@sha256:{two.digest[:12]}") == two
    assert [manifest.version for manifest in list_versions(store)] == [1, 2]
    with pytest.raises(RetractedError, match=r"^demo@2 was retracted on 20\d\d-.*: wrong masks\."):
        retractions.refuse(store, two)


def test_where_all_versions_were_retracted_latest_says_so(store: Store, tmp_path: Path) -> None:
    for text in ("one", "two"):
        retractions.retract(store, version(store, tmp_path, text), f"bad {text}")
    with pytest.raises(RetractedError, match=r"every version of demo was retracted\. demo@2 .* bad two"):
        open_manifest(store, "demo")


def test_numbers_of_retracted_versions_are_not_given_again(store: Store, tmp_path: Path) -> None:
    retractions.retract(store, version(store, tmp_path, "one"), "bad")
    assert version(store, tmp_path, "two").version == 2


def test_what_was_retracted_is_not_published_again(store: Store, tmp_path: Path) -> None:
    retractions.retract(store, version(store, tmp_path, "one"), "leaked patients")
    with pytest.raises(RetractedError, match=r"demo@1 was retracted on .*: leaked patients\. A retraction is final"):
        publish(store, "demo", folder(tmp_path / "again", "one"), ABOUT)
    assert [manifest.version for manifest in list_versions(store)] == [1]


def test_the_first_retraction_stands(store: Store, tmp_path: Path) -> None:
    manifest = version(store, tmp_path, "one")
    with ThreadPoolExecutor(8) as pool:
        stones = list(pool.map(lambda turn: retractions.retract(store, manifest, f"reason {turn}"), range(8)))
    assert len({stone.id for stone in stones}) == 1
    assert retractions.retract(store, manifest, "later") == stones[0]


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_retraction_needs_a_reason(reason: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    manifest = version(store, tmp_path, "one")
    with pytest.raises(ValueError, match="not retracted without a reason"):
        retractions.retract(store, manifest, reason)
    assert retractions.find(store, "demo", 1) is None


def test_a_damaged_tombstone_keeps_the_version_from_being_used(store: Store, tmp_path: Path) -> None:
    one, two = version(store, tmp_path, "one"), version(store, tmp_path, "two")
    retractions.retract(store, one, "bad")
    data = store.read(keys.tombstone_key("demo", 1))
    store.put(keys.tombstone_key("demo", 1), data.replace(b"bad", b"mad"))
    with pytest.raises(CorruptFileError, match=r"retracted\.json is damaged"):
        retractions.refuse(store, one)
    store.put(keys.tombstone_key("demo", 2), data)
    with pytest.raises(CorruptFileError, match="is the tombstone of demo@1"):
        retractions.refuse(store, two)
