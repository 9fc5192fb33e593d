import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from storage import keys, leases
from storage.errors import BusyError, StoreUnavailableError
from storage.records import Lease
from storage.sealed import unseal
from storage.store import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_POLL", 0.02)


def _mark(store: Store, every: float = 0.02):
    return leases.raised(store, keys.collecting_key, "collect garbage", [], every)


class _Waiter(threading.Thread):
    """Somebody who takes a lease."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self.store, self.entered, self.sure = store, threading.Event(), None

    def run(self) -> None:
        with leases.hold(self.store, "publish demo", ["a"]) as held:
            self.sure = held.sure()
            self.entered.set()


def test_a_lease_is_in_the_store_while_its_block_runs(store: Store) -> None:
    with leases.hold(store, "publish demo", ["demo/objects/x", "builds/"]) as held:
        (key,) = store.list(keys.LEASES)
        lease = unseal(store.read(key), Lease, key)
        assert lease == held.lease
        assert lease.keys == ["demo/objects/x", "builds/"]
        assert lease.holder.startswith("publish demo on ")
        assert datetime.fromisoformat(lease.expires).tzinfo is not None
        assert held.sure()
    assert store.list(keys.LEASES) == []
    with pytest.raises(ZeroDivisionError), leases.hold(store, "publish demo", []):
        raise ZeroDivisionError
    assert store.list(keys.LEASES) == []


def test_a_lease_is_renewed_until_it_ends_and_not_after(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.02)
    with leases.hold(store, "publish demo", []) as held:
        (key,) = store.list(keys.LEASES)
        first = held.lease.expires
        deadline = time.monotonic() + 10
        while unseal(store.read(key), Lease, key).expires == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.1)
    assert store.list(keys.LEASES) == []


def test_who_takes_a_lease_waits_for_the_collection_that_runs(store: Store) -> None:
    waiter = _Waiter(store)
    with _mark(store):
        waiter.start()
        assert not waiter.entered.wait(0.4)
        assert len(store.list(keys.LEASES)) == 1  # raised first, then looked
    assert waiter.entered.wait(10)
    assert waiter.sure
    waiter.join(10)


def test_a_collection_that_lives_is_never_thought_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(leases, "PATIENCE", 1.0)
    waiter = _Waiter(store)
    with _mark(store):
        waiter.start()
        assert not waiter.entered.wait(2)
    waiter.join(10)


def test_a_dead_collection_is_not_waited_for_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE", 0.2)
    leases.Flag(store, keys.collecting_key, "killed", [])
    with leases.hold(store, "publish demo", []) as held:
        assert not held.sure()  # it may only have seemed dead
        held.again()
        assert held.sure()
    assert store.list(keys.COLLECTING) == []  # nobody else has to wait for it


def test_a_collection_without_end_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LONGEST_WAIT", 0.1)
    with _mark(store) as mark, pytest.raises(BusyError, match=mark.key), leases.hold(store, "publish demo", []):
        raise AssertionError("entered")
    assert store.list(keys.LEASES) == []


def test_who_could_not_renew_in_time_is_not_sure_any_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = leases._now
    with leases.hold(store, "publish demo", []) as held:
        monkeypatch.setattr(leases, "_now", lambda: now() + 240)
        assert held.sure()
        monkeypatch.setattr(leases, "_now", lambda: now() + 301)  # the machine slept
        assert not held.sure()
        held.again()
        assert held.sure()


def test_a_renewal_that_fails_is_tried_again_and_hides_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.1)
    put, failures = store.put, []

    def gone(key: str, data: bytes) -> None:
        failures.append(key)
        raise StoreUnavailableError("gone")

    with leases.hold(store, "publish demo", []) as held:
        first = held.lease.expires
        monkeypatch.setattr(store, "put", gone)
        deadline = time.monotonic() + 10
        while len(failures) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setattr(store, "put", put)
        while held.lease.expires == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setattr(store, "delete", lambda key: gone(key, b""))


def test_a_flag_is_seen_by_a_listing_that_misses_it_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some file systems do while it is replaced."""
    flags = [leases.Flag(store, keys.lease_key, "publish demo", []) for _ in range(2)]
    walk, hidden = store.walk, [flag.key for flag in flags]

    def torn(prefix: str = ""):
        missed = hidden.pop() if hidden else None
        return iter([item for item in walk(prefix) if item.key != missed])

    monkeypatch.setattr(store, "walk", torn)
    assert [item.key for item in leases.flags_in(store, keys.LEASES)] == sorted(flag.key for flag in flags)
