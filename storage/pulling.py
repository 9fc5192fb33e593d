"""Bring a version to this machine: verified while it is copied, and complete as soon as it is visible."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from storage import keys
from storage.errors import CorruptFileError, StorageError, UnsafePathError
from storage.records import Manifest, ManifestFile
from storage.store import Store, explained

Advance = Callable[[int], None]
PullFormat = Literal["parquet", "coco"]

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


def files_for(manifest: Manifest, format: PullFormat) -> list[ManifestFile]:
    """The files of a version that a format needs; their `bytes` are what a pull moves.

    Raises:
        UnsafePathError: a path would leave the folder that is pulled to, or two files share one.
    """
    for file in manifest.files:
        keys.safe_path(file.path)
    folded = [file.path.casefold() for file in manifest.files]
    if len(set(folded)) < len(folded):
        raise UnsafePathError(f"{manifest.dataset}@{manifest.version} lists the same path twice")
    if format == "parquet":
        return [file for file in manifest.files if not file.path.startswith("coco/")]
    kept = [file for file in manifest.files if file.path.startswith(("coco/", "data/")) or file.path == "README.md"]
    if not any(file.path.startswith("coco/") for file in kept):
        raise ValueError(
            f"{manifest.dataset}@{manifest.version} was published without COCO: pull it with --format parquet"
        )
    return kept


def pull(
    store: Store,
    manifest: Manifest,
    out: Path,
    format: PullFormat = "parquet",
    advance: Advance | None = None,
) -> Path:
    """Copy a version into a new folder.

    Args:
        store: where the version is.
        manifest: the version.
        out: the folder to make; it may exist only if it is empty. Until the last file has arrived and agrees
            with its digest, the files are in a hidden folder beside it, so that `out` is never half there.
        format: "parquet": the published files. "coco": `images/<id>.png`, `masks/<id>.png` and
            `annotations/<split>.json`.
        advance: called with the bytes just copied; `files_for` gives their total.

    Returns:
        `out`, absolute.

    Raises:
        CorruptFileError: bytes differ from their digest; nothing is left behind.
        UnsafePathError: the manifest names a path outside `out`; nothing was copied.
    """
    out = out.expanduser().absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ValueError(f"{out} exists and is not an empty folder: name a folder that is not there yet")
    files = files_for(manifest, format)
    with _appearing(out) as folder:
        for file in files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(store, file, target, advance)
        if format == "coco":
            _unpack_coco(folder)
    return out


@contextmanager
def _appearing(out: Path) -> Generator[Path]:
    """A hidden folder that becomes `out` when the block succeeds, and vanishes when it does not."""
    folder = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        folder.mkdir(parents=True)
        yield folder
        os.rename(folder, out)
    except StorageError:
        raise
    except OSError as error:
        raise explained(error, "write", str(out)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(store: Store, file: ManifestFile, target: Path, advance: Advance | None) -> None:
    try:
        found = store.fetch(file.key, target, advance)
    except FileNotFoundError as error:
        raise CorruptFileError(f"{file.path} is gone from the store ({store.uri(file.key)})") from error
    if found != file.sha256:
        raise CorruptFileError(
            f"{file.path} disagrees with its manifest: sha256 {found[:12]}…, expected {file.sha256[:12]}…. "
            f"Pull again; if it stays so, {store.uri(file.key)} is damaged: restore it from a copy"
        )


def _unpack_coco(folder: Path) -> None:
    """Turn fetched `data/` and `coco/` into the layout that COCO loaders expect."""
    names: set[str] = set()
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for shard in sorted((folder / "data").glob("*.parquet")):
        names |= _unpack_images(shard, folder)
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "coco").rename(folder / "annotations")
    for path in sorted((folder / "annotations").glob("*.json")):
        content: dict[str, Any] = json.loads(path.read_bytes())
        strange = {image["file_name"] for image in content["images"]} - names
        if strange:
            raise CorruptFileError(f"{path.name} names {min(strange)!r}, which is no image of this version")


def _unpack_images(shard: Path, folder: Path) -> set[str]:
    """Write the images and masks of one Parquet file; the names of the images."""
    names: set[str] = set()
    try:
        for batch in pq.ParquetFile(shard).iter_batches(64, columns=["id", "image", "mask"]):
            for row in batch.to_pylist():
                if not _PLAIN_ID.fullmatch(row["id"]):
                    raise UnsafePathError(f"the id {row['id']!r} cannot name a file: the version is not sonoforge's")
                name = f"images/{row['id']}.png"
                if name in names:
                    raise CorruptFileError(f"the id {row['id']!r} occurs twice in {shard.name}")
                names.add(name)
                (folder / name).write_bytes(row["image"]["bytes"])
                if row["mask"] is not None and row["mask"]["bytes"] is not None:
                    (folder / "masks" / f"{row['id']}.png").write_bytes(row["mask"]["bytes"])
    except pa.ArrowInvalid as error:
        raise CorruptFileError(f"{shard.name} is no readable Parquet file: {error}") from error
    return names
