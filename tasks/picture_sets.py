"""Picture sets: whatever holds pictures, opened by its name and read one picture at a time.

A set is a folder of pictures, a public dataset in its own layout, a pulled version, a Parquet file, or a version in a
store; each may end in ":SPLIT". What cannot be decoded is no picture, and is listed with the reason.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import VersionNotFoundError
from storage.json_stream import members
from storage.reading import Version, open_version
from storage.records import LINEAGE_FIELDS, SPLITS
from tasks import sources
from tasks.imaging import Grey, Mask
from tasks.sources import files, hc18

LINEAGE = ("id", "dataset", *(name for name, kind in LINEAGE_FIELDS if pa.types.is_string(kind)))
"""Text columns that say what a row is and descends from."""

_LABELS = {label for source in sources.SOURCES.values() for label in source.LABELS}
_SPLIT_FOLDERS = {name: name for name in SPLITS} | {"training": "train", "validation": "val", "testing": "test"}
_MASK = re.compile(r"(?P<stem>.+?)(_mask(_\d+)?|_annotation)", re.IGNORECASE)
_LAYOUTS = {
    "INFO.csv": "busuclm",
    "bus_data.csv": "busbra",
    "training_set_pixel_size_and_HC.csv": "hc18",
    "labels.csv": "folder",
}
_ROWS = 64


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture: `image` grey (h, w) in its own size, `mask` of that shape or None where none is drawn.

    `file` names it within its set: a path below the folder, or the id of a row. `group` is the patient or exam where
    that is known. `lineage` holds the columns of `LINEAGE` that the set has.
    """

    file: str
    image: Grey = field(repr=False)
    mask: Mask | None = field(default=None, repr=False)
    label: str | None = None
    group: str | None = None
    split: str | None = None
    lineage: Mapping[str, str | None] = field(default_factory=dict)


class Unreadable(NamedTuple):
    """A file or row that gives no picture, and why."""

    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class PictureSet:
    """A set of pictures. `count` is how many it names, unreadable ones included; `describe` says so in one line."""

    describe: str
    count: int
    _read: Callable[[], Iterator[Picture | Unreadable]] = field(repr=False)
    _unreadable: dict[str, str] = field(default_factory=dict, repr=False)

    def pictures(self) -> Iterator[Picture]:
        """Every picture, in an order that stays the same; one in memory at a time, as often as asked for.

        Raises:
            ValueError: at the end, where not one could be read.
        """
        found = False
        for read in self._read():
            if isinstance(read, Picture):
                found = True
                yield read
            else:
                self._unreadable[read.file] = read.reason
        if not found:
            first = next((f"; {bad.file}: {bad.reason}" for bad in self.unreadable), "")
            raise ValueError(f"no picture could be read from {self.describe}{first}")

    @property
    def unreadable(self) -> list[Unreadable]:
        """What gave no picture, as far as the set was read."""
        return [Unreadable(file, reason) for file, reason in self._unreadable.items()]


def open_set(spec: str, store: str = "./store") -> PictureSet:
    """The pictures that `spec` names.

    Args:
        spec: a folder of pictures (png, jpg, bmp, tif) at any depth, where `<stem>_mask.png` beside a picture or the
            same name below `masks/` is its mask, and folders called like a label or a split say so; the folder of a
            dataset that `tasks.sources` reads; a folder that `sonoforge pull` made; a Parquet file with a column
            `image`; or NAME[@VERSION] in the store. ":train", ":val" or ":test" at the end takes that split alone. Of
            tables with a column `verdict`, only kept rows count.
        store: folder or URL of the store, or "block:NAME".

    Raises:
        ValueError: there is nothing of that name, or it holds no picture.
    """
    name, split = _parted(spec)
    path = Path(name).expanduser()
    if path.is_dir():
        found = _folder(path, split)
    elif path.is_file():
        found = _one_file(path, split)
    else:
        found = _version(name, split, store)
    if not found.count:
        wanted = f"{', '.join(sorted(files.SUFFIXES))} files at any depth" if path.is_dir() else "at least one"
        raise ValueError(f"{found.describe}: expected {wanted}")
    return found


def _parted(spec: str) -> tuple[str, str | None]:
    """Name and split of a spec; a path that exists as written has no split."""
    name, colon, end = spec.rpartition(":")
    if not colon or Path(spec).expanduser().exists() or not re.fullmatch(r"[a-z]+", end):
        return spec, None
    if end not in SPLITS:
        raise ValueError(f"{spec}: there is no split {end!r}: expected {', '.join(SPLITS)}")
    return name, end


def _version(name: str, split: str | None, store: str) -> PictureSet:
    from tasks.connect import open_store

    if "/" in name or "\\" in name or not name:
        raise ValueError(f"there is no folder or file {name!r}; expected one, or NAME[@VERSION] of the store {store}")
    try:
        version = open_version(name, open_store(store))
    except VersionNotFoundError as error:
        raise VersionNotFoundError(f"{name} is neither a folder nor a file here, and {error}") from error
    whole = f"{version.manifest.dataset}@{version.manifest.version}"
    count = len(version) if split is None else len(version.metadata(["split"], split=split))
    return PictureSet(f"{count} rows of {_split_of(whole, split)} in {store}", count, lambda: _rows(version, split))


