"""Look for damage in a version: every digest, every row, every count."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import images
from storage.errors import UnsafePathError
from storage.pulling import files_for
from storage.records import Manifest, ManifestFile
from storage.store import Store, scratch


def verify(store: Store, manifest: Manifest) -> list[str]:
    """Read a version whole, in bounded memory and one file at a time on this machine's disk.

    Checked: sizes and digests of all files; that every image and mask of `data/` decodes, agrees with its own
    digest and has the other's size; that rows, kept and planned samples and COCO annotations are as many as
    declared; that no group is in two splits.

    Returns:
        One line for each problem; nothing where all is well.
    """
    try:
        files_for(manifest, "parquet")
    except UnsafePathError as error:
        return [str(error)]
    seen = _Seen()
    with scratch() as folder:
        for file in manifest.files:
            local = Path(folder) / "file"
            try:
                sha256 = store.fetch(file.key, local)
            except FileNotFoundError:
                seen.problems.append(f"{file.path}: missing from the store")
                continue
            if sha256 != file.sha256:
                seen.problems.append(f"{file.path}: sha256 is {sha256[:12]}…, expected {file.sha256[:12]}…")
            elif file.path.endswith(".parquet"):
                seen.parquet(file, local)
            elif file.path.startswith("coco/"):
                seen.coco(file, local)
    return seen.problems + ([] if seen.problems else seen.disagreements(manifest))


class _Seen:
    """What has been counted so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.rows: Counter[str] = Counter()  # by path without the shard: data, metadata.parquet, …
        self.masks: Counter[str] = Counter()  # not blank, by split
        self.annotations: dict[str, int] = {}
        self.groups: dict[str, str] = {}

    def parquet(self, file: ManifestFile, local: Path) -> None:
        """Count the rows of a file, and decode those of `data/`."""
        with_pixels = file.path.startswith("data/")
        rows = 0
        try:
            opened = pq.ParquetFile(local, page_checksum_verification=True)
            columns = ["id", "image", "mask", "sha256", "group"] if with_pixels else None
            for batch in opened.iter_batches(64, columns=columns):
                rows += batch.num_rows
                if with_pixels:
                    self._rows(file, batch)
        except (pa.ArrowException, OSError) as error:
            self.problems.append(f"{file.path}: does not decode after {rows} rows: {error}")
            return
        if file.rows is not None and rows != file.rows:
            self.problems.append(f"{file.path}: {rows} rows, {file.rows} declared")
        self.rows["data" if with_pixels else file.path] += rows

    def _rows(self, file: ManifestFile, batch: pa.RecordBatch) -> None:
        split = _split_of(file.path)
        for row in batch.to_pylist():
            try:
                image = images.decode_grey(row["image"]["bytes"])
                mask = None if row["mask"] is None else images.decode_mask(row["mask"]["bytes"])
            except (OSError, ValueError, SyntaxError, TypeError) as error:
                self.problems.append(f"{file.path}: row {row['id']} does not decode: {error}")
                continue
            if images.pixels_sha256(image) != row["sha256"]:
                self.problems.append(f"{file.path}: row {row['id']}: pixels differ from their sha256")
            if mask is not None and mask.shape != image.shape:
                self.problems.append(f"{file.path}: row {row['id']}: image {image.shape}, mask {mask.shape}")
            if mask is not None and bool(np.any(mask)):
                self.masks[split] += 1
            group = row["group"]
            if group is not None and self.groups.setdefault(group, split) != split:
                self.problems.append(f"{file.path}: group {group} is in {self.groups[group]} too")

    def coco(self, file: ManifestFile, local: Path) -> None:
        """Count the images and annotations of a COCO file."""
        try:
            content: dict[str, Any] = json.loads(local.read_bytes())
            listed, self.annotations[_split_of(file.path)] = (
                len(content["images"]),
                len(content["annotations"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            self.problems.append(f"{file.path}: is no COCO file: {error}")
            return
        if file.rows is not None and listed != file.rows:
            self.problems.append(f"{file.path}: {listed} images, {file.rows} declared")

    def disagreements(self, manifest: Manifest) -> list[str]:
        """Counts that do not agree with each other, or with the manifest."""
        found: list[str] = []
        if self.rows and self.rows["data"] != manifest.kept:
            found.append(f"data: {self.rows['data']} rows, {manifest.kept} samples kept")
        for path, expected in (("metadata.parquet", manifest.kept), ("ledger.parquet", manifest.planned)):
            if path in self.rows and self.rows[path] != expected:
                found.append(f"{path}: {self.rows[path]} rows, expected {expected}")
        for split, count in sorted(self.annotations.items()):
            if count != self.masks[split]:
                found.append(f"coco/{split}.json: {count} annotations, {self.masks[split]} masks in Parquet")
        return found


def _split_of(path: str) -> str:
    """Split named by "data/train-00000-of-00002.parquet" or "coco/train.json".

    >>> _split_of("data/train-00000-of-00002.parquet"), _split_of("coco/val.json")
    ('train', 'val')
    """
    return path.rsplit("/", 1)[-1].split(".")[0].split("-")[0]
