import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage import channels, keys, leases
from storage.errors import BusyError, CorruptFileError, StoreUnavailableError, VersionNotFoundError
from storage.garbage import Garbage, Heap, collect, lines
from storage.records import Lease, Manifest, Stored
from storage.retractions import retract
from storage.sealed import seal
from storage.store import Store
from storage.versions import list_versions
from tests.storage.small import version

ANY_AGE = timedelta(0)
TOMORROW = datetime.now(UTC) + timedelta(days=1, hours=1)


def _orphan(store: Store, text: str = "orphan", dataset: str = "demo") -> str:
    key = keys.object_key(dataset, hashlib.sha256(text.encode()).hexdigest(), ".txt")
    store.put(key, text.encode())
    return key


def _step(store: Store, step: str, key: str, *, whole: bool = True) -> str:
    store.put(keys.step_file(step, key, "checkpoints/1.bin"), b"half way")
    if whole:
        store.put(keys.step_ref(step, key), b"reference")
    return f"builds/{step}/{key}"


def _named(manifests: Iterator[Manifest]) -> set[str]:
    return {file.key for manifest in manifests for file in manifest.files}


def test_nothing_is_deleted_unless_asked_for(store: Store, tmp_path: Path) -> None:
    version(store, tmp_path, "one")
    orphan = _orphan(store)
    before = store.list()
    found = collect(store, older_than=ANY_AGE, now=TOMORROW)
    assert found == Garbage(deleted=False, found={"files": Heap(objects=1, bytes=6)}, examples=[orphan])
    assert (found.objects, found.bytes) == (1, 6)
    assert store.list() == before


def test_what_no_version_names_goes_and_nothing_else(store: Store, tmp_path: Path) -> None:
    for text in ("one", "two"):
        version(store, tmp_path, text)
    version(store, tmp_path, "one", dataset="other")
    retract(store, next(list_versions(store)), "bad")
    channels.move(store, "demo", "production", 2)
    before = set(store.list())
    orphans = {_orphan(store), _orphan(store, "more"), _orphan(store, "orphan", "other"), _orphan(store, "x", "empty")}
    seen: list[Stored] = []
    found = collect(store, older_than=ANY_AGE, delete=True, each=seen.append)
    assert found.deleted
    assert {item.key for item in seen} == set(found.examples) == orphans
    assert set(store.list()) == before  # with the files of the version that was retracted
    assert collect(store, older_than=ANY_AGE, delete=True).found == {}


def test_one_dataset_alone_is_cleared(store: Store, tmp_path: Path) -> None:
    version(store, tmp_path, "one")
    mine, other = _orphan(store), _orphan(store, "orphan", "other")
    store.put(keys.lease_key("dead"), b"whatever it says")
    found = collect(store, dataset="demo", older_than=ANY_AGE, delete=True, now=TOMORROW)
    assert (found.examples, store.exists(mine), store.exists(other)) == ([mine], False, True)
    assert store.exists(keys.lease_key("dead"))
    with pytest.raises(VersionNotFoundError, match="did you mean demo"):
        collect(store, dataset="dmo")


def test_what_is_young_is_left_alone(store: Store) -> None:
    orphan = _orphan(store)
    found = collect(store, delete=True)
    assert found.found == {}
    assert found.kept_back == {"younger than 1 day": Heap(objects=1, bytes=6)}
    assert collect(store, delete=True, now=TOMORROW).examples == [orphan]


def test_what_a_publisher_or_a_build_relies_on_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    relied, orphan = _orphan(store), _orphan(store, "more")
    step = _step(store, "score", "a")
    monkeypatch.setattr(leases, "PATIENCE", 0)
    with leases.hold(store, "publish demo", [relied]), leases.hold(store, "build demo", [f"{keys.BUILDS}/"]):
        found = collect(store, older_than=ANY_AGE, builds=True, delete=True)
    assert found.examples == [orphan]
    held = {reason.split(" on ")[0]: heap.objects for reason, heap in found.kept_back.items()}
    assert held == {"in use: publish demo": 1, "in use: build demo": 2}
    assert store.exists(relied)
    assert store.exists(f"{step}/ref.json")


