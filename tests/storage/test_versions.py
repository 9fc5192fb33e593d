import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import channels, keys
from storage.errors import CorruptFileError, StoreFullError, StoreUnavailableError, VersionNotFoundError
from storage.records import Manifest, Written
from storage.sealed import seal
from storage.store import Store
from storage.verifying import verify
from storage.versions import About, datasets, list_versions, manifest_uri, open_manifest, publish
from tests.storage.forged import write
from tests.storage.published import FID
from tests.storage.small import ABOUT, folder, version


def test_a_published_version_is_listed_opened_and_whole(store: Store, tmp_path: Path) -> None:
    made = tmp_path / "folder"
    about = write(made).model_copy(update={"scores": [FID]})
    manifest, created = publish(store, "demo", made, about)
    assert (manifest.dataset, manifest.version, created) == ("demo", 1, True)
    assert manifest.scores == [FID]
    assert [file.path for file in manifest.files] == sorted(
        path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()
    )
    assert {file.path: file.rows for file in manifest.files if file.rows is not None} == {
        path: written.rows for path, written in about.written.items()
    }
    for file in manifest.files:
        assert hashlib.sha256(store.read(file.key)).hexdigest() == file.sha256
    assert list(list_versions(store)) == list(list_versions(store, "demo")) == [manifest]
    assert open_manifest(store, "demo") == open_manifest(store, "demo@latest") == open_manifest(store, "demo@1")
    assert manifest_uri(store, manifest).endswith("demo/versions/1/manifest.json")
    assert verify(store, manifest, deep=True) == []


def test_the_same_files_again_are_the_same_version(store: Store, tmp_path: Path) -> None:
    first, _ = publish(store, "demo", folder(tmp_path / "a", "one"), ABOUT)
    again, created = publish(store, "demo", folder(tmp_path / "b", "one"), ABOUT)
    assert (again, created) == (first, False)
    other, created = publish(store, "demo", folder(tmp_path / "c", "two"), ABOUT)
    assert (other.version, created) == (2, True)
    assert other.digest != first.digest
    back, created = publish(store, "demo", tmp_path / "a", ABOUT)
    assert (back, created) == (first, False)
    elsewhere, created = publish(store, "other", tmp_path / "a", ABOUT)
    assert (elsewhere.dataset, elsewhere.version, elsewhere.digest, created) == ("other", 1, first.digest, True)


def test_files_shared_between_versions_are_stored_once(store: Store, tmp_path: Path) -> None:
    publish(store, "demo", folder(tmp_path / "a", "one"), ABOUT)
    publish(store, "demo", folder(tmp_path / "b", "two"), ABOUT)
    assert len(store.list("demo/objects")) == 3


def test_racing_publishers_each_get_their_own_number(store: Store, tmp_path: Path) -> None:
    folders = [folder(tmp_path / f"{index}", f"content {index}") for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda made: publish(store, "demo", made, ABOUT), folders))
    assert sorted(manifest.version for manifest, _ in results) == list(range(1, 9))
    assert all(created for _, created in results)
    assert [found.version for found in list_versions(store)] == list(range(1, 9))
    for manifest, _ in results:
        assert open_manifest(store, f"demo@{manifest.version}") == manifest


def test_racing_publishers_of_the_same_files_make_one_version(store: Store, tmp_path: Path) -> None:
    """Also where publishers of other files take the numbers in between."""
    folders = [folder(tmp_path / f"{index}", "the same" if index % 2 else f"content {index}") for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda made: publish(store, "demo", made, ABOUT), folders))
    same = [result for index, result in enumerate(results) if index % 2]
    assert len({manifest.version for manifest, _ in same}) == 1
    assert [created for _, created in same].count(True) == 1
    assert sorted({manifest.version for manifest, _ in results}) == [1, 2, 3, 4, 5]


def test_a_publisher_that_dies_before_the_manifest_published_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder(tmp_path / "a", "one")

    def die(key: str, data: bytes) -> bool:
        raise KeyboardInterrupt

    store.probe()
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", die)
        with pytest.raises(KeyboardInterrupt):
            publish(store, "demo", made, ABOUT)
    assert list(list_versions(store)) == []
    with pytest.raises(VersionNotFoundError):
        open_manifest(store, "demo")
    assert publish(store, "demo", made, ABOUT)[0].version == 1
    assert store.list(keys.LEASES) == []


