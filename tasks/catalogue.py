"""Catalogue: write the pages that show what a store holds, in the store itself or anywhere else.

Read are manifests, tombstones and channels, and of each dataset one card: never rows. The same store gives the same
bytes. Of several publishers that write at once, each looks again when it is done, and writes anew where a version came
in between: so the last one to finish has seen them all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from markupsafe import Markup

from storage import channels, keys, manifests, retractions
from storage.errors import CorruptFileError
from storage.numbered import read_all
from storage.records import Manifest, ManifestFile, Record
from storage.store import Store
from tasks.quality import HIGHER_IS_BETTER
from tasks.report import catalogue
from tasks.report.catalogue import Dataset, Entry, Line, Links, Unreadable, card
from tasks.report.catalogue.snippets import Snippet, snippets

REPORT, SAMPLES, CARD = "report.html", "samples.png", "README.md"

_AGAIN = 4  # turns at most, if versions come faster than pages are written: whoever publishes the next writes them too
_LISTED = "files.json"
_COPIES = "files"


class Catalogue(Record):
    """What was written: the address of the first page, and how much it shows. `unreadable` are versions."""

    uri: str
    datasets: int
    versions: int
    unreadable: int


class _Files(Record):
    """The files that a catalogue wrote, without its first page: what is not among the next ones goes."""

    format: str = "sonoforge-catalogue-1"
    files: list[str]


def rebuild(store: Store) -> str:
    """Write the catalogue of a store into its folder `catalogue/`, where it leads to the files of the versions.

    Returns:
        The address of its first page.

    Raises:
        StoreUnavailableError, StoreFullError: it may be out of date, or half new; run again.
    """
    return _write(store, _Inside(store)).uri


def write(store: Store, where: str) -> Catalogue:
    """Write the catalogue of `store` to a folder or URL; anywhere but in the store with copies of reports and samples.

    Raises:
        ValueError: `where` is in the store but not its folder `catalogue/`, or holds other people's pages.
    """
    own = store.uri(keys.CATALOGUE)
    target = Store(where)
    if target.url == own:
        return _write(store, _Inside(store))
    if f"{target.url}/".startswith(f"{store.url}/"):
        raise ValueError(
            f"{where} lies in the store, among the versions: write to {own}, which the store keeps for its catalogue, "
            "or somewhere else"
        )
    if target.exists(catalogue.INDEX) and not target.exists(_LISTED):
        raise ValueError(f"{where} holds an {catalogue.INDEX} that is no catalogue's: give an empty folder")
    return _write(store, _Outside(store, target))


class _Inside:
    """Pages in the store itself, which lead to the versions' own files."""

    def __init__(self, store: Store) -> None:
        self.target, self.folder = store, f"{keys.CATALOGUE}/"

    def links(self, manifest: Manifest) -> Links:
        """From the index to files of a version."""
        files = {file.path: f"../{file.key}" for file in manifest.files}
        where = keys.manifest_key(manifest.dataset, manifest.version)
        return Links(files.get(REPORT), files.get(SAMPLES), files.get(CARD), f"../{where}")

    def copies(self) -> list[str]:
        """Files beside the pages: none."""
        return []


class _Outside:
    """Pages anywhere else, with copies of reports and samples beside them: only what is missing is copied."""

    def __init__(self, store: Store, target: Store) -> None:
        self.target, self.folder = target, ""
        self._store = store
        self._copies: set[str] = set()

    def links(self, manifest: Manifest) -> Links:
        """From the index to copies of a version's files, which are there afterwards."""
        files = {file.path: file for file in manifest.files}
        return Links(report=self._copied(files.get(REPORT)), samples=self._copied(files.get(SAMPLES)))

    def copies(self) -> list[str]:
        """Files beside the pages that some version needed."""
        return sorted(self._copies)

    def _copied(self, file: ManifestFile | None) -> str | None:
        """Where the copy is; None where the version has no such file, or it is lost or damaged."""
        if file is None:
            return None
        name = f"{_COPIES}/{PurePosixPath(file.key).name}"
        if name not in self._copies and self.target.size(name) != file.bytes:
            with self.target.staging() as folder:
                path = folder / PurePosixPath(file.key).name
                try:
                    if self._store.fetch(file.key, path) != file.sha256:
                        return None
                except FileNotFoundError:
                    return None
                self.target.put_file(name, path)
        self._copies.add(name)
        return name


_Site = _Inside | _Outside


def _write(store: Store, site: _Site) -> Catalogue:
    """Write the pages until nothing was published meanwhile."""
    seen = _state(store)
    written = _turn(store, site)
    for _ in range(_AGAIN):
        now = _state(store)
        if now == seen:
            break
        seen, written = now, _turn(store, site)
    return written