def test_a_publisher_whose_clock_is_wrong_is_believed_all_the_same(store: Store) -> None:
    relied = _orphan(store)
    lease = Lease(id="a", holder="publish demo", keys=[relied], expires="1970-01-01T00:00:00+00:00")
    store.put(keys.lease_key("a"), seal(lease))
    assert collect(store, older_than=ANY_AGE, delete=True).found == {}
    assert store.exists(relied)


def test_flags_of_the_dead_count_no_more_and_are_removed(store: Store) -> None:
    orphan = _orphan(store)
    lease = leases.Flag(store, keys.lease_key, "killed", [orphan])
    mark = leases.Flag(store, keys.collecting_key, "killed too", [])
    assert collect(store, older_than=ANY_AGE, delete=True).found == {}
    later = datetime.now(UTC) + leases.TERM + timedelta(seconds=5)
    found = collect(store, older_than=ANY_AGE, delete=True, now=later)
    assert {kind: heap.objects for kind, heap in found.found.items()} == {"files": 1, "flags": 2}
    assert set(found.examples) == {orphan, lease.key, mark.key}
    assert store.list() == []


def test_scratch_of_killed_writers_goes_once_nobody_can_be_at_it(store: Store) -> None:
    store.put(f"{keys.SCRATCH}/staging-x/data.parquet", b"half")
    assert collect(store, older_than=ANY_AGE, delete=True).found == {}
    with leases.hold(store, "build demo", [f"{keys.SCRATCH}/"]):
        found = collect(store, older_than=ANY_AGE, now=datetime.now(UTC) + timedelta(minutes=9, seconds=50))
        assert found.found == {}
    found = collect(store, older_than=ANY_AGE, delete=True, now=TOMORROW)
    assert found.examples == [f"{keys.SCRATCH}/staging-x/data.parquet"]
    assert list(store.walk(keys.SCRATCH)) == []


def test_what_is_not_sonoforges_is_left_alone(store: Store, tmp_path: Path) -> None:
    version(store, tmp_path, "one")
    strange = [
        "demo/objects/notes.txt",
        "demo/notes.txt",
        "notes.txt",
        "Other/objects/x",
        "builds/x",
        "demo/versions/7/x",
    ]
    for key in strange:
        store.put(key, b"mine")
    found = collect(store, older_than=ANY_AGE, builds=True, delete=True, now=TOMORROW)
    assert found.found == {}
    assert found.kept_back["not sonoforge's"].objects == 2
    assert set(strange) <= set(store.list())


def test_steps_go_unless_a_version_was_made_from_them_retracted_or_not(store: Store, tmp_path: Path) -> None:
    used, spare = _step(store, "score", "used"), _step(store, "score", "spare")
    partial, shared = _step(store, "train-adapter", "partial", whole=False), _step(store, "ingest", "shared")
    bad, result, table = _step(store, "score", "bad"), _step(store, "study", "a"), _step(store, "ablate", "b")
    version(store, tmp_path, "one", inputs=[used, shared])
    retract(store, version(store, tmp_path, "two", inputs=[bad, shared]), "bad")
    seen: list[Stored] = []
    assert collect(store, older_than=ANY_AGE, delete=True).found == {}
    found = collect(store, builds=True, delete=True)
    assert found.found == {}
    assert found.kept_back["younger than 1 day"].objects == 3
    found = collect(store, builds=True, delete=True, now=TOMORROW, each=seen.append)
    assert {keys.step_folder(item.key) for item in seen} == {spare, partial}
    assert found.found == {"steps": Heap(objects=3, bytes=sum(item.bytes for item in seen))}
    assert found.kept_back == {"results of studies and ablations": Heap(objects=4, bytes=34)}
    assert {keys.step_folder(key) for key in store.list(keys.BUILDS)} == {used, shared, bad, result, table}