def test_a_number_without_a_manifest_is_no_version(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version(store, tmp_path, "one")
    (tmp_path / "store/demo/versions/2").mkdir()  # what a publisher leaves that dies at the last moment
    (tmp_path / "store/demo/versions/9").mkdir()
    assert open_manifest(store, "demo").version == 1
    assert [manifest.version for manifest in list_versions(store)] == [1]
    with pytest.raises(VersionNotFoundError):
        open_manifest(store, "demo@2")
    assert version(store, tmp_path, "two").version == 2


@pytest.mark.parametrize("hidden", [{"5"}, {"2", "4"}, {"1", "2", "3", "4", "5"}])
def test_a_listing_that_leaves_out_versions_hides_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: set[str]
) -> None:
    texts = ("one", "two", "three", "four", "five")
    made = [version(store, tmp_path, text) for text in texts]
    whole = store.folders
    monkeypatch.setattr(store, "folders", lambda prefix="": [name for name in whole(prefix) if name not in hidden])
    assert open_manifest(store, "demo") == made[-1]
    assert list(list_versions(store, "demo")) == made
    assert publish(store, "demo", tmp_path / "demo two", ABOUT) == (made[1], False)
    assert version(store, tmp_path, "six").version == 6


def test_a_version_that_was_removed_by_hand_is_passed_over(store: Store, tmp_path: Path) -> None:
    made = [version(store, tmp_path, text) for text in ("one", "two", "three")]
    store.delete(keys.manifest_key("demo", 2))
    assert list(list_versions(store)) == [made[0], made[2]]
    assert version(store, tmp_path, "four").version == 4
    with pytest.raises(VersionNotFoundError, match="there is no demo@2 "):
        open_manifest(store, "demo@2")


def test_versions_are_read_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    made = version(store, tmp_path, "one")
    for number in range(2, 150):  # cheaper than publishing them
        store.put(keys.manifest_key("demo", number), seal(made.model_copy(update={"version": number})))
    reads: list[str] = []
    read = store.read_small
    monkeypatch.setattr(store, "read_small", lambda key: reads.append(key) or read(key))
    assert next(list_versions(store)) == made
    assert len(reads) < 100
    assert [manifest.version for manifest in list_versions(store)] == list(range(1, 150))


