"""COCO instance annotations, one JSON file a split, made from the exported Parquet.

Ids count from 1; category 0 stays reserved. A lesion is one annotation with a compressed run-length mask,
also where it has several parts, because polygons lose holes and cannot equal the mask pixel for pixel.
Healthy images are listed without annotations. What COCO has no place for stands in each image under
`sonoforge`. There is no date: the same rows make the same bytes.

Images and annotations go to temporary files as they come, so that any number fits into memory; the text is
what `json.dumps(content, sort_keys=True, separators=(",", ":"))` would make of the whole.

COCO format: Lin et al., "Microsoft COCO", ECCV 2014, https://cocodataset.org/#format-data.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from pycocotools import mask as rle

from storage import images
from storage.formats.hashed import HashedFile
from storage.formats.parquet import read_rows, shards_of
from storage.records import Written

_HEALTHY = "normal"  # a category that is never annotated would be a class no detector can learn
_OURS = ["group", "organ", "pixel_mm", "background_id", "background_kind", "seed", "sha256", "recipe_digest"]
_MEASURED = "head_circumference_mm"  # versions from before it was written lack the column
_COLUMNS = ["id", "image", "mask", "label", "licence", *_OURS, _MEASURED]
_INFO = {"description": "Synthetic ultrasound images made by sonoforge", "version": "1.0"}


def write(parquet: Path, folder: Path, *, labels: Sequence[str] | None = None) -> dict[str, Written]:
    """Write `coco/<split>.json` for every split that `parquet` holds.

    Args:
        parquet: a folder filled by `storage.formats.parquet.write`.
        folder: where `coco/` goes; `file_name` is `images/<id>.png`, which `pull --format coco` writes.
        labels: those that number the categories; of a part of a version all labels of the whole, so that a category
            has one number in both. Where None, the labels of `parquet`.

    Returns:
        What was written (`rows` counts images), by its path in `folder`.

    Raises:
        ValueError: a row is labelled normal, and its mask marks a lesion.
    """
    shards = shards_of(parquet)
    if labels is None:
        labels = list({row["label"] for paths in shards.values() for row in read_rows(paths, ["label"])})
    named = sorted(set(labels) - {_HEALTHY})
    written: dict[str, Written] = {}
    for split, paths in shards.items():
        name = f"coco/{split}.json"
        (folder / "coco").mkdir(parents=True, exist_ok=True)
        written[name] = _write_split(paths, named, folder / name)
    return written


def _write_split(shards: Sequence[Path], labels: list[str], path: Path) -> Written:
    category = {label: index for index, label in enumerate(labels, start=1)}
    licences: dict[str, int] = {}
    with _Array(path.parent) as listed, _Array(path.parent) as annotations:
        for row in read_rows(shards, _COLUMNS):
            licence = licences.setdefault(row["licence"], len(licences) + 1)
            listed.add(_image(row, listed.count + 1, licence))
            annotation = _annotation(row, listed.count, category, annotations.count + 1)
            if annotation is not None:
                annotations.add(annotation)
        with HashedFile(path) as file:
            file.write(b'{"annotations":')
            annotations.copy_to(file)
            categories = [{"id": number, "name": name, "supercategory": "finding"} for name, number in category.items()]
            file.write(b',"categories":' + _text(categories) + b',"images":')
            listed.copy_to(file)
            known = [{"id": number, "name": name, "url": ""} for name, number in licences.items()]
            file.write(b',"info":' + _text(_INFO) + b',"licenses":' + _text(known) + b"}")
        return Written(rows=listed.count, sha256=file.sha256)


class _Array:
    """A JSON array of any length, on disk until it is copied."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def add(self, value: dict[str, Any]) -> None:
        """Append a value."""
        self._file.write((b"," if self.count else b"[") + _text(value))
        self.count += 1

    def copy_to(self, file: HashedFile) -> None:
        """Write the whole array."""
        self._file.write(b"]" if self.count else b"[]")
        self._file.seek(0)
        while piece := self._file.read(2**20):
            file.write(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _image(row: dict[str, Any], number: int, licence: int) -> dict[str, Any]:
    height, width = images.size(row["image"]["bytes"])
    return {
        "id": number,
        "file_name": f"images/{row['id']}.png",
        "height": height,
        "width": width,
        "license": licence,
        "sonoforge": {"id": row["id"], "label": row["label"], **{name: row[name] for name in _OURS}, **_measured(row)},
    }


def _measured(row: dict[str, Any]) -> dict[str, float]:
    return {} if row.get(_MEASURED) is None else {_MEASURED: row[_MEASURED]}


def _annotation(row: dict[str, Any], image_id: int, category: dict[str, int], number: int) -> dict[str, Any] | None:
    """The annotation of a row's mask; None where there is no mask or it is blank."""
    if row["mask"] is None or row["mask"]["bytes"] is None:
        return None
    mask = images.decode_mask(row["mask"]["bytes"])
    if not mask.any():
        return None
    if row["label"] not in category and row["label"] != _HEALTHY:
        raise ValueError(f"{row['id']} is labelled {row['label']}, which is none of {', '.join(category)}")
    if row["label"] == _HEALTHY:
        raise ValueError(f"{row['id']} is labelled {_HEALTHY} but its mask marks {int(mask.sum())} pixels")
    encoded: Any = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category[row["label"]],
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": 0,
    }
