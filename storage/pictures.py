"""Fetch single pictures of a version by their place in its data files, each checked against its own digest."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from storage.errors import CorruptFileError
from storage.images import png_digest
from storage.records import IMAGE, PIXEL_COLUMNS, Manifest, ManifestFile
from storage.store import Store

CHUNK_BYTES = 16 * 2**20
"""Pictures fetched, held and written together."""

CHUNK_ROWS = 512

Chunk = tuple[pa.RecordBatch, pa.RecordBatch]
"""Rows of a thin table, and the rows of `index.parquet` that belong to them."""


class _Span(NamedTuple):
    at: int
    size: int
    column: str
    row: int
    digest: bytes


class Pictures:
    """The pictures of one version.

    Args:
        store: where it is.
        manifest: the version.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._name = f"{manifest.dataset}@{manifest.version}"
        self._files = {file.path: file for file in manifest.files}

    def fetch(self, places: pa.RecordBatch, columns: Sequence[str] = PIXEL_COLUMNS) -> dict[str, list[bytes | None]]:
        """The PNGs of some rows, by column, each list as long as `places`; None where a row has none.

        All of them are in memory at once: cut rows with `chunks` before.

        Raises:
            CorruptFileError: `places` points outside its file, or a picture differs from its digest twice.
        """
        found: dict[str, list[bytes | None]] = {column: [None] * places.num_rows for column in columns}
        for path, spans in self._spans(places, columns).items():
            spans.sort()
            key = self._files[path].key
            for span, data in zip(spans, self._ranges(key, spans), strict=True):
                if not _is(data, span):
                    (data,) = self._ranges(key, [span])
                if not _is(data, span):
                    raise CorruptFileError(
                        f"the {span.column} of {places.column('id')[span.row]} in {path} of {self._name} differs from "
                        f"its digest. Try again; if it stays so, {self._store.uri(key)} is damaged: restore it from a "
                        "copy"
                    )
                found[span.column][span.row] = data
        return found

    def agree(self, rows: pa.RecordBatch, places: pa.RecordBatch) -> bool:
        """Whether rows with pictures are those that `places` describes, picture for picture."""
        if not rows.column("id").equals(places.column("id")):
            return False
        for column in PIXEL_COLUMNS:
            digests = places.column(f"{column}_blake3").to_pylist()
            for row, digest in zip(rows.column(column), digests, strict=True):
                data = row["bytes"].as_buffer() if row.is_valid else None
                if (None if data is None else png_digest(data)) != digest:
                    return False
        return True

    def _ranges(self, key: str, spans: Sequence[_Span]) -> Iterator[bytes]:
        try:
            yield from self._store.ranges(key, [(span.at, span.size) for span in spans])
        except FileNotFoundError as error:
            raise CorruptFileError(f"{self._store.uri(key)}, a file of {self._name}, is gone from the store") from error

    def _spans(self, places: pa.RecordBatch, columns: Sequence[str]) -> dict[str, list[_Span]]:
        spans: dict[str, list[_Span]] = {}
        paths = places.column("file").to_pylist()
        for column in columns:
            told = [places.column(f"{column}_{what}").to_pylist() for what in ("at", "bytes", "blake3")]
            for row, (path, at, size, digest) in enumerate(zip(paths, *told, strict=True)):
                if at is not None:
                    span = _Span(at, size or 0, column, row, digest or b"")
                    self._check(span, self._files.get(path), path)
                    spans.setdefault(path, []).append(span)
        return spans

    def _check(self, span: _Span, file: ManifestFile | None, path: str | None) -> None:
        inside = file is not None and span.at >= 0 and span.size > 0 and span.at + span.size <= file.bytes
        if not inside or len(span.digest) != 16:
            raise CorruptFileError(
                f"index.parquet of {self._name} says that a picture lies at {span.at} to {span.at + span.size} of "
                f"{path}, which cannot be: the version is damaged, or not made by sonoforge"
            )


def sizes(places: pa.RecordBatch, columns: Sequence[str] = PIXEL_COLUMNS) -> list[int]:
    """Bytes of the pictures of each row."""
    total = np.zeros(places.num_rows, np.int64)
    for column in columns:
        total += places.column(f"{column}_bytes").fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return total.tolist()


def chunks(chosen: Iterator[Chunk], columns: Sequence[str] = PIXEL_COLUMNS) -> Iterator[Chunk]:
    """The same rows in pieces that are not empty, with at most 16 MiB of pictures (or one row) and 512 rows."""
    for rows, places in chosen:
        start, held = 0, 0
        for stop, size in enumerate(sizes(places, columns)):
            if stop > start and (held + size > CHUNK_BYTES or stop - start >= CHUNK_ROWS):
                yield rows.slice(start, stop - start), places.slice(start, stop - start)
                start, held = stop, 0
            held += size
        if rows.num_rows > start:
            yield rows.slice(start), places.slice(start)


def path_of(id: str, column: str) -> str:
    """What a picture is called beside its bytes.

    >>> path_of("syn-00000001", "image"), path_of("syn-00000001", "mask")
    ('syn-00000001.png', 'syn-00000001.mask.png')
    """
    return f"{id}.png" if column == "image" else f"{id}.{column}.png"


def with_pictures(rows: pa.RecordBatch, pictures: dict[str, list[bytes | None]]) -> pa.RecordBatch:
    """Thin rows with their pictures put in after the id, as published."""
    ids = rows.column("id").to_pylist()
    columns = [(field, rows.column(field.name)) for field in rows.schema]
    added = [
        (
            pa.field(name, IMAGE),
            pa.array(
                [
                    None if data is None else {"bytes": data, "path": path_of(id, name)}
                    for id, data in zip(ids, found, strict=True)
                ],
                IMAGE,
            ),
        )
        for name, found in pictures.items()
    ]
    place = rows.schema.get_field_index("id") + 1
    columns[place:place] = added
    return pa.RecordBatch.from_arrays(
        [array for _, array in columns], schema=pa.schema([field for field, _ in columns])
    )


def _is(data: bytes, span: _Span) -> bool:
    return len(data) == span.size and png_digest(data) == span.digest
