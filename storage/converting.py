"""Lay rows out as the loaders of other formats expect them."""

import hashlib
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from storage import keys
from storage.errors import CorruptFileError, UnsafePathError
from storage.landing import sha256_of
from storage.records import SPLITS, Written
from storage.selecting import opened

_ROWS = 64


def count(tables: Path) -> dict[str, int]:
    """Rows by split of the data files in a folder."""
    found = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for path in (tables / "data").glob(f"{split}-*.parquet"):
            with opened(path) as file:
                found[split] += file.metadata.num_rows
    return {split: rows for split, rows in found.items() if rows}


def to_coco(tables: Path, work: Path, folder: Path, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`images/<id>.png`, `masks/<id>.png` and `annotations/<split>.json`; path and sha256 of each, as it is made.

    Args:
        tables: a folder with `data/`.
        work: an empty folder on the same disk.
        folder: where they go.
        labels: all that the version has, so that a part numbers its categories as the whole does.
    """
    from storage.formats import coco

    for name in ("images", "masks", "annotations"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for shard in _shards(tables):
        yield from _unpack(shard, folder)
    with _as_corrupt():
        written = coco.write(tables, work, labels=labels)
    yield from moved(work, written, folder, lambda path: f"annotations/{Path(path).name}")


def to_webdataset(tables: Path, work: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """`<split>-000000.tar` and so on; path and sha256 of each."""
    from storage.formats import webdataset

    for shard in _shards(tables):
        with opened(shard) as file:
            for batch in file.iter_batches(columns=["id"]):
                for id in batch.column("id").to_pylist():
                    _check_id(id)
    with _as_corrupt():
        written = webdataset.write(tables, work)
    yield from moved(work, written, folder, lambda path: Path(path).name)


def moved(
    made: Path, written: Mapping[str, Written], folder: Path, name: Callable[[str], str] = str
) -> Iterator[tuple[str, str]]:
    """Files of `made` to their place in `folder`; path and sha256 of each."""
    for path, said in sorted(written.items()):
        target = folder / name(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        (made / path).replace(target)
        sha256 = said.sha256 or sha256_of(target)
        assert sha256 is not None
        yield name(path), sha256


def all_labels(tables: Path) -> list[str]:
    """The labels of a metadata table or, where there is none, of the data files; sorted."""
    paths = [tables / "metadata.parquet"] if (tables / "metadata.parquet").exists() else _shards(tables)
    found: set[Any] = set()
    for path in paths:
        with opened(path) as file:
            for batch in file.iter_batches(columns=["label"]):
                found |= set(pc.call_function("unique", [batch.column("label")]).to_pylist())
    if None in found:
        raise CorruptFileError("a row has no label: the version is damaged, or not made by sonoforge")
    return sorted(found)


def _shards(tables: Path) -> list[Path]:
    return sorted((tables / "data").glob("*.parquet"))


def _unpack(shard: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Write the images and masks of one Parquet file."""
    with opened(shard) as file:
        for batch in file.iter_batches(_ROWS, columns=["id", "image", "mask"]):
            for row in batch.to_pylist():
                _check_id(row["id"])
                for kind, column in (("images", "image"), ("masks", "mask")):
                    data = row[column] and row[column]["bytes"]
                    if data is not None:
                        yield f"{kind}/{row['id']}.png", _written(folder / kind / f"{row['id']}.png", data)
                    elif kind == "images":
                        raise CorruptFileError(f"row {row['id']} of {shard.name} has no image")


def _written(path: Path, data: bytes) -> str:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise CorruptFileError(f"the id {path.stem!r} occurs twice, or twice but for capital letters") from None
    return hashlib.sha256(data).hexdigest()


def _check_id(id: str | None) -> None:
    if id is None or not keys.is_row_id(id):
        raise UnsafePathError(f"the id {id!r} cannot name a file: the version is not sonoforge's")


@contextmanager
def _as_corrupt() -> Generator[None]:
    """A format refuses rows that no publisher of ours writes: then the version is at fault, not the caller."""
    try:
        yield
    except CorruptFileError:
        raise
    except ValueError as error:
        raise CorruptFileError(f"the version cannot be laid out so: {error}") from error
