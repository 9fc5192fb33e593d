"""Who works with what, so that garbage collection leaves it alone; and the other way round.

Stores have no locks, so publishers and collections keep out of each other's way with flags (decision record 0010):

- A publisher writes its lease, which names all objects it will rely on, **then** looks for running collections, and
  waits for them. Only after that does it look which of its objects are there already.
- A collection writes its mark, **then** reads leases, then manifests; what either names is not collected.

Each raises its flag before it looks for the other's, so at least one of them sees the other. A flag is renewed by a
thread while its owner lives. A dead publisher's lease counts for `TERM` after its last renewal, by the store's own
clock. A dead collection's mark is removed by who has watched it unchanged for `PATIENCE`, by his own clock; a
collection that could not renew its mark for `COLLECTOR_GIVES_UP` deletes nothing more. No two clocks are compared.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from storage import keys
from storage.errors import BusyError, StorageError
from storage.records import Lease, Stored
from storage.sealed import seal
from storage.store import Store

TERM = timedelta(minutes=10)
RENEWAL = 60.0
"""Seconds between two renewals of a lease."""

PATIENCE = 300.0
"""Seconds after which a mark that does not change is a dead collection's. Longer than a living one goes on deleting
without renewing it, plus the minute and more for which `Store` repeats a request that is on its way by then."""

MARK_RENEWAL = 5.0
COLLECTOR_GIVES_UP = 20.0
LONGEST_WAIT = 3600.0
"""Seconds a publisher waits for a collection that is alive."""

_POLL = 0.5


class Flag:
    """A small object of a store that is renewed while its owner lives. `lease` is what it says."""

    def __init__(self, store: Store, key_of: Callable[[str], str], holder: str, named: Sequence[str]) -> None:
        self._store = store
        self._holder = f"{holder} on {socket.gethostname()}, process {os.getpid()}"
        self._named = list(named)
        self._id = uuid.uuid4().hex
        self.key = key_of(self._id)
        self._ended = threading.Event()
        self.renew()

    def renew(self) -> None:
        """Write it again; its time counts from before the writing."""
        begun = _now()
        expires = (datetime.now(UTC) + TERM).isoformat()
        self.lease = Lease(id=self._id, holder=self._holder, keys=self._named, expires=expires)
        self._store.put(self.key, seal(self.lease))
        self._renewed = begun

    def age(self) -> float:
        """Seconds since the last renewal that succeeded, those that the machine slept included."""
        return _now() - self._renewed

    def keep(self, every: float) -> None:
        """Renew until the end; a renewal that fails is tried again soon, and `age` tells."""
        pause = every
        while not self._ended.wait(pause):
            try:
                self.renew()
                pause = every
            except StorageError:
                pause = every / 10

    def end(self) -> None:
        """Stop `keep`."""
        self._ended.set()

    def lower(self) -> None:
        """Remove it; where the store does not answer, it runs out by itself."""
        with contextlib.suppress(StorageError):
            self._store.delete(self.key)


@contextmanager
def raised(
    store: Store, key_of: Callable[[str], str], holder: str, named: Sequence[str], every: float
) -> Generator[Flag]:
    """A flag that is up, and renewed every so many seconds, while the block runs."""
    flag = Flag(store, key_of, holder, named)
    renewing = threading.Thread(target=flag.keep, args=(every,), daemon=True, name=f"renew {flag.key}")
    renewing.start()
    try:
        yield flag
    finally:
        flag.end()
        renewing.join(10)  # a renewal that arrived after its removal would bring the flag back
        flag.lower()


class Held:
    """A lease in force. `keys` that it names stay in the store until it ends."""

    def __init__(self, store: Store, flag: Flag) -> None:
        self._store, self._flag = store, flag
        self._sure = wait_for_collections(store)

    @property
    def lease(self) -> Lease:
        """What it says."""
        return self._flag.lease

    def sure(self) -> bool:
        """Whether no collection can have overlooked it so far. Once it was not, `again` is needed.

        One could where the lease was not renewed in time (the machine slept, the store did not answer), or where
        a collection only seemed dead.
        """
        return self._sure and self._flag.age() < TERM.total_seconds() / 2

    def again(self) -> None:
        """Take the lease anew; what it names must be looked for anew after this."""
        self._flag.renew()
        self._sure = wait_for_collections(self._store)


@contextmanager
def hold(store: Store, holder: str, named: Sequence[str]) -> Generator[Held]:
    """Keep objects from being collected while the block runs; waits for a collection that is running.

    Args:
        store: where they are.
        holder: who, for people: "publish demo". Machine and process are added.
        named: keys, or folders of them, ending in "/".

    Raises:
        BusyError: a collection has been running for an hour.
    """
    with raised(store, keys.lease_key, holder, named, RENEWAL) as flag:
        yield Held(store, flag)


def wait_for_collections(store: Store) -> bool:
    """Return once no collection runs; False where one seemed dead, so that its mark was removed."""
    seen: dict[str, tuple[bytes, float]] = {}
    start, sure = _now(), True
    while marks := _marks(store):
        for key, data in marks.items():
            if key not in seen or seen[key][0] != data:
                seen[key] = (data, _now())
            elif _now() - seen[key][1] >= PATIENCE:
                store.delete(key)  # so that nobody else needs to wait for it
                sure = False
        if _now() - start > LONGEST_WAIT:
            raise BusyError(
                f"a garbage collection has been running in {store.url} for {LONGEST_WAIT / 60:.0f} minutes "
                f"({store.uri(min(marks))}): wait until it has ended, then run the same command again; what is "
                "finished is kept"
            )
        time.sleep(_POLL)
    return sure


def flags_in(store: Store, folder: str) -> list[Stored]:
    """All flags that are up: in `keys.LEASES`, or in `keys.COLLECTING`.

    Listed twice: some file systems pass over a file that is renewed (replaced) at the very moment of the listing, and
    none is renewed twice that soon.
    """
    found: dict[str, Stored] = {}
    for item in (item for _ in range(2) for item in store.walk(folder)):
        if item.key not in found or found[item.key].modified < item.modified:
            found[item.key] = item
    return [found[key] for key in sorted(found)]


def _marks(store: Store) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in flags_in(store, keys.COLLECTING):
        with contextlib.suppress(FileNotFoundError):
            found[item.key] = store.read(item.key)
    return found


def _now() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps where there is such a one."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boottime) if boottime is not None else time.monotonic()
