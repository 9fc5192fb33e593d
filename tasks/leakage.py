"""Leakage: what spans the splits of any dataset, or two and more sets that ought to have nothing in common."""

import csv
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq

from storage.records import Record
from tasks import track
from tasks.imaging import Grey
from tasks.picture_sets import open_set
from tasks.screening.duplicates import find_alike
from tasks.screening.leaks import ANCESTORS, Entry, Kind, Span, spans
from tasks.sources import files

STEP = "check-leakage"
SOURCES = "sources.parquet"
LISTS = (".txt", ".lst", ".list")
TABLES = (".csv", ".tsv")
FILE_COLUMNS = ("file", "image", "path", "filename", "id")
"""Columns of a table that may name its files, the first that is there."""


class Leakage(Record):
    """What spans splits.

    `sets` says in one line each what was read. `splits` counts entries by split, `unassigned` those of none, which are
    not compared; `looked_at` counts those whose pictures were compared. `spans` are the leaks, `counts` their number
    by kind, `concerned` the number of entries in them.
    """

    sets: list[str]
    splits: dict[str, int]
    unassigned: int
    looked_at: int
    unreadable: dict[str, str]
    spans: list[Span]
    counts: dict[str, int]
    concerned: int
    notes: list[str]


Found = tuple[Entry, Grey | None]


def check(
    specs: Sequence[str], store: str = "./store", root: Path | None = None, group_pattern: str | None = None
) -> Leakage:
    """Look for groups, duplicates, scenes, backgrounds and other ancestors that lie in more than one split.

    Args:
        specs: one set, whose own splits are checked; or several, each of them one split. A set is whatever
            `picture_sets.open_set` opens; or a CSV file or Parquet table without pictures, with a column that names
            files and perhaps `split`, `group` and `background_id`, `mask_id`, `levels_id`; or a text file with one
            name a line.
        store: folder or URL of the store that versions lie in.
        root: folder that the files of tables and lists lie below; the one of the table or list where None.
        group_pattern: regular expression whose first bracket is the group in a file's name, such as "(\\d+)_".

    Raises:
        ValueError: nothing to compare: one set without splits, or an unreadable one.
    """
    if len(set(specs)) < len(specs) or not specs:
        raise ValueError(
            f"{', '.join(specs) or 'nothing'} given; expected one set with splits, or several sets, each once"
        )
    pattern = _compiled(group_pattern)
    sets: list[str] = []
    unreadable: dict[str, str] = {}
    entries: list[Entry] = []
    looked_at: list[int] = []
    with tempfile.TemporaryFile() as scratch:
        shelf = Shelf(scratch)
        for spec in specs:
            alone = len(specs) == 1
            for entry, image in _read(spec, store, root, sets, unreadable):
                split = entry.split if alone else spec
                group = _group(entry, pattern)
                if image is not None and split is not None:
                    looked_at.append(len(entries))
                    shelf.add(image)
                entries.append(replace(entry, split=split, group=group))
            if alone:
                entries += _sources(spec, store)
        _require_splits(specs, entries)
        if len({entries[k].split for k in looked_at}) > 1:
            with track.track(STEP, len(shelf)):
                alike = find_alike(shelf, lambda count: track.advance(STEP, count))
            for place, k in enumerate(looked_at):
                entries[k] = replace(entries[k], copies=alike.copies[place], scene=alike.scenes[place])
        else:
            looked_at.clear()
    found = spans(entries)
    return Leakage(
        sets=sets,
        splits=dict(sorted(Counter(entry.split for entry in entries if entry.split is not None).items())),
        unassigned=sum(entry.split is None for entry in entries),
        looked_at=len(looked_at),
        unreadable=unreadable,
        spans=found,
        counts=dict(Counter(span.kind for span in found)),
        concerned=len({(split, name) for span in found for split, names in span.members.items() for name in names}),
        notes=_notes(entries, len(looked_at)),
    )


