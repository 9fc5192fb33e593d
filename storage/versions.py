"""Publish and find versions: content-addressed files first, then a create-only manifest."""

import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, model_validator

from storage import channels, keys, leases, manifests, retractions
from storage.errors import RetractedError, VersionNotFoundError
from storage.manifests import datasets
from storage.records import Manifest, ManifestFile, Outcome, Written
from storage.sealed import seal
from storage.store import Store

__all__ = [
    "About",
    "datasets",
    "list_versions",
    "manifest_uri",
    "open_manifest",
    "publish",
]

_PARALLEL = 4  # files hashed or sent at once; an upload holds at most two parts of 32 MiB
_DIGEST = "sha256:"
_SHORTEST = 6  # hexadecimal digits of a digest, at least
_SHOWN = 5  # versions named where one is not found


class About(Outcome):
    """What the publisher knows of a version besides its files.

    `written` tells, by path in the published folder, what the formats said of the files they wrote. `inputs` are
    the folders of the steps that made them (builds/<step>/<key>), which garbage collection then keeps.
    """

    licences: list[str]
    recipe: dict[str, object]
    provenance: dict[str, str]
    written: dict[str, Written] = Field(default_factory=dict)
    inputs: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _adds_up(self) -> "About":
        rejected = sum(self.rejected.values())
        if self.planned != self.kept + rejected + self.failed:
            raise ValueError(
                f"{self.planned} planned, but {self.kept} kept + {rejected} rejected + {self.failed} failed: "
                "count every sample exactly once, a rejected one under its first reason"
            )
        return self


def publish(
    store: Store, dataset: str, folder: Path, about: About, *, publication: str | None = None
) -> tuple[Manifest, bool]:
    """Make a folder the next version of a dataset.

    Safe to run from several machines at once and to run again after a crash at any moment: files are stored
    under their own digest, and a version appears with its manifest, whole, or not at all.

    Args:
        store: where.
        dataset: its name.
        folder: all files below it are published. Where it is in `store.staging()` of a local folder, they are
            linked instead of copied: do not change them afterwards.
        about: what is known of them.
        publication: a random text that tells this publication from an equal one; drawn where none is given.

    Returns:
        The manifest, and True; or, where a live version has the same files, that one's, and False.

    Raises:
        RetractedError: a version with the same files was retracted.
        ExclusiveCreateError: the store could lose versions.
        BusyError: a garbage collection has been running for an hour.
        StoreUnavailableError, StoreFullError: nothing was published; run again.
    """
    keys.check_name(dataset)
    store.probe()
    sources = _files_of(folder)
    unknown = sorted(set(about.written) - set(sources))
    if unknown:
        raise ValueError(f"rows are given for {', '.join(unknown)}, which {folder} does not hold")
    with ThreadPoolExecutor(_PARALLEL) as pool:  # list() raises the first failure
        files = list(pool.map(lambda path: _describe(dataset, path, sources[path], about.written.get(path)), sources))
    digest = keys.content_digest((file.path, file.sha256) for file in files)
    last, same = _with_digest(store, dataset, digest)
    if same is not None:
        return same, False
    named = sorted({file.key for file in files} | {f"{keys.SCRATCH}/"})
    with leases.hold(store, f"publish {dataset}", named) as lease:
        _send(store, files, sources)
        while not lease.sure():
            lease.again()
            _send(store, files, sources)
        content = about.model_dump(exclude={"written"})
        content |= {
            "dataset": dataset,
            "digest": digest,
            "files": files,
            "publication": publication or uuid.uuid4().hex,
        }
        manifest, created = _claim(store, content, last + 1)
        if created and not lease.sure():  # between the two, a collection may have thought this publisher dead
            lease.again()
            _send(store, files, sources)
        return manifest, created


def list_versions(store: Store, dataset: str | None = None) -> Iterator[Manifest]:
    """All versions, retracted ones too, by name and number; of one dataset, or of all. Read as they are asked for.

    Raises:
        VersionNotFoundError: the dataset has no versions; the message names those that have.
    """
    if dataset is not None:
        found = manifests.every(store, dataset)
        first = next(found, None)
        if first is None:
            raise VersionNotFoundError(manifests.absent(store, dataset))
        yield first
        yield from found
        return
    for name in datasets(store):
        yield from manifests.every(store, name)