def test_who_dies_while_deleting_a_step_leaves_none_that_claims_to_be_complete(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        _step(store, "score", f"{index}")
    delete, gone = store.delete, []

    def die_half_way(key: str) -> None:
        if key.startswith(keys.BUILDS):
            gone.append(key)
            if len(gone) > 5:
                raise StoreUnavailableError("half way")
        delete(key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", die_half_way)
        with pytest.raises(StoreUnavailableError):
            collect(store, builds=True, delete=True, now=TOMORROW)
    assert not [key for key in store.list(keys.BUILDS) if key.endswith("ref.json")]
    assert store.list(keys.COLLECTING) == []
    collect(store, builds=True, delete=True, now=TOMORROW)
    assert store.list(keys.BUILDS) == []


@pytest.mark.parametrize("damaged", [keys.manifest_key("demo", 1), keys.lease_key("a")])
def test_where_nobody_knows_what_is_named_nothing_is_deleted(store: Store, tmp_path: Path, damaged: str) -> None:
    version(store, tmp_path, "one")
    orphan = _orphan(store)
    store.put(damaged, b"{torn")
    with pytest.raises(CorruptFileError, match=damaged):
        collect(store, older_than=ANY_AGE, delete=True)
    assert store.exists(orphan)
    assert store.list(keys.COLLECTING) == []


def test_a_listing_that_leaves_out_versions_costs_them_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("one", "two", "three"):
        version(store, tmp_path, text)
    whole, before = store.folders, store.list()
    monkeypatch.setattr(
        store, "folders", lambda prefix="": [name for name in whole(prefix) if name not in ("1", "2", "3")]
    )
    assert collect(store, older_than=ANY_AGE, delete=True).found == {}
    assert store.list() == before


def test_a_collection_that_lost_its_mark_deletes_nothing_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan, now = _orphan(store), leases._now
    sleeping = 0.0
    monkeypatch.setattr(leases, "_now", lambda: now() + sleeping)

    def sleep(item: Stored) -> None:
        nonlocal sleeping
        sleeping = 60.0

    with pytest.raises(BusyError, match="did not answer for 60 s"):
        collect(store, older_than=ANY_AGE, delete=True, each=sleep)
    assert store.exists(orphan)


def test_much_is_deleted_in_batches_and_not_kept_in_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    for index in range(1500):
        path = tmp_path / "store" / keys.object_key("demo", f"{index:064x}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    ahead = 0
    delete = store.delete

    def count(key: str) -> None:
        nonlocal ahead
        ahead -= key.startswith("demo/")
        delete(key)

    def found_one(item: Stored) -> None:
        nonlocal ahead
        ahead += 1
        assert ahead <= 1000

    monkeypatch.setattr(store, "delete", count)
    found = collect(store, older_than=ANY_AGE, delete=True, each=found_one)
    assert (ahead, found.objects, len(found.examples)) == (0, 1500, 20)
    assert store.list() == []


def test_people_are_told_what_goes_what_stays_and_why(store: Store, tmp_path: Path) -> None:
    assert lines(collect(store)) == ["nothing to delete"]
    orphan = _orphan(store)
    assert lines(collect(store)) == ["kept: 1 objects, 0.0 MB: younger than 1 day", "nothing to delete"]
    assert lines(collect(store, now=TOMORROW)) == [
        "to delete: 1 files, 0.0 MB",
        f"  {orphan}",
        "0.0 MB would be freed: run again with --delete",
    ]
    assert lines(collect(store, now=TOMORROW, delete=True))[0] == "deleted: 1 files, 0.0 MB"


def test_files_that_many_versions_share_stay_for_each_of_them(store: Store, tmp_path: Path) -> None:
    made = version(store, tmp_path, "one")
    orphan = _orphan(store)
    alike = [made.model_copy(update={"version": number}) for number in range(2, 120)]
    for manifest in alike:
        store.put(keys.manifest_key("demo", manifest.version), seal(manifest))
    assert collect(store, older_than=ANY_AGE, delete=True).examples == [orphan]
    assert _named(list_versions(store)) == set(store.list("demo/objects"))
