"""The data files: every row decodes, says the same as the thin tables, and lies where the index says."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as rle

from storage import images
from storage.checks.notebook import Drawn, Notebook
from storage.checks.problems import Problems
from storage.checks.tables import Ascending, Rows, batches, begins, different, equals, misses
from storage.checks.thin import INDEX, METADATA
from storage.records import IMAGE, PIXEL_COLUMNS, sample_schema

BATCH = 64  # rows with pictures in memory at once

_PICTURES = pa.schema([field for field in sample_schema([]) if field.type == IMAGE or field.name in ("id", "sha256")])


class SplitPictures:
    """The data files of one split, to be given in their order.

    Args:
        split: which.
        tables: the thin tables by name; those that are missing or damaged are left out.
        notebook: takes what was drawn, for COCO to be compared with.
        problems: what is wrong.
    """

    def __init__(self, split: str, tables: dict[str, Path], notebook: Notebook, problems: Problems) -> None:
        self._split, self._notebook, self._problems = split, notebook, problems
        self._rows = 0
        self._metadata = self._index = None
        if METADATA in tables:
            self._metadata = Rows(tables[METADATA], keep=equals("split", split))
        if INDEX in tables:
            self._index = Rows(tables[INDEX], keep=begins("file", f"data/{split}-"))

    def skip(self, rows: int) -> None:
        """Pass over a file that cannot be read."""
        self._rows += rows
        for table in (self._metadata, self._index):
            if table is not None:
                table.skip(rows)

    def check(self, path: str, local: Path) -> int:
        """Check the file `local`, called `path` in the version; how many rows it has."""
        wrong = misses(local, _PICTURES)
        if wrong:
            self._problems.add(path, wrong)
            return 0
        rows = 0
        ascending = Ascending(path, self._problems)
        with local.open("rb") as file:
            for batch in batches(local, BATCH):
                ascending.check(batch.column("id"))
                self._compare(path, batch)
                places = self._places(path, batch)
                drawn: list[Drawn] = []
                for row, place in zip(batch.to_pylist(), places, strict=False):
                    self._rows += 1
                    found = self._row(path, file, row, place)
                    if found is not None:
                        drawn.append(found)
                self._notebook.draw(drawn)
                rows += batch.num_rows
        return rows

    def finish(self) -> None:
        """After the last file: that none was missing."""
        for name, table in ((METADATA, self._metadata), (INDEX, self._index)):
            if table is not None and (left := table.take(1)) is not None:
                self._problems.add(name, f"row {left.column('id')[0]} and those behind it are in no {self._split} file")

    def _compare(self, path: str, batch: pa.RecordBatch) -> None:
        """That the rows are those of the metadata, but for the pictures."""
        if self._metadata is None:
            return
        expected = self._metadata.take(batch.num_rows)
        thin = pa.Table.from_batches([batch.select([f.name for f in batch.schema if f.type != IMAGE])])
        if expected is not None and set(expected.column_names) == set(thin.column_names):
            expected = expected.select(thin.column_names)
        for row, what in different(thin, expected):
            self._problems.add(path, f"row {row} {what}, against {METADATA}")

    def _places(self, path: str, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
        """Each row's line of the index, where it has one."""
        found = None if self._index is None else self._index.take(batch.num_rows)
        lines: list[dict[str, Any] | None] = [] if found is None else list(found.to_pylist())
        lines += [None] * (batch.num_rows - len(lines))
        for name, line in zip(batch.column("id").to_pylist(), lines, strict=True):
            if line is None or (line["id"], line["file"]) != (name, path):
                if self._index is not None:
                    stands = "nothing" if line is None else f"{line['id']} in {line['file']}"
                    self._problems.add(INDEX, f"row {name} of {path} is expected, {stands} found")
                yield None
            else:
                yield line

    def _row(self, path: str, file: BinaryIO, row: dict[str, Any], place: dict[str, Any] | None) -> Drawn | None:
        name = row["id"]
        for column in PIXEL_COLUMNS:
            png = None if row.get(column) is None else row[column]["bytes"]
            wrong = "" if place is None else _misplaced(file, png, *(place[f"{column}_{what}"] for what in _PLACE))
            if wrong:
                self._problems.add(INDEX, f"{column} of row {name} {wrong}")
        try:
            image, masks = _decoded(row)
        except (OSError, ValueError, TypeError) as error:
            self._problems.add(path, f"row {name} does not decode: {error}")
            return None
        if images.pixels_sha256(image) != row["sha256"]:
            self._problems.add(path, f"row {name}: pixels differ from their sha256")
        for column, mask in masks.items():
            if mask.shape != image.shape:
                self._problems.add(path, f"row {name}: image {image.shape}, {column} {mask.shape}")
                return None
        label, sha256 = str(row.get("label")), str(row["sha256"])
        height, width = image.shape
        return Drawn(self._split, self._rows, str(name), label, sha256, height, width, *_box(masks.get("mask")))


class _Box(NamedTuple):
    """Area and bounding box of a mask, and the digest of its run lengths."""

    area: int
    x: int
    y: int
    w: int
    h: int
    counts: str


_PLACE = ("at", "bytes", "blake3")


def _misplaced(file: BinaryIO, png: bytes | None, at: int | None, size: int | None, digest: bytes | None) -> str:
    """What is wrong with where the index puts a picture, as the end of a sentence; "" where nothing is."""
    if png is None or at is None or size is None or digest is None:
        nothing = png is None and at is None and size is None and digest is None
        return "" if nothing else "is in only one of data and index"
    if digest != images.png_digest(png):
        return "has another digest"
    if size != len(png):
        return f"has {len(png)} bytes, the index says {size}"
    inside = 0 <= at <= os.fstat(file.fileno()).st_size - size
    file.seek(at if inside else 0)
    return "" if inside and file.read(size) == png else f"does not lie at bytes {at} to {at + size} of its file"


def _decoded(row: dict[str, Any]) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """The image, and those of its other pictures that are there."""
    image = images.decode_grey(row["image"]["bytes"])
    others: dict[str, NDArray[Any]] = {}
    for column in PIXEL_COLUMNS[1:]:
        if row.get(column) is not None and row[column]["bytes"] is not None:
            decode = images.decode_grey if column == "background" else images.decode_mask
            others[column] = decode(row[column]["bytes"])
    return image, others


def _box(mask: NDArray[Any] | None) -> _Box:
    if mask is None or not mask.any():
        return _Box(0, 0, 0, 0, 0, "")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    encoded: Any = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    x, y = int(columns[0]), int(rows[0])
    return _Box(
        int(mask.sum()), x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1, counts_digest(encoded["counts"])
    )


def counts_digest(counts: bytes) -> str:
    """Short digest of a mask's compressed run lengths."""
    return hashlib.sha256(counts).hexdigest()[:32]
