"""Look for damage in a version: quickly, by what a listing says; or deeply, every byte, row and count."""

import itertools
from pathlib import Path

import pyarrow as pa

from storage import keys, manifests, retractions
from storage.checks.annotations import check_coco
from storage.checks.documents import DOCUMENTS, check_document
from storage.checks.notebook import Notebook
from storage.checks.pictures import SplitPictures
from storage.checks.problems import Problems
from storage.checks.tars import SplitTars
from storage.checks.thin import INDEX, METADATA, THIN, check_thin
from storage.errors import CorruptFileError, StorageError
from storage.records import SPLITS, Manifest, ManifestFile
from storage.store import Store, scratch


def verify(store: Store, manifest: Manifest, *, deep: bool = False) -> list[str]:
    """Check a version, retracted or not.

    Quickly: the manifest in the store is sealed and this one; its digest covers its files; each file is there with
    its size, all found by one listing.

    Deeply, besides: every file has its sha256; every row of every table decodes; ids ascend; pictures agree with
    their digests, their masks' shapes and their places in the index; the thin tables say the same as the rows; no
    group, background, mask or other ancestor is in two splits; counts add up to the manifest's; COCO and WebDataset
    hold the same images and masks; Croissant and provenance name the files' digests. Files are copied to scratch
    disk, a few at a time: memory does not grow with the version.

    Args:
        store: where the version is.
        manifest: the version.
        deep: read all of it.

    Returns:
        One line for each problem, at most some ten a file and a hundred in all; nothing where all is well.
    """
    problems = Problems()
    _check_manifest(store, manifest, problems)
    sound = _present(store, manifest, problems)
    if deep and not problems.about("manifest"):
        _Deep(store, manifest, problems).check(sound)
    return problems.lines()


def _check_manifest(store: Store, manifest: Manifest, problems: Problems) -> None:
    try:
        keys.check_paths(file.path for file in manifest.files)
        if manifests.read(store, manifest.dataset, manifest.version) != manifest:
            problems.add("manifest", "differs from the one in the store")
        retractions.find(store, manifest.dataset, manifest.version)
    except FileNotFoundError:
        problems.add("manifest", "missing from the store")
    except StorageError as error:
        problems.add("manifest", str(error))
    if keys.content_digest((file.path, file.sha256) for file in manifest.files) != manifest.digest:
        problems.add("manifest", "its digest is not that of its files")
    rejected = sum(manifest.rejected.values())
    if manifest.planned != manifest.kept + rejected + manifest.failed:
        problems.add(
            "counts",
            f"{manifest.planned} planned, but {manifest.kept} kept, {rejected} rejected, {manifest.failed} failed",
        )


def _present(store: Store, manifest: Manifest, problems: Problems) -> list[ManifestFile]:
    """The files that are there with their size."""
    wanted = {file.key for file in manifest.files}
    found = {item.key: item.bytes for item in store.walk(f"{manifest.dataset}/objects") if item.key in wanted}
    sound: list[ManifestFile] = []
    for file in manifest.files:
        if file.key not in found:
            problems.add(file.path, "missing from the store")
        elif found[file.key] != file.bytes:
            problems.add(file.path, f"{found[file.key]} bytes, expected {file.bytes}")
        else:
            sound.append(file)
    return sound