def _turn(store: Store, site: _Site) -> Catalogue:
    """Write all pages, the index last but for the list of files; then remove what earlier ones left."""

    def put(name: str, text: str) -> None:
        site.target.put(site.folder + name, text.encode())

    before = _files(site)
    lines: list[Line] = []
    for name in manifests.datasets(store):
        dataset = _dataset(store, name, site)
        if dataset.versions:
            lines.append(catalogue.line(dataset))
            put(lines[-1].page, catalogue.render_dataset(store.url, dataset))
    put(catalogue.INDEX, catalogue.render_index(store.url, lines))
    files = sorted([*(line.page for line in lines), *site.copies()])
    put(_LISTED, _Files(files=files).model_dump_json(indent=1))
    for gone in sorted(before - set(files)):
        site.target.delete(site.folder + gone)
    return Catalogue(
        uri=site.target.uri(site.folder + catalogue.INDEX),
        datasets=len(lines),
        versions=sum(line.versions for line in lines),
        unreadable=sum(line.unreadable for line in lines),
    )


def _state(store: Store) -> str:
    """What there is, as a digest: all that the catalogue shows is create-only, so its keys say enough."""
    seen = hashlib.sha256()
    for name in manifests.datasets(store):
        for folder in (f"{name}/versions", keys.channel_folder(name)):
            for key in store.list(folder):
                seen.update(f"{key}\n".encode())
    return seen.hexdigest()


def _files(site: _Site) -> set[str]:
    """What an earlier catalogue left; nothing where its list says more than a catalogue writes."""
    try:
        listed = _Files.model_validate_json(site.target.read_small(site.folder + _LISTED)).files
    except (FileNotFoundError, ValueError):
        return set()
    return {name for name in listed if _is_ours(name)}


def _is_ours(name: str) -> bool:
    folder, _, file = name.partition("/")
    if folder == catalogue.PAGES:
        return file.endswith(".html") and keys.may_be_dataset(file.removesuffix(".html"))
    return folder == _COPIES and keys.is_object(f"any/objects/{file}")


def _dataset(store: Store, name: str, site: _Site) -> Dataset:
    moved, problems = _channels(store, name)
    versions = list(_versions(store, name, moved, site))
    shown = Dataset(name, versions, problems, higher_is_better=HIGHER_IS_BETTER)
    latest = shown.latest
    if latest is None:
        return shown
    if any(isinstance(version, Unreadable) and version.number > latest.number for version in versions):
        problems.append(f"{name}@latest fails: a version after {latest.number} cannot be read, see below")
    manifest = manifests.read(store, name, latest.number)
    return replace(shown, snippets=_snippets(store, manifest), card=_card(store, manifest, latest.links))


def _versions(store: Store, name: str, moved: Mapping[str, int], site: _Site) -> Iterator[Entry | Unreadable]:
    """Every version, as little of it in memory as the pages say."""
    listed = set(store.list(f"{name}/versions"))  # asking for each tombstone would double the requests

    def read(number: int) -> Entry | Unreadable:
        try:
            manifest = manifests.read(store, name, number)
            retracted = keys.tombstone_key(name, number) in listed
            tombstone = retractions.find(store, name, number) if retracted else None
        except CorruptFileError as error:
            return Unreadable(number, str(error))
        # Nobody is led to what was taken back: its pictures may be the reason.
        links = Links() if tombstone is not None else site.links(manifest)
        meaning = [channel for channel, version in moved.items() if version == number]
        return catalogue.entry(manifest, meaning, tombstone, links)

    return read_all(range(1, manifests.top(store, name) + 1), read)


def _channels(store: Store, name: str) -> tuple[dict[str, int], list[str]]:
    """The version that each channel means; those that cannot be read."""
    moved: dict[str, int] = {}
    problems: list[str] = []
    for channel in filter(keys.may_be_channel, channels.names(store, name)):
        try:
            moves = channels.history(store, name, channel)
        except CorruptFileError as error:
            problems.append(f"channel {channel}: {error}")
            continue
        if moves:
            moved[channel] = moves[-1].version
    return moved, problems


def _snippets(store: Store, manifest: Manifest) -> Sequence[Snippet]:
    files = {file.path: file.key for file in manifest.files}
    return snippets(store.url, manifest.dataset, manifest.version, files)


def _card(store: Store, manifest: Manifest, links: Links) -> Markup | None:
    """The card as HTML; None where there is none, or not the one that was published."""
    file = next((file for file in manifest.files if file.path == CARD), None)
    if file is None or file.bytes > card.LONGEST:
        return None
    try:
        data = store.read_small(file.key)
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return None
    known = {REPORT: links.report, SAMPLES: links.samples}

    def link(path: str) -> str | None:
        found = known.get(path)
        return None if found is None else f"../{found}"

    return card.render(data.decode("utf-8", "replace"), link)