@pytest.mark.parametrize("error", [StoreFullError("full"), StoreUnavailableError("gone")])
def test_a_store_that_fails_while_files_go_up_has_no_version(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(key: str, path: Path) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_file", fail)
        with pytest.raises(type(error)):
            version(store, tmp_path, "one")
    assert list(list_versions(store)) == []


def test_what_does_not_exist_is_answered_with_what_does(store: Store, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="holds no versions yet"):
        open_manifest(store, "demo")
    version(store, tmp_path, "one")
    version(store, tmp_path, "two")
    for absent in (lambda: open_manifest(store, "dmo@1"), lambda: list(list_versions(store, "dmo"))):
        with pytest.raises(VersionNotFoundError, match="did you mean demo"):
            absent()
    for selector in ("3", "0", "best", "-1", "01", "²", "sha256:000000", "9" * 40):
        with pytest.raises(VersionNotFoundError, match=r"the last are demo@1, demo@2$"):
            open_manifest(store, f"demo@{selector}")
    channels.move(store, "demo", "production", 1)
    with pytest.raises(VersionNotFoundError, match="its channels are production"):
        open_manifest(store, "demo@prodution")


def test_a_digest_names_a_version_by_as_many_digits_as_it_takes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = version(store, tmp_path, "one")
    for digits in (6, 12, 64):
        assert open_manifest(store, f"demo@sha256:{one.digest[:digits]}") == one
    assert open_manifest(store, f"demo@sha256:{one.digest[:8].upper()}") == one
    for wrong in ("", one.digest[:5], one.digest + "0", "../../xx"):
        with pytest.raises(ValueError, match="expected 6 to 64 hexadecimal digits"):
            open_manifest(store, f"demo@sha256:{wrong}")
    alike = one.model_copy(update={"version": 2, "digest": one.digest[:20] + "0" * 44})
    store.put(keys.manifest_key("demo", 2), seal(alike))
    with pytest.raises(VersionNotFoundError, match=rf"could be demo@1 \({one.digest[:16]}…\), demo@2 .* more digits"):
        open_manifest(store, f"demo@sha256:{one.digest[:20]}")
    assert open_manifest(store, f"demo@sha256:{one.digest[:24]}") == one


def test_builds_and_half_published_datasets_are_not_listed(store: Store, tmp_path: Path) -> None:
    store.put(keys.step_file("score", "k", "x"), b"x")
    store.put("half/objects/x", b"x")
    store.put("leases/versions/x", b"x")
    version(store, tmp_path, "one")
    assert datasets(store) == ["demo"]


def test_a_manifest_that_is_damaged_or_moved_is_refused(store: Store, tmp_path: Path) -> None:
    manifest = version(store, tmp_path, "one")
    data = seal(manifest)
    for damaged in (b"{torn", data[:-20], data.replace(b'"kept": 1', b'"kept": 2')):
        store.put(keys.manifest_key("demo", 2), damaged)
        with pytest.raises(CorruptFileError, match=r"demo/versions/2/manifest\.json is"):
            open_manifest(store, "demo@2")
    store.put(keys.manifest_key("demo", 2), data)
    with pytest.raises(CorruptFileError, match="calls itself demo@1"):
        open_manifest(store, "demo@2")


def test_the_digest_depends_on_paths_and_contents_only(tmp_path: Path) -> None:
    def digest(name: str, about: About) -> Manifest:
        return publish(Store(tmp_path / name), name, tmp_path / "a", about)[0]

    folder(tmp_path / "a", "one")
    one = digest("one", ABOUT)
    two = digest("two", ABOUT.model_copy(update={"recipe": {"b": 2}}))
    assert one.digest == two.digest
    (tmp_path / "a" / "README.md").rename(tmp_path / "a" / "readme.md")
    assert digest("three", ABOUT).digest != one.digest


def test_a_file_whose_digest_is_known_is_not_read_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(tmp_path / "a", "one")
    sha256 = hashlib.sha256(b"one").hexdigest()
    known = {"data/file.txt": Written(rows=1, sha256=sha256)}
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    manifest, _ = publish(Store(tmp_path / "store"), "demo", made, ABOUT.model_copy(update={"written": known}))
    assert hashed == [str(made / "README.md")]
    assert {file.path: (file.rows, file.sha256) for file in manifest.files}["data/file.txt"] == (1, sha256)


@pytest.mark.parametrize("url", ["local", "ceph"], indirect=True)
def test_files_that_are_there_are_not_sent_again_unless_they_are_torn(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder(tmp_path / "a", "one")
    store.probe()
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", lambda key, data: 1 / 0)  # dies between the files and the manifest
        with pytest.raises(ZeroDivisionError):
            publish(store, "demo", made, ABOUT)
    torn = keys.object_key("demo", hashlib.sha256(b"one").hexdigest(), ".txt")
    store.put(torn, b"On3")
    before = {item.key: item.modified for item in store.walk("demo/objects")}
    time.sleep(1.1)  # S3 tells seconds
    manifest, created = publish(store, "demo", made, ABOUT)
    after = {item.key: item.modified for item in store.walk("demo/objects")}
    assert created
    assert {key for key in after if after[key] != before[key]} == {torn}
    assert all(hashlib.sha256(store.read(file.key)).hexdigest() == file.sha256 for file in manifest.files)


def test_staged_files_are_linked_into_a_local_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.staging() as staging:
        made = folder(staging / "made", "one")
        places = {path.name: path.stat().st_ino for path in made.rglob("*.*")}
        manifest, _ = publish(store, "demo", made, ABOUT)
    for file in manifest.files:
        assert (tmp_path / "store" / file.key).stat().st_ino == places[Path(file.path).name]
        assert hashlib.sha256(store.read(file.key)).hexdigest() == file.sha256


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 planned, but 1 kept \+ 0 rejected \+ 0 failed"):
        About(**{**ABOUT.model_dump(), "planned": 5})


def test_folders_that_cannot_be_published_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        publish(store, "demo", tmp_path / "empty", ABOUT)
    made = folder(tmp_path / "a", "one")
    with pytest.raises(ValueError, match=r"rows are given for absent\.parquet"):
        publish(store, "demo", made, ABOUT.model_copy(update={"written": {"absent.parquet": Written(rows=1)}}))
    (made / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="neither a plain file nor a folder"):
        publish(store, "demo", made, ABOUT)
    with pytest.raises(ValueError, match="cannot name a dataset"):
        publish(store, "../demo", made, ABOUT)
