"""Publish, find, pull and verify versions: content-addressed files first, then a create-only manifest."""

import difflib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, model_validator

from storage import keys
from storage.errors import CorruptFileError, VersionNotFoundError
from storage.pulling import pull
from storage.records import Manifest, ManifestFile, Outcome
from storage.store import Store
from storage.verifying import verify

__all__ = [
    "About",
    "datasets",
    "list_versions",
    "manifest_uri",
    "open_manifest",
    "publish",
    "pull",
    "verify",
]

_PARALLEL = 4  # uploads at once; each holds at most two parts of 32 MiB


class About(Outcome):
    """What the publisher knows of a version besides its files.

    `rows` maps paths of the published folder to the rows (Parquet) or images (COCO) they hold.
    """

    licences: list[str]
    recipe: dict[str, object]
    provenance: dict[str, str]
    rows: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> "About":
        rejected = sum(self.rejected.values())
        if self.planned != self.kept + rejected + self.failed:
            raise ValueError(
                f"{self.planned} planned, but {self.kept} kept + {rejected} rejected + {self.failed} failed: "
                "count every sample exactly once, a rejected one under its first reason"
            )
        return self


def publish(store: Store, dataset: str, folder: Path, about: About) -> tuple[Manifest, bool]:
    """Make a folder the next version of a dataset.

    Safe to run from several machines at once and to run again after a crash at any moment: files are stored
    under their own digest, and a version appears with its manifest, whole, or not at all.

    Returns:
        The manifest, and True; or, where the latest version has the same files, that one's, and False.

    Raises:
        ExclusiveCreateError: the store could lose versions.
        StoreUnavailableError, StoreFullError: nothing was published; run again.
    """
    keys.check_name(dataset)
    store.probe()
    sources = _files_of(folder)
    unknown = sorted(set(about.rows) - set(sources))
    if unknown:
        raise ValueError(f"rows are given for {', '.join(unknown)}, which {folder} does not hold")
    files = [_describe(dataset, path, source, about.rows.get(path)) for path, source in sources.items()]
    digest = _digest(files)
    latest = _latest(store, dataset)
    if latest is not None and latest.digest == digest:
        return latest, False
    with ThreadPoolExecutor(_PARALLEL) as pool:  # list() raises the first failure
        list(pool.map(lambda file: _upload(store, file, sources[file.path]), files))
    number = 1 if latest is None else latest.version + 1
    while True:
        manifest = Manifest(
            dataset=dataset,
            version=number,
            digest=digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=files,
            **about.model_dump(exclude={"rows"}),
        )
        data = manifest.model_dump_json(indent=1).encode()
        if store.create(keys.manifest_key(dataset, number), data):
            return manifest, True
        # Somebody took the number; or a retried request met its own first try, which is this very text.
        if store.read(keys.manifest_key(dataset, number)) == data:
            return manifest, True
        taken = _read_manifest(store, dataset, number)
        if taken.digest == digest:
            return taken, False
        number += 1


def datasets(store: Store) -> list[str]:
    """Names under which versions may be published in a store, sorted."""
    return [name for name in store.folders() if name != keys.BUILDS and "versions" in store.folders(name)]


def list_versions(store: Store) -> list[Manifest]:
    """All versions of all datasets, by name and number."""
    found: list[Manifest] = []
    for dataset in datasets(store):
        for number in _numbers(store, dataset):
            try:
                found.append(_read_manifest(store, dataset, number))
            except FileNotFoundError:
                continue  # a folder without a manifest: a publisher died, or is about to finish
    return found


def open_manifest(store: Store, name: str) -> Manifest:
    """The manifest of "demo@3", "demo@latest" or "demo".

    Raises:
        VersionNotFoundError: there is none; the message names what there is.
    """
    dataset, selector = keys.parse_name(name)
    if selector == "latest":
        latest = _latest(store, dataset)
        if latest is not None:
            return latest
        raise VersionNotFoundError(_no_such_dataset(store, dataset))
    if selector.isdecimal() and int(selector) > 0:
        try:
            return _read_manifest(store, dataset, int(selector))
        except FileNotFoundError:
            pass
    present = _numbers(store, dataset)
    if not present:
        raise VersionNotFoundError(_no_such_dataset(store, dataset))
    shown = ", ".join(f"{dataset}@{number}" for number in present[-5:])
    raise VersionNotFoundError(f"there is no {dataset}@{selector} in {store.url}: the last are {shown}")


def manifest_uri(store: Store, manifest: Manifest) -> str:
    """Address of a version's manifest."""
    return store.uri(keys.manifest_key(manifest.dataset, manifest.version))


def _files_of(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a plain file nor a folder: only those can be published")
        if path.is_file():
            found[keys.safe_path(path.relative_to(folder).as_posix())] = path
    if not found:
        raise ValueError(f"{folder} holds no files: there is nothing to publish")
    return found


def _describe(dataset: str, path: str, source: Path, rows: int | None) -> ManifestFile:
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    key = keys.object_key(dataset, sha256, source.suffix)
    return ManifestFile(path=path, key=key, sha256=sha256, bytes=source.stat().st_size, rows=rows)


def _digest(files: list[ManifestFile]) -> str:
    return hashlib.sha256(keys.canonical_json([[file.path, file.sha256] for file in files])).hexdigest()


def _upload(store: Store, file: ManifestFile, source: Path) -> None:
    if store.size(file.key) == file.bytes:
        return
    store.put_file(file.key, source)
    arrived = store.size(file.key)
    if arrived != file.bytes:
        raise CorruptFileError(f"{store.uri(file.key)} arrived with {arrived} of {file.bytes} bytes: publish again")


def _numbers(store: Store, dataset: str) -> list[int]:
    return sorted(int(name) for name in store.folders(f"{dataset}/versions") if name.isdecimal() and name[0] != "0")


def _latest(store: Store, dataset: str) -> Manifest | None:
    for number in reversed(_numbers(store, dataset)):
        try:
            return _read_manifest(store, dataset, number)
        except FileNotFoundError:
            continue
    return None


def _read_manifest(store: Store, dataset: str, number: int) -> Manifest:
    key = keys.manifest_key(dataset, number)
    data = store.read(key)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise CorruptFileError(f"{store.uri(key)} is no manifest this sonoforge reads: {reason}") from error
    if (manifest.dataset, manifest.version) != (dataset, number):
        raise CorruptFileError(f"{store.uri(key)} calls itself {manifest.dataset}@{manifest.version}")
    return manifest


def _no_such_dataset(store: Store, dataset: str) -> str:
    present = datasets(store)
    near = difflib.get_close_matches(dataset, present, 5, 0.5) or present[:5]
    advice = f"did you mean {', '.join(near)}?" if near else "it holds no versions yet: publish with `sonoforge build`"
    return f"there is no dataset {dataset!r} in {store.url}: {advice}"
