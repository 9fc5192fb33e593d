"""Bring a version, or a part of it, to this machine: verified on its way, and complete as soon as it is visible.

A pull that is interrupted, however, goes on where it stopped when it is run again. One that was finished transfers
nothing when it is run again, or only what is missing or damaged.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from storage import converting, filtering, keys, landing, retractions
from storage.errors import CorruptFileError, SelectionError, StorageError, UnsafePathError
from storage.explaining import cause, explained
from storage.filtering import INDEX, LEDGER, METADATA, SOURCES
from storage.landing import ABOUT, RESERVED, Landed, Partial, in_parallel, sha256_of
from storage.records import SPLITS, Manifest, ManifestFile, Written
from storage.selecting import Selection
from storage.store import Store

Advance = Callable[[int], None]
PullFormat = Literal["parquet", "coco", "webdataset"]

_PARALLEL = 4  # files at once; one streaming request each
_OTHER_FORMS = ("coco/", "webdataset/")  # published for those who read the store itself; pulls convert
_LARGE_DOCUMENTS = ("report.html", "samples.png")


@dataclass(frozen=True)
class Pulled:
    """A folder that holds what was asked for: `rows` samples, for which `bytes_moved` came from the store now."""

    path: Path
    bytes_moved: int
    rows: int
    up_to_date: bool


class _Plan(NamedTuple):
    """Published files that a pulled folder holds, at which path; and those that others are made from."""

    kept: list[tuple[str, ManifestFile]]
    inputs: list[ManifestFile]


def pull(
    store: Store,
    manifest: Manifest,
    out: Path,
    *,
    format: PullFormat = "parquet",
    split: str | None = None,
    where: str | None = None,
    advance: Advance | None = None,
    expect: Advance | None = None,
) -> Pulled:
    """Copy a version into a folder.

    Args:
        store: where the version is.
        manifest: the version.
        out: the folder: not there yet, empty, or what the same pull made before, which is then checked and mended.
        format: "parquet": the files as published, or the same layout with fewer rows. "coco": `images/<id>.png`,
            `masks/<id>.png` and `annotations/<split>.json`. "webdataset": `<split>-000000.tar` and so on.
        split: only this one: train, val or test.
        where: only rows that meet this condition on `metadata.parquet`; see `selecting.Condition`.
        advance: called with the bytes just received, from one thread at a time.
        expect: called with the bytes that come next, before they do; a second time for the pictures that a condition
            chose, which nobody knows before.

    Raises:
        RetractedError: the version was retracted.
        SelectionError: the condition is none, or no row meets it.
        BusyError: another pull to the same place is running.
        CorruptFileError: bytes differ from their digest. What had arrived before stays in a hidden folder beside
            `out`, and is used when the same is pulled again.
        StoreFullError: no space is left here; the same holds.
        UnsafePathError: the manifest names a path outside `out`; nothing was copied.
        ValueError: `out` holds something else.
    """
    selection = selected(format, split, where)
    _plan(manifest, selection)
    retractions.refuse(store, manifest)
    out = out.expanduser().absolute()
    moved = _Moved(advance)
    try:
        with landing.claimed(out):
            present = landing.held(out)
            if present is not None:
                _same(out, present, manifest, selection)
                if landing.intact(out, present):
                    landing.discard(out)
                    return Pulled(out, 0, present.rows, up_to_date=True)
            partial = Partial(out, manifest, selection)
            landed = partial.landed()
            if landed is None:
                seed = out if present is not None else None
                landed = _Pull(store, manifest, selection, partial, moved, expect).run(seed)
            partial.finish(present)
    except StorageError:
        raise
    except OSError as error:
        raise explained(error, "write", str(out)) from cause(error)
    return Pulled(out, moved.total, landed.rows, up_to_date=False)


def planned_bytes(
    manifest: Manifest, format: PullFormat = "parquet", split: str | None = None, where: str | None = None
) -> int | None:
    """What a pull into an empty place transfers; None with a condition, which has to be evaluated to know."""
    plan = _plan(manifest, selected(format, split, where))
    files = [*plan.inputs, *(file for _, file in plan.kept)]
    return None if where is not None else sum(file.bytes for file in files)


def selected(format: PullFormat = "parquet", split: str | None = None, where: str | None = None) -> Selection:
    """What is asked for; SelectionError where there is no such split or format."""
    if split is not None and split not in SPLITS:
        raise SelectionError(f"there is no split {split!r}: expected {', '.join(SPLITS)}")
    if format not in get_args(PullFormat):
        raise SelectionError(f"there is no format {format!r} to pull: expected {', '.join(get_args(PullFormat))}")
    return Selection(format=format, split=split, where=where)


def _plan(manifest: Manifest, selection: Selection) -> _Plan:
    """What a pull fetches.

    Raises:
        UnsafePathError: a path would leave the folder that is pulled to, or is taken.
        SelectionError: the version lacks what the selection needs.
    """
    name = f"{manifest.dataset}@{manifest.version}"
    keys.check_paths(file.path for file in manifest.files)
    for file in manifest.files:
        if file.path.split("/")[0].casefold() in {name.casefold() for name in RESERVED}:
            raise UnsafePathError(f"{name} holds {file.path}, which is where a pull says what it is")
    files = [file for file in manifest.files if not file.path.startswith(_OTHER_FORMS)]
    if selection.format == "parquet" and selection.whole:
        return _Plan([(file.path, file) for file in files], [])
    data = [file for file in files if file.path.startswith(f"data/{selection.split or ''}")]
    thin = {file.path: file for file in files if file.path in (METADATA, LEDGER, INDEX, SOURCES)}
    needed = ([] if selection.whole else [METADATA]) + ([] if selection.where is None else [INDEX])
    for path in needed:
        if path not in thin:
            raise SelectionError(f"{name} was published without {path}, which a part of it needs: pull the whole")
    if not data:
        raise SelectionError(f"{name} has no rows{f' in split {selection.split}' if selection.split else ''}")
    documents = [
        (f"{ABOUT}/{file.path}", file)
        for file in files
        if file.path not in thin and not file.path.startswith("data/") and file.path not in _LARGE_DOCUMENTS
    ]
    if selection.format != "parquet":
        return _Plan(documents, ([] if selection.where is not None else data) + [thin[path] for path in needed])
    kept = documents + [(SOURCES, file) for path, file in thin.items() if path == SOURCES]
    if selection.where is not None:
        return _Plan(kept, [thin[path] for path in needed])
    kept += [(file.path, file) for file in data]
    return _Plan(kept, [file for path, file in thin.items() if path != SOURCES])


def _same(out: Path, present: Landed, manifest: Manifest, selection: Selection) -> None:
    """ValueError where a folder that was pulled holds something else than is asked for."""
    asked = (manifest.dataset, manifest.version, manifest.digest, selection)
    has = (present.manifest.dataset, present.manifest.version, present.manifest.digest, present.selection)
    if asked != has:
        raise ValueError(
            f"{out} is not an empty folder: it holds {has[0]}@{has[1]} ({has[3]}), and {asked[0]}@{asked[1]} "
            f"({selection}) is asked for: name another folder, or remove that one"
        )


class _Moved:
    """Counts what arrives, and ends transfers that are of no use any more."""

    def __init__(self, advance: Advance | None) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._stopped = False
        self.total = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            if self._stopped:
                raise _StoppedError
            self.total += count
            if self._advance is not None:
                self._advance(count)

    def stop(self) -> None:
        """Another transfer failed: end this one when it next reports."""
        self._stopped = True


class _StoppedError(Exception):
    """Ends a transfer; nobody sees it, because what stopped the transfer is raised before."""


class _Pull:
    """One pull into its hidden folder."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        selection: Selection,
        partial: Partial,
        moved: _Moved,
        expect: Advance | None,
    ) -> None:
        self._store, self._manifest, self._selection = store, manifest, selection
        self._partial, self._moved = partial, moved
        self._expect: Advance = expect or (lambda _: None)
        self._inputs = partial.work / "inputs"

    def run(self, seed: Path | None) -> Landed:
        """Fetch and make what is missing; take what is right in `seed`, an older pull of the same."""
        plan = _plan(self._manifest, self._selection)
        self._bring(plan, seed)
        published = [(path, file.sha256) for path, file in plan.kept]
        if self._selection.whole and self._selection.format == "parquet":
            return self._partial.seal(self._manifest.kept, published)
        tables, written = self._tables()
        counts = converting.count(tables)
        made = self._made(tables, written)
        card = self._partial.folder / "README.md"
        card.write_text(part_card(self._manifest, self._selection, counts))
        return self._partial.seal(sum(counts.values()), chain(published, [("README.md", _sha256(card))], made))

    def _tables(self) -> tuple[Path, dict[str, Written]]:
        """The folder with `data/` of what was asked for, fetched row by row where a condition says which rows.

        And the files that were written there.
        """
        if self._selection.where is None:
            return self._partial.folder if self._selection.format == "parquet" else self._inputs, {}
        tables = self._empty("rows")
        rows = filtering.Rows(self._store, self._manifest, self._selection, self._inputs, self._partial.work)
        self._expect(rows.bytes_missing)
        rows.fetch(self._moved, self._moved.stop)
        return tables, rows.write(tables)

    def _made(self, tables: Path, written: dict[str, Written]) -> Iterator[tuple[str, str]]:
        """Make what is not as published; path and sha256 of each file."""
        folder, work, split = self._partial.folder, self._empty("made"), self._selection.split
        match self._selection.format:
            case "coco":
                return converting.to_coco(tables, work, folder, converting.all_labels(self._inputs))
            case "webdataset":
                return converting.to_webdataset(tables, work, folder)
            case "parquet" if split is not None and self._selection.where is None:
                return converting.moved(work, filtering.narrow(self._inputs, work, split), folder)
            case "parquet":
                return converting.moved(tables, written, folder)

    def _empty(self, name: str) -> Path:
        """A folder for what is made anew each time."""
        path = self._partial.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def _bring(self, plan: _Plan, seed: Path | None) -> None:
        """All published files that are needed, each under its own name only once it is verified."""
        if seed is not None:
            for path, file in plan.kept:
                _link(seed / path, self._partial.folder / path, file.sha256)
        wanted = [(self._partial.folder / path, file) for path, file in plan.kept]
        wanted += [(self._inputs / file.path, file) for file in plan.inputs]

        def missing(pair: tuple[Path, ManifestFile]) -> tuple[Path, ManifestFile] | None:
            return None if sha256_of(pair[0]) == pair[1].sha256 else pair

        todo = [pair for pair in in_parallel(missing, wanted, _PARALLEL) if pair is not None]
        self._expect(sum(file.bytes for _, file in todo))
        todo.sort(key=lambda pair: -pair[1].bytes)  # the largest first, so that none is left running alone
        for _ in in_parallel(lambda pair: self._fetch(*pair), todo, _PARALLEL, self._moved.stop):
            pass

    def _fetch(self, target: Path, file: ManifestFile) -> None:
        arriving = self._partial.work / "arriving" / str(self._manifest.files.index(file))
        arriving.parent.mkdir(exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch_file(self._store, file, arriving, target, self._moved)


def fetch_file(store: Store, file: ManifestFile, arriving: Path, target: Path, advance: Advance | None = None) -> None:
    """Fetch one file, which is at `target` only once it is verified; a second time where it arrives damaged.

    What has arrived when this breaks off stays beside `arriving`, for the next call to go on from.
    """
    where = store.uri(file.key)
    found = sha256_of(arriving)  # where an earlier call was killed just before the end
    if found == file.sha256:
        os.replace(arriving, target)
        return
    for _ in range(2):
        try:
            found = store.fetch(file.key, arriving, advance, size=file.bytes)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{file.path} is gone from the store ({where})") from error
        if found == file.sha256:
            os.replace(arriving, target)
            return
        arriving.unlink()
    raise CorruptFileError(
        f"{file.path} disagrees with its manifest: sha256 {str(found)[:12]}…, expected {file.sha256[:12]}…. "
        f"Pull again; if it stays so, {where} is damaged: restore it from a copy"
    )


def part_card(manifest: Manifest, selection: Selection, counts: Mapping[str, int]) -> str:
    """README.md of a part of a version: says what it is, and where the whole is described."""
    name = f"{manifest.dataset}@{manifest.version}"
    header = ""
    if selection.format == "parquet":  # for the `datasets` library
        files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in counts)
        header = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n"
    listed = "".join(f"- {split}: {rows} rows\n" for split, rows in counts.items())
    what = f"{sum(counts.values())} of the {manifest.kept} rows" if not selection.whole else "All rows"
    return (
        f"{header}# {name}\n\n{what} of {name}, pulled with `{selection}`:\n\n{listed}\n"
        f"Licences: {', '.join(manifest.licences)}.\n\nDocuments in `{ABOUT}/` describe the whole version; "
        "`version.json` says which one it is. `sha256sum -c SHA256SUMS` checks this folder.\n"
    )


def _link(source: Path, target: Path, sha256: str) -> None:
    """Give a file that is already here a second name, if it is the right one."""
    if sha256_of(source) != sha256 or source.is_symlink():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