def _rows(version: Version, split: str | None) -> Iterator[Picture]:
    """Rows of a published version; a damaged picture there is an error, not a reason."""
    known = version.columns
    columns = [name for name in ("id", "image", "mask", "label", "group", "split", *LINEAGE[1:]) if name in known]
    for row in version.rows(columns, split=split):
        lineage = {name: row[name] for name in LINEAGE if name in columns}
        yield Picture(row["id"], row["image"], row["mask"], row["label"], row.get("group"), row["split"], lineage)


def _one_file(path: Path, split: str | None) -> PictureSet:
    if path.suffix.lower() != ".parquet":
        raise ValueError(f"{path} is one file; expected a folder of pictures, or a Parquet file with a column image")
    return _tables([path], path.name, path, split)


def _folder(root: Path, split: str | None) -> PictureSet:
    shards = sorted((root / "data").glob("*.parquet")) or sorted(root.glob("*.parquet"))
    if (root / "version.json").is_file() and not shards and any(root.glob("*.tar")):
        raise ValueError(f"{root} was pulled as tar files, which are read in order only: pull it as Parquet or COCO")
    tables = [path for path in shards if "image" in _schema(path).names]
    if tables:
        return _tables(tables, "data", root, split)
    listed, masks = _listed(root)
    layout = next((layout for marker, layout in _LAYOUTS.items() if _is_laid_out(root, marker)), None)
    if layout is not None:
        return _source(root, layout, split, len(listed))
    about = _annotated(root)
    wanted = [path for path in listed if split is None or _split(path, root, about) == split]
    describe = f"{len(wanted)} pictures in {_split_of(str(root), split)}"
    return PictureSet(describe, len(wanted), lambda: (_picture(path, root, masks, about) for path in wanted))


# A folder of pictures.