def open_manifest(store: Store, name: str) -> Manifest:
    """The manifest of a version by its name.

    Args:
        store: where it is.
        name: "demo@3"; "demo@latest" or "demo": the highest that was not retracted; "demo@production": what the
            channel means; "demo@sha256:1f0c2a": the one whose digest begins so, with 6 digits or more. By number
            and by digest, retracted versions are found too, to be looked at.

    Raises:
        VersionNotFoundError: there is none; the message names what there is.
        RetractedError: all versions were retracted, or the one that the channel means.
    """
    dataset, selector = keys.parse_name(name)
    if selector == keys.LATEST:
        return _latest(store, dataset)
    if selector.startswith(_DIGEST):
        return _by_digest(store, dataset, selector.removeprefix(_DIGEST))
    number = int(selector) if re.fullmatch(r"[1-9][0-9]{0,17}", selector) else None
    if number is None and keys.may_be_channel(selector):
        number = channels.resolve(store, dataset, selector)
    if number is not None:
        try:
            return manifests.read(store, dataset, number)
        except FileNotFoundError:
            pass
    raise VersionNotFoundError(_no_such_version(store, dataset, selector))


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


def _describe(dataset: str, path: str, source: Path, written: Written | None) -> ManifestFile:
    sha256 = written.sha256 if written is not None else None
    if sha256 is None:
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    key = keys.object_key(dataset, sha256, source.suffix)
    rows = written.rows if written is not None else None
    return ManifestFile(path=path, key=key, sha256=sha256, bytes=source.stat().st_size, rows=rows)


def _with_digest(store: Store, dataset: str, digest: str) -> tuple[int, Manifest | None]:
    """The last version that was looked at, and the one with this digest; RetractedError where it is not live."""
    last = 0
    for manifest in manifests.every(store, dataset):
        last = manifest.version
        if manifest.digest == digest:
            return last, _live(store, manifest)
    return last, None


def _live(store: Store, same: Manifest) -> Manifest:
    tombstone = retractions.find(store, same.dataset, same.version)
    if tombstone is not None:
        raise RetractedError(
            f"these files are those of a version that is not to be used: {retractions.describe(tombstone)}. "
            "A retraction is final: publish files that are free of the fault"
        )
    return same


def _send(store: Store, files: Sequence[ManifestFile], sources: dict[str, Path]) -> None:
    """Put the files into the store that are not there, each content once; what is there and torn is replaced."""
    contents = {file.key: sources[file.path] for file in files}
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(store.put_file, contents, contents.values()))


def _claim(store: Store, content: dict[str, object], number: int) -> tuple[Manifest, bool]:
    """Create the manifest under the first free number from `number` on, all before which are taken.

    Every manifest met on the way is read. So of several publishers of the same files, whatever the order, one
    creates the version and the others find it.
    """
    dataset = str(content["dataset"])
    while True:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest.model_validate(content | {"version": number, "created": created})
        if store.create(keys.manifest_key(dataset, number), seal(manifest)):
            return manifest, True
        while taken := _read_if_there(store, dataset, number):
            if taken.digest == manifest.digest:
                return _live(store, taken), False
            number += 1


def _read_if_there(store: Store, dataset: str, number: int) -> Manifest | None:
    try:
        return manifests.read(store, dataset, number)
    except FileNotFoundError:
        return None


def _latest(store: Store, dataset: str) -> Manifest:
    """The highest version that was not retracted."""
    top, refused = manifests.top(store, dataset), None
    for number in range(top, 0, -1):
        tombstone = retractions.find(store, dataset, number)
        refused = refused or tombstone
        if tombstone is None:
            try:
                return manifests.read(store, dataset, number)
            except FileNotFoundError:
                continue  # removed by hand
    if refused is None:
        raise VersionNotFoundError(manifests.absent(store, dataset))
    raise RetractedError(
        f"every version of {dataset} was retracted. {retractions.describe(refused)}. Publish another, or look at "
        f"this one as {dataset}@{refused.version}"
    )


def _by_digest(store: Store, dataset: str, prefix: str) -> Manifest:
    prefix = prefix.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST},64}}", prefix):
        raise ValueError(
            f"{dataset}@{_DIGEST}{prefix} names no digest: expected {_SHORTEST} to 64 hexadecimal digits, as "
            "`sonoforge list` shows them"
        )
    found = [manifest for manifest in manifests.every(store, dataset) if manifest.digest.startswith(prefix)]
    if not found:
        raise VersionNotFoundError(_no_such_version(store, dataset, f"{_DIGEST}{prefix}"))
    if len({manifest.digest for manifest in found}) > 1:
        shown = ", ".join(f"{dataset}@{manifest.version} ({manifest.digest[:16]}…)" for manifest in found)
        raise VersionNotFoundError(f"{dataset}@{_DIGEST}{prefix} could be {shown}: give more digits")
    return found[-1]


def _no_such_version(store: Store, dataset: str, selector: str) -> str:
    top = manifests.top(store, dataset)
    if not top:
        return manifests.absent(store, dataset)
    shown = ", ".join(f"{dataset}@{number}" for number in range(max(1, top - _SHOWN + 1), top + 1))
    named = channels.names(store, dataset)
    advice = f"; its channels are {', '.join(named)}" if named else ""
    return f"there is no {dataset}@{selector} in {store.url}: the last are {shown}{advice}"
