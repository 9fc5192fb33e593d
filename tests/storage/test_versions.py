import hashlib
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import keys
from storage.errors import CorruptFileError, StoreFullError, StoreUnavailableError, VersionNotFoundError
from storage.records import Manifest
from storage.store import Store
from storage.versions import (
    About,
    datasets,
    list_versions,
    manifest_uri,
    open_manifest,
    publish,
    verify,
)
from tests.storage.published import FID, fill

ABOUT = About(planned=1, kept=1, rejected={}, failed=0, scores=[FID], licences=["MIT"], recipe={"a": 1}, provenance={})


def _folder(path: Path, text: str) -> Path:
    (path / "data").mkdir(parents=True)
    (path / "data" / "file.txt").write_text(text)
    (path / "README.md").write_text("# same in all\n")
    return path


def test_a_published_version_is_listed_opened_and_whole(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    about = fill(folder)
    manifest, created = publish(store, "demo", folder, about)
    assert (manifest.dataset, manifest.version, created) == ("demo", 1, True)
    assert manifest.scores == [FID]
    assert [file.path for file in manifest.files] == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert {file.path: file.rows for file in manifest.files if file.rows is not None} == about.rows
    for file in manifest.files:
        assert hashlib.sha256(store.read(file.key)).hexdigest() == file.sha256
    assert list_versions(store) == [manifest]
    assert open_manifest(store, "demo") == open_manifest(store, "demo@latest") == open_manifest(store, "demo@1")
    assert manifest_uri(store, manifest).endswith("demo/versions/1/manifest.json")
    assert verify(store, manifest) == []


def test_the_same_files_again_are_the_same_version(store: Store, tmp_path: Path) -> None:
    first, _ = publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    again, created = publish(store, "demo", _folder(tmp_path / "b", "one"), ABOUT)
    assert (again, created) == (first, False)
    other, created = publish(store, "demo", _folder(tmp_path / "c", "two"), ABOUT)
    assert (other.version, created) == (2, True)
    assert other.digest != first.digest
    back, created = publish(store, "demo", tmp_path / "a", ABOUT)
    assert (back.version, back.digest, created) == (3, first.digest, True)


def test_files_shared_between_versions_are_stored_once(store: Store, tmp_path: Path) -> None:
    publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    publish(store, "demo", _folder(tmp_path / "b", "two"), ABOUT)
    assert len(store.list("demo/objects")) == 3


def test_racing_publishers_each_get_their_own_number(store: Store, tmp_path: Path) -> None:
    folders = [_folder(tmp_path / f"{index}", f"content {index}") for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda folder: publish(store, "demo", folder, ABOUT), folders))
    assert sorted(manifest.version for manifest, _ in results) == list(range(1, 9))
    assert all(created for _, created in results)
    assert [found.version for found in list_versions(store)] == list(range(1, 9))
    for manifest, _ in results:
        assert open_manifest(store, f"demo@{manifest.version}") == manifest


