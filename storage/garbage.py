"""Find what nothing refers to any more, and delete it: never beside somebody who may be about to refer to it.

See `storage.leases` for how publishers, builds and collections keep out of each other's way. A collection reads the
leases before the manifests: a publisher that ended in between has its manifest by then.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import Field

from storage import keys, leases, manifests
from storage.errors import BusyError, VersionNotFoundError
from storage.records import Lease, Record, Stored
from storage.sealed import read_sealed
from storage.store import Store

RESULTS = frozenset({"study", "ablate"})
"""Steps whose output is an answer in itself, read by people: never collected."""

_BATCH = 1000  # keys in memory that wait to be deleted
_PARALLEL = 8
_EXAMPLES = 20

_FOREIGN = "not sonoforge's"
_NAMED = "a version was made from them"

Each = Callable[[Stored], None]


class Heap(Record):
    """So many objects, so many bytes."""

    objects: int = 0
    bytes: int = 0

    def plus(self, other: Stored) -> "Heap":
        """With one more."""
        return Heap(objects=self.objects + 1, bytes=self.bytes + other.bytes)


class Garbage(Record):
    """What a collection found.

    `found` is by kind: files (of versions that never came to be), steps, scratch, flags (leases and marks of the
    dead). `kept_back` is what no manifest names and yet stays, by reason.
    """

    deleted: bool
    found: dict[str, Heap] = Field(default={})
    kept_back: dict[str, Heap] = Field(default={})
    examples: list[str] = Field(default=[])

    @property
    def objects(self) -> int:
        """Of all kinds."""
        return sum(heap.objects for heap in self.found.values())

    @property
    def bytes(self) -> int:
        """Of all kinds."""
        return sum(heap.bytes for heap in self.found.values())


def collect(
    store: Store,
    *,
    dataset: str | None = None,
    older_than: timedelta = timedelta(days=1),
    builds: bool = False,
    delete: bool = False,
    now: datetime | None = None,
    each: Each | None = None,
) -> Garbage:
    """Find what may go and, with `delete`, delete it.

    Memory holds the keys that one dataset's manifests name, and the folders of steps; not the listing.

    Args:
        store: where.
        dataset: only files of this one; else of all, leftovers of killed writers, and flags of the dead.
        older_than: what is younger stays, even if nothing refers to it.
        builds: also steps that no version was made from, finished or not; results of studies stay.
        delete: really.
        now: by the store's own clock; asked of the store where not given.
        each: called with every object that is found, before it is deleted.

    Raises:
        VersionNotFoundError: there is nothing of this dataset.
        CorruptFileError: a manifest or a lease is damaged, so nobody knows what it names; nothing of its dataset was
            deleted.
        BusyError: the store did not answer for so long that publishers may think this collection dead; it stopped.
    """
    if dataset is not None and not store.folders(keys.check_name(dataset)):
        raise VersionNotFoundError(manifests.absent(store, dataset))
    raised = leases.raised(store, keys.collecting_key, "collect garbage", [], leases.MARK_RENEWAL)
    with raised if delete else nullcontext() as mark:
        now = now or _clock(store, mark)
        found = _Collection(store, now, older_than, mark, each)
        found.flags(dataset is None)
        names = [name for name in store.folders() if keys.may_be_dataset(name)]
        for name in names if dataset is None else [dataset]:
            found.files(name)
        if builds:
            found.steps(names)
        if dataset is None:
            found.scratch()
        found.flush()
        return Garbage(deleted=delete, found=found.found, kept_back=found.kept_back, examples=found.examples)


def lines(found: Garbage) -> list[str]:
    """What to tell people."""
    verb = "deleted" if found.deleted else "to delete"
    told = [f"{verb}: {_shown(kind, heap)}" for kind, heap in sorted(found.found.items())]
    told += [f"  {key}" for key in found.examples]
    if found.objects > len(found.examples):
        told.append(f"  … and {found.objects - len(found.examples):,} more")
    told += [f"kept: {_shown('objects', heap)}: {reason}" for reason, heap in sorted(found.kept_back.items())]
    if not found.found:
        told.append("nothing to delete")
    elif not found.deleted:
        told.append(f"{found.bytes / 1e6:,.1f} MB would be freed: run again with --delete")
    return told


class _Collection:
    """A collection under way: what it must not touch, what it found, what waits to be deleted."""

    def __init__(
        self, store: Store, now: datetime, older_than: timedelta, mark: leases.Flag | None, each: Each | None
    ) -> None:
        self._store, self._now, self._older_than, self._mark, self._each = store, now, older_than, mark, each
        self._held: dict[str, str] = {}
        self._held_folders: dict[str, str] = {}
        self._waiting: list[str] = []
        self.found: dict[str, Heap] = {}
        self.kept_back: dict[str, Heap] = {}
        self.examples: list[str] = []

    def flags(self, remove: bool) -> None:
        """Read who relies on what; flags of the dead are garbage. Before anything else: see the module."""
        for item in leases.flags_in(self._store, keys.LEASES):
            if self._is_dead(item):
                if remove:
                    self._garbage("flags", item)
                continue
            try:
                lease = read_sealed(self._store, item.key, Lease)
            except FileNotFoundError:
                continue  # it ended; what it published is in a manifest
            self._held |= dict.fromkeys((key for key in lease.keys if not key.endswith("/")), lease.holder)
            self._held_folders |= dict.fromkeys((key for key in lease.keys if key.endswith("/")), lease.holder)
        for item in leases.flags_in(self._store, keys.COLLECTING):
            own = self._mark is not None and item.key == self._mark.key
            if remove and not own and self._is_dead(item):
                self._garbage("flags", item)

    def files(self, dataset: str) -> None:
        """Files of a dataset that no version names, retracted ones included."""
        named = {file.key for manifest in manifests.every(self._store, dataset) for file in manifest.files}
        for item in self._store.walk(f"{dataset}/objects"):
            if item.key in named:
                continue
            if not keys.is_object(item.key):
                self._keep(_FOREIGN, item)
            else:
                self._judge("files", item, self._older_than)

    def steps(self, datasets: list[str]) -> None:
        """Steps that no version of any dataset was made from."""
        inputs: set[str] = set()
        for dataset in datasets:
            for manifest in manifests.every(self._store, dataset):
                inputs.update(manifest.inputs)
        folders = self._folders()
        doomed = {name for name, folder in folders.items() if self._why_kept(name, folder, inputs) is None}
        # First what says that a step is complete: who dies half way leaves no step that claims to be.
        for name in sorted(doomed):
            ref = folders[name].ref
            if ref is not None:
                self._garbage("steps", ref)
        self.flush()
        for item in self._store.walk(keys.BUILDS):
            name = keys.step_folder(item.key)
            if name not in doomed:
                reason = self._why_kept(name, folders.get(name, _Folder(item.modified)), inputs)
                if reason not in (None, _NAMED):
                    self._keep(reason, item)
            elif item != folders[name].ref:
                self._garbage("steps", item)

    def scratch(self) -> None:
        """What killed writers left on its way into the store."""
        for item in self._store.walk(keys.SCRATCH):
            self._judge("scratch", item, max(self._older_than, leases.TERM))

    def flush(self) -> None:
        """Delete what waits for it."""
        with ThreadPoolExecutor(_PARALLEL) as pool:  # list() raises the first failure, and those after it do not begin
            list(pool.map(self._delete, self._waiting))
        self._waiting = []

    def _delete(self, key: str) -> None:
        if self._mark is not None and self._mark.age() > leases.COLLECTOR_GIVES_UP:
            raise BusyError(
                f"{self._store.url} did not answer for {self._mark.age():.0f} s, so that publishers may think this "
                "collection dead: it stopped. Nothing that is needed was deleted; run it again"
            )
        self._store.delete(key)

    def _folders(self) -> dict[str, "_Folder"]:
        found: dict[str, _Folder] = {}
        for item in self._store.walk(keys.BUILDS):
            name = keys.step_folder(item.key)
            folder = found.setdefault(name, _Folder(item.modified))
            folder.newest = max(folder.newest, item.modified)
            if item.key == f"{name}/ref.json":
                folder.ref = item
        return found

    def _why_kept(self, name: str, folder: "_Folder", inputs: set[str]) -> str | None:
        """Why a step stays, None where it may go."""
        parts = name.split("/")
        if name in inputs:
            return _NAMED
        if len(parts) != 3:
            return _FOREIGN
        if parts[1] in RESULTS:
            return "results of studies and ablations"
        return self._why_not_yet(f"{name}/", folder.newest, self._older_than)

    def _why_not_yet(self, key: str, modified: datetime, older_than: timedelta) -> str | None:
        holder = self._held.get(key) or next(
            (holder for folder, holder in self._held_folders.items() if key.startswith(folder)), None
        )
        if holder is not None:
            return f"in use: {holder}"
        return f"younger than {_age(older_than)}" if modified > self._now - older_than else None

    def _judge(self, kind: str, item: Stored, older_than: timedelta) -> None:
        reason = self._why_not_yet(item.key, item.modified, older_than)
        if reason is None:
            self._garbage(kind, item)
        else:
            self._keep(reason, item)

    def _garbage(self, kind: str, item: Stored) -> None:
        self.found[kind] = self.found.get(kind, Heap()).plus(item)
        if len(self.examples) < _EXAMPLES:
            self.examples.append(item.key)
        if self._each is not None:
            self._each(item)
        if self._mark is not None:
            self._waiting.append(item.key)
            if len(self._waiting) >= _BATCH:
                self.flush()

    def _keep(self, reason: str, item: Stored) -> None:
        self.kept_back[reason] = self.kept_back.get(reason, Heap()).plus(item)

    def _is_dead(self, flag: Stored) -> bool:
        return flag.modified + leases.TERM <= self._now


@dataclass
class _Folder:
    """What there is of a step."""

    newest: datetime
    ref: Stored | None = None


def _clock(store: Store, mark: leases.Flag | None) -> datetime:
    """The time by the clock of the store, which is the one that dates what lies in it."""
    if mark is None:
        return datetime.now(UTC)  # a dry run writes nothing, and so cannot ask
    found = next((item.modified for item in leases.flags_in(store, keys.COLLECTING) if item.key == mark.key), None)
    if found is None:
        raise BusyError(f"somebody removed the mark of this collection, {store.uri(mark.key)}: run it again")
    return found


def _age(length: timedelta) -> str:
    """A length of time in its largest whole unit.

    >>> _age(timedelta(days=2)), _age(timedelta(minutes=90))
    ('2 days', '90 minutes')
    """
    seconds = int(length.total_seconds())
    unit, name = next(
        pair for pair in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")) if not seconds % pair[0]
    )
    return f"{seconds // unit} {name}{'' if seconds == unit else 's'}"


def _shown(what: str, heap: Heap) -> str:
    return f"{heap.objects:,} {what}, {heap.bytes / 1e6:,.1f} MB"