class Shelf:
    """Pictures on scratch disk, read back one at a time: memory does not grow with their number."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: list[tuple[int, int, int]] = []

    def add(self, image: Grey) -> None:
        """Put down one more picture, uint8 (h, w)."""
        at = self._file.seek(0, 2)
        self._file.write(image.tobytes())
        self._places.append((at, *image.shape))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int, /) -> Grey:
        at, height, width = self._places[number]
        self._file.seek(at)
        return np.frombuffer(self._file.read(height * width), np.uint8).reshape(height, width)


def lines(leakage: Leakage, most: int = 20) -> list[str]:
    """The leaks for people: one line a leak, `most` of each kind."""
    found: list[str] = []
    for kind, count in leakage.counts.items():
        found.append(f"{count} {kind}{'' if count == 1 else 's'} in more than one split")
        some = [span for span in leakage.spans if span.kind == kind][:most]
        found += [f"  {span.name}: {'; '.join(_some(*item) for item in span.members.items())}" for span in some]
        found += [f"  … and {count - most} more"] if count > most else []
    return found


def _some(split: str, names: Sequence[str]) -> str:
    return f"{split}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if not compiled.groups:
        raise ValueError(f"{pattern!r} has no bracket; expected one around the group, such as '(\\d+)_'")
    return compiled


def _group(entry: Entry, pattern: re.Pattern[str] | None) -> str | None:
    match = None if pattern is None else pattern.search(Path(entry.name).name)
    return entry.group if match is None else match[1]


def _require_splits(specs: Sequence[str], entries: Sequence[Entry]) -> None:
    splits = {entry.split for entry in entries} - {None}
    if len(specs) == 1 and len(splits) < 2:
        held = f"one split, {splits.pop()}" if splits else "no splits"
        raise ValueError(
            f"{specs[0]} names {held}: nothing can leak. Expected folders called train, val and test, a column split, "
            "or two and more sets, such as TRAIN TEST"
        )


def _notes(entries: Sequence[Entry], looked_at: int) -> list[str]:
    notes: list[str] = []
    if not any(entry.group for entry in entries):
        notes.append("no entry says its patient or exam: people in two splits are found by their pictures alone")
    if not looked_at:
        notes.append("no two splits have pictures: duplicates and scenes were not looked for")
    return notes


# Reading sets.


def _read(spec: str, store: str, root: Path | None, sets: list[str], unreadable: dict[str, str]) -> Iterator[Found]:
    """Entries of a set with their pictures; says in `sets` what it is, in `unreadable` what could not be read."""
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix.lower() in (*LISTS, *TABLES):
        rows = _listed(path) if path.suffix.lower() in LISTS else _table(path)
        yield from _of_table(rows, path, root, sets, unreadable)
        return
    if path.is_file() and path.suffix.lower() == ".parquet" and "image" not in pq.read_schema(path).names:
        yield from _of_table(pq.read_table(path).to_pylist(), path, root, sets, unreadable)
        return
    pictures = open_set(spec, store)
    sets.append(pictures.describe)
    for picture in pictures.pictures():
        lineage = picture.lineage
        group = _qualified(picture.group, lineage.get("dataset"))
        yield Entry(picture.file, picture.split, None, group, lineage.get("id"), _ancestors(lineage)), picture.image
    unreadable.update({bad.file: bad.reason for bad in pictures.unreadable})


def _listed(path: Path) -> list[dict[str, Any]]:
    """Names in a text file, one a line; lines that begin with "#" are remarks."""
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [{"file": name} for name in names if name and not name.startswith("#")]


def _table(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        sample = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=sample.count)
        return [
            {name: value or None for name, value in row.items()} for row in csv.DictReader(file, delimiter=delimiter)
        ]


def _of_table(
    rows: Sequence[Mapping[str, Any]], path: Path, root: Path | None, sets: list[str], unreadable: dict[str, str]
) -> Iterator[Found]:
    column = next((name for name in FILE_COLUMNS if rows and name in rows[0]), None)
    if column is None:
        has = f"it has {', '.join(map(str, rows[0]))}" if rows else "it is empty"
        raise ValueError(f"{path} has no column that names files ({', '.join(FILE_COLUMNS)}): {has}")
    named = [(str(row[column]), row) for row in rows if row.get(column) is not None]
    folder = path.parent if root is None else root
    there = any((folder / name).is_file() for name, _ in named)
    sets.append(f"{len(named)} {'pictures' if there else 'names'} listed in {path}")
    for name, row in named:
        image = None
        if there:
            picture = files.open_picture(folder / name)
            if picture.pixels is None:
                unreadable[name] = picture.defect
            else:
                image = files.to_grey(picture.pixels)
        place = str((folder / name).resolve()) if there else name
        group = _qualified(row.get("group"), row.get("dataset"))
        split, id = (None if row.get(field) is None else str(row[field]) for field in ("split", "id"))
        yield Entry(name, split, place, group, id, _ancestors(row)), image


def _ancestors(row: Mapping[str, Any]) -> dict[Kind, str]:
    return {kind: str(row[f"{kind}_id"]) for kind in ANCESTORS if row.get(f"{kind}_id") is not None}


def _qualified(group: Any, dataset: Any) -> str | None:
    """A group's name with its dataset's before it: two datasets may both have a patient 7."""
    if group is None or dataset is None or str(group).startswith(f"{dataset}/"):
        return None if group is None else str(group)
    return f"{dataset}/{group}"


def _sources(spec: str, store: str) -> list[Entry]:
    """The scans that a version was made from, with their own splits; none where `spec` is no whole version."""
    path = Path(spec).expanduser()
    if path.is_dir():
        table = pq.read_table(path / SOURCES) if (path / SOURCES).is_file() else None
    elif path.exists():
        table = None
    else:
        from storage.versions import open_manifest
        from tasks.connect import open_store

        opened = open_store(store)
        file = next((file for file in open_manifest(opened, spec).files if file.path == SOURCES), None)
        table = None if file is None else pq.read_table(BytesIO(opened.read(file.key)))
    rows = [] if table is None else table.select(["id", "file", "dataset", "group", "split"]).to_pylist()
    return [
        Entry(
            f"{row['dataset']}/{row['file']}", row["split"], None, _qualified(row["group"], row["dataset"]), row["id"]
        )
        for row in rows
    ]