def test_racing_publishers_of_the_same_files_make_one_version(store: Store, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", "one")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: publish(store, "demo", folder, ABOUT), range(8)))
    assert {manifest.version for manifest, _ in results} == {1}
    assert len({manifest.digest for manifest, _ in results}) == 1


def _publish_three(arguments: tuple[str, str, int]) -> list[int]:
    root, folder, index = arguments
    store = Store(root)
    versions: list[int] = []
    for turn in range(3):
        made = _folder(Path(folder) / f"{index}-{turn}", f"process {index}, turn {turn}")
        versions.append(publish(store, "demo", made, ABOUT)[0].version)
    return versions


def test_racing_processes_each_get_their_own_numbers(tmp_path: Path) -> None:
    arguments = [(str(tmp_path / "store"), str(tmp_path), index) for index in range(3)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        taken = pool.map(_publish_three, arguments)
    assert sorted(version for versions in taken for version in versions) == list(range(1, 10))
    assert all(versions == sorted(versions) for versions in taken)


def test_a_publisher_that_dies_before_the_manifest_published_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path / "a", "one")

    def die(key: str, data: bytes) -> bool:
        raise KeyboardInterrupt

    store.probe()
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", die)
        with pytest.raises(KeyboardInterrupt):
            publish(store, "demo", folder, ABOUT)
    assert list_versions(store) == []
    with pytest.raises(VersionNotFoundError):
        open_manifest(store, "demo")
    assert publish(store, "demo", folder, ABOUT)[0].version == 1


def test_a_number_without_a_manifest_is_no_version(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    (tmp_path / "store/demo/versions/2").mkdir()  # what a publisher leaves that dies at the last moment
    assert open_manifest(store, "demo").version == 1
    assert [manifest.version for manifest in list_versions(store)] == [1]
    with pytest.raises(VersionNotFoundError):
        open_manifest(store, "demo@2")
    assert publish(store, "demo", _folder(tmp_path / "b", "two"), ABOUT)[0].version == 2


def test_a_publisher_whose_first_request_did_arrive_has_published(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.probe()
    create = store.create

    def answer_lost(key: str, data: bytes) -> bool:
        create(key, data)
        return create(key, data)

    monkeypatch.setattr(store, "create", answer_lost)
    manifest, created = publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    assert (manifest.version, created) == (1, True)
    assert [found.version for found in list_versions(store)] == [1]


@pytest.mark.parametrize("error", [StoreFullError("full"), StoreUnavailableError("gone")])
def test_a_store_that_fails_while_files_go_up_has_no_version(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(key: str, path: Path) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_file", fail)
        with pytest.raises(type(error)):
            publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    assert list_versions(store) == []


def test_what_does_not_exist_is_answered_with_what_does(store: Store, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="holds no versions yet"):
        open_manifest(store, "demo")
    publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    publish(store, "demo", _folder(tmp_path / "b", "two"), ABOUT)
    with pytest.raises(VersionNotFoundError, match="did you mean demo"):
        open_manifest(store, "dmo@1")
    for selector in ("3", "0", "best", "-1"):
        with pytest.raises(VersionNotFoundError, match="the last are demo@1, demo@2"):
            open_manifest(store, f"demo@{selector}")


def test_builds_and_half_published_datasets_are_not_listed(store: Store, tmp_path: Path) -> None:
    store.put(keys.step_file("score", "k", "x"), b"x")
    store.put("half/objects/x", b"x")
    publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    assert datasets(store) == ["demo"]


def test_a_manifest_that_is_damaged_or_moved_is_refused(store: Store, tmp_path: Path) -> None:
    manifest, _ = publish(store, "demo", _folder(tmp_path / "a", "one"), ABOUT)
    store.put("demo/versions/2/manifest.json", b"{torn")
    with pytest.raises(CorruptFileError, match="no manifest this sonoforge reads"):
        open_manifest(store, "demo@2")
    store.put("demo/versions/3/manifest.json", manifest.model_dump_json().encode())
    with pytest.raises(CorruptFileError, match="calls itself demo@1"):
        open_manifest(store, "demo@3")


def test_the_digest_depends_on_paths_and_contents_only(tmp_path: Path) -> None:
    def digest(name: str, about: About) -> Manifest:
        return publish(Store(tmp_path / name), name, tmp_path / "a", about)[0]

    _folder(tmp_path / "a", "one")
    one = digest("one", ABOUT)
    two = digest("two", ABOUT.model_copy(update={"recipe": {"b": 2}}))
    assert one.digest == two.digest
    (tmp_path / "a" / "README.md").rename(tmp_path / "a" / "readme.md")
    assert digest("three", ABOUT).digest != one.digest


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 planned, but 1 kept \+ 0 rejected \+ 0 failed"):
        About(**{**ABOUT.model_dump(), "planned": 5})


def test_folders_that_cannot_be_published_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        publish(store, "demo", tmp_path / "empty", ABOUT)
    folder = _folder(tmp_path / "a", "one")
    with pytest.raises(ValueError, match=r"rows are given for absent\.parquet"):
        publish(store, "demo", folder, ABOUT.model_copy(update={"rows": {"absent.parquet": 1}}))
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="neither a plain file nor a folder"):
        publish(store, "demo", folder, ABOUT)
    with pytest.raises(ValueError, match="cannot name a dataset"):
        publish(store, "../demo", folder, ABOUT)