class _Deep:
    """One deep verification: fetches each file once and hands it to those who know its kind."""

    def __init__(self, store: Store, manifest: Manifest, problems: Problems) -> None:
        self._store, self._manifest, self._problems = store, manifest, problems
        self._numbers = itertools.count()

    def check(self, sound: list[ManifestFile]) -> None:
        """Check the files that are there."""
        data = [file for file in self._manifest.files if file.path.startswith("data/")]
        names = {file.path for file in self._manifest.files}
        for name in THIN if data or self._manifest.kept else ():
            if name not in names:
                self._problems.add(name, "is no file of this version: every version has one")
        with scratch() as temporary, Notebook(Path(temporary) / "notebook.sqlite") as notebook:
            folder = Path(temporary)
            tables: dict[str, Path] = {}
            for file in sound:
                if file.path in THIN and (local := self._fetch(file, folder)) is not None:
                    tables[file.path] = local
            check_thin(tables, self._manifest, notebook, self._problems)
            usable = {name: path for name, path in tables.items() if not self._problems.about(name)}
            whole = self._check_data(data, sound, usable, notebook, folder)
            tars = self._check_tars(sound, usable, whole, folder)
            for file in sound:
                if file.path not in THIN and file not in data and file not in tars:
                    local = self._fetch(file, folder)
                    if local is not None:
                        self._check_other(file, local, whole, notebook)
                        local.unlink()

    def _check_data(
        self,
        data: list[ManifestFile],
        sound: list[ManifestFile],
        tables: dict[str, Path],
        notebook: Notebook,
        folder: Path,
    ) -> set[str]:
        """Check the data files split by split; the splits of which every file was read."""
        whole: set[str] = set()
        rows = 0
        known = [file for split in SPLITS for file in data if file.path.startswith(f"data/{split}-")]
        for file in data:
            if file not in known:
                self._problems.add(file.path, f"belongs to no split: expected data/{'-… or data/'.join(SPLITS)}-…")
        for split in SPLITS:
            pictures = SplitPictures(split, tables, notebook, self._problems)
            mine = sorted((file for file in known if file.path.startswith(f"data/{split}-")), key=lambda f: f.path)
            for file in mine:
                local = self._fetch(file, folder) if file in sound else None
                if local is None:
                    pictures.skip(file.rows or 0)
                else:
                    rows += self._check_rows(pictures, file, local)
                    local.unlink()
            if not any(self._problems.about(file.path) for file in mine):
                whole.add(split)
                pictures.finish()
        if len(whole) == len(SPLITS) and rows != self._manifest.kept:
            self._problems.add("data", f"{rows} rows, but the manifest counts {self._manifest.kept} samples as kept")
        return whole

    def _check_tars(
        self, sound: list[ManifestFile], tables: dict[str, Path], whole: set[str], folder: Path
    ) -> list[ManifestFile]:
        """Check the WebDataset shards of splits whose rows are sound; those that were checked."""
        checked: list[ManifestFile] = []
        for split in SPLITS if METADATA in tables and INDEX in tables else ():
            prefix = f"webdataset/{split}-"
            listed = [file for file in self._manifest.files if file.path.startswith(prefix)]
            if split not in whole or not listed or any(file not in sound for file in listed):
                continue
            tars = SplitTars(split, tables, self._problems)
            for file in sorted(listed, key=lambda file: file.path):
                local = self._fetch(file, folder)
                if local is not None:
                    tars.check(file.path, local, file.rows)
                    local.unlink()
                checked.append(file)
            if not any(self._problems.about(file.path) for file in listed):
                tars.finish(split)
        return checked

    def _check_rows(self, pictures: SplitPictures, file: ManifestFile, local: Path) -> int:
        try:
            rows = pictures.check(file.path, local)
        except (ValueError, OSError, pa.ArrowException) as error:
            self._problems.add(file.path, f"does not decode: {str(error).splitlines()[0]}")
            return 0
        if file.rows is not None and rows != file.rows:
            self._problems.add(file.path, f"{rows} rows, {file.rows} declared")
        return rows

    def _check_other(self, file: ManifestFile, local: Path, whole: set[str], notebook: Notebook) -> None:
        """Check a file that is no table; one made from rows that could not all be read, by its sha256 alone."""
        split = file.path.rsplit("/", 1)[-1].split(".")[0]
        if file.path.startswith("coco/") and split in whole:
            check_coco(file.path, local, notebook, self._problems)
        elif file.path in DOCUMENTS:
            check_document(file.path, local, self._manifest, self._problems)

    def _fetch(self, file: ManifestFile, folder: Path) -> Path | None:
        """A copy of a file on this machine, None where it is damaged."""
        local = folder / str(next(self._numbers))
        try:
            sha256 = self._store.fetch(file.key, local)
            if sha256 != file.sha256:  # perhaps only on its way
                sha256 = self._store.fetch(file.key, local)
        except FileNotFoundError:
            self._problems.add(file.path, "missing from the store")
            return None
        except CorruptFileError as error:  # it became shorter since it was listed
            self._problems.add(file.path, str(error))
            return None
        if sha256 != file.sha256:
            self._problems.add(file.path, f"sha256 is {sha256[:12]}…, expected {file.sha256[:12]}…")
            local.unlink()
            return None
        return local