def _listed(root: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Pictures below `root`, sorted, and masks by what they belong to: a path without suffix, or a place below any
    `images/` or other folder that `masks/` mirrors."""
    pictures: list[Path] = []
    masks: dict[str, list[Path]] = {}
    beside = [root.parent / name for name in ("masks", "Masks") if (root.parent / name).is_dir()]
    for place in (root, *(folder for folder in beside if not folder.samefile(root))):
        for path in sorted(place.rglob("*")):
            parts = path.relative_to(place).parts
            if path.suffix.lower() not in files.SUFFIXES or any(part.startswith(".") for part in parts):
                continue
            match = _MASK.fullmatch(path.stem)
            stem = path.with_name(match["stem"] if match else path.stem)
            if place is not root or "masks" in [part.lower() for part in parts[:-1]]:
                masks.setdefault(_mirrored(stem, place), []).append(path)
            elif match and path.is_file():
                masks.setdefault(str(stem), []).append(path)
            elif path.is_file():
                pictures.append(path)
    return pictures, masks


def _mirrored(path: Path, root: Path) -> str:
    """Where a path lies below `root`, whether under `images/` or `masks/`.

    >>> _mirrored(Path("/d/train/masks/a/1"), Path("/d")) == _mirrored(Path("/d/train/images/a/1"), Path("/d"))
    True
    """
    parts = path.relative_to(root).parts
    return "/".join(part for part in parts[:-1] if part.lower() not in ("images", "masks")) + f"/{parts[-1]}"


def _annotated(root: Path) -> dict[str, dict[str, Any]]:
    """What the annotations of a version pulled as COCO say of its pictures, by their files."""
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS if (root / "version.json").is_file() else ():
        path = root / "annotations" / f"{split}.json"
        for name, image in members(path) if path.is_file() else ():
            if name == "images":
                found[image["file_name"]] = image["sonoforge"] | {"split": split}
    return found


def _split(path: Path, root: Path, about: Mapping[str, Mapping[str, Any]]) -> str | None:
    said = about.get(path.relative_to(root).as_posix())
    return _named(path, root, _SPLIT_FOLDERS) if said is None else said["split"]


def _picture(
    path: Path, root: Path, masks: Mapping[str, Sequence[Path]], about: Mapping[str, Mapping[str, Any]]
) -> Picture | Unreadable:
    file = path.relative_to(root).as_posix()
    picture = files.open_picture(path)
    if picture.pixels is None:
        return Unreadable(file, picture.defect)
    image, stem = files.to_grey(picture.pixels), path.with_suffix("")
    at = [str(stem), _mirrored(stem, root)]
    if len(file.split("/")) > 1:
        at.append(_mirrored(stem.parent.parent / stem.name, root))  # masks/ beside a folder of any name
    drawn = next((masks[place] for place in at if place in masks), [])
    mask, split = _merged(drawn, image.shape), _split(path, root, about)
    if said := about.get(file):
        lineage = {name: said[name] for name in LINEAGE if name in said}
        return Picture(file, image, mask, said["label"], said.get("group"), split, lineage)
    return Picture(file, image, mask, _named(path, root, {name: name for name in _LABELS}), None, split)


def _merged(paths: Sequence[Path], shape: tuple[int, ...]) -> Mask | None:
    """All masks of one picture as one; None where there is none, or one that does not fit."""
    merged: Mask | None = None
    for path in paths:
        mask, _ = files.open_mask(path, shape)
        if mask is None:
            return None
        mask = hc18.fill_outline(mask) if path.stem.lower().endswith("_annotation") else mask
        merged = mask if merged is None else merged | mask
    return merged


def _named(path: Path, root: Path, meanings: Mapping[str, str]) -> str | None:
    """What the nearest folder above a picture with one of these names means."""
    folders = [part.lower() for part in (root.resolve().name, *path.relative_to(root).parts[:-1])]
    return next((meanings[name] for name in reversed(folders) if name in meanings), None)


# A dataset in its own layout.


def _is_laid_out(root: Path, marker: str) -> bool:
    """Whether the table that marks a layout lies in `root`, or in the one folder there."""
    if marker == "labels.csv":
        return (root / marker).is_file() and (root / "images").is_dir()
    return any((place / marker).is_file() for place in (root, root / "BUS-UCLM", root / "BUSBRA"))


def _source(root: Path, layout: str, split: str | None, listed: int) -> PictureSet:
    params = sources.at(layout, root)

    def read() -> Iterator[Picture | Unreadable]:
        for scan in sources.read(params):
            if scan.image is None:
                yield Unreadable(scan.file, "; ".join(scan.defects))
            elif split in (None, scan.split):
                yield Picture(scan.file, scan.image, scan.mask, scan.label or None, scan.group, scan.split)

    count = listed if split is None else sum(isinstance(found, Picture) for found in read())
    return PictureSet(f"{count} pictures in {_split_of(str(root), split)}, laid out as {layout}", count, read)


# Parquet.


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from error


def _tables(paths: Sequence[Path], name: str, root: Path, split: str | None) -> PictureSet:
    known = _schema(paths[0]).names
    needed = {"image": "pictures", **({"split": f"the split {split}"} if split else {})}
    for column, what in needed.items():
        if column not in known:
            raise ValueError(f"{root} has no column {column!r} for {what}; it has {', '.join(known)}")
    thin = [column for column in ("split", "verdict") if column in known]
    count = sum(1 for _ in _chosen(paths, thin, split)) if thin else sum(pq.read_metadata(p).num_rows for p in paths)
    columns = ["image", "mask", "file", "label", "group", "failure", *thin, *LINEAGE]
    present = list(dict.fromkeys(column for column in columns if column in known))

    def read() -> Iterator[Picture | Unreadable]:
        for number, row in enumerate(_chosen(paths, present, split)):
            yield _decoded(row, f"row {number} of {name}", root if root.is_dir() else root.parent)

    return PictureSet(f"{count} rows of {_split_of(str(root), split)}", count, read)


def _chosen(paths: Sequence[Path], columns: Sequence[str], split: str | None) -> Iterator[dict[str, Any]]:
    """Rows of the split that were not rejected, a few in memory at a time."""
    for path in paths:
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(_ROWS if "image" in columns else 1000 * _ROWS, columns=list(columns)):
                    for row in batch.to_pylist():
                        if row.get("verdict") in (None, "kept") and split in (None, row.get("split")):
                            yield row
        except pa.ArrowException as error:
            raise ValueError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from error


def _decoded(row: dict[str, Any], place: str, folder: Path) -> Picture | Unreadable:
    encoded = _bytes(row["image"], folder)
    named = row["image"].get("path") if isinstance(row["image"], dict) else None
    file = str(row.get("file") or row.get("id") or named or place)
    if encoded is None:
        return Unreadable(file, str(row.get("failure") or "no picture in the row"))
    picture = files.open_picture(encoded)
    if picture.pixels is None:
        return Unreadable(file, picture.defect)
    image, mask = files.to_grey(picture.pixels), None
    drawn = _bytes(row.get("mask"), folder)
    if drawn is not None:
        mask, _ = files.open_mask(drawn, image.shape)
    label, group, split = (None if row.get(name) is None else str(row[name]) for name in ("label", "group", "split"))
    return Picture(file, image, mask, label, group, split, {name: row[name] for name in LINEAGE if name in row})


def _bytes(value: Any, folder: Path) -> bytes | Path | None:
    """What a cell holds of a picture: its bytes, or the file that has them."""
    if isinstance(value, dict):
        return value.get("bytes") or _bytes(value.get("path"), folder)
    return folder / value if isinstance(value, str) else value


def _split_of(name: str, split: str | None) -> str:
    return name if split is None else f"{name}:{split}"
