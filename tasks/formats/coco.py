"""COCO instance annotations, one JSON file a split, made from the exported Parquet.

Ids count from 1; category 0 stays reserved. A lesion is one annotation with a compressed run-length mask,
also where it has several parts, because polygons lose holes and cannot equal the mask pixel for pixel.
Healthy images are listed without annotations. What COCO has no place for stands in each image under
`sonoforge`. There is no date: the same rows make the same bytes.

COCO format: Lin et al., "Microsoft COCO", ECCV 2014, https://cocodataset.org/#format-data.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pycocotools import mask as rle

from storage import images
from storage.records import SPLITS

_HEALTHY = "normal"  # a category that is never annotated would be a class no detector can learn
_OURS = ["group", "organ", "pixel_mm", "background_id", "background_kind", "seed", "sha256", "recipe_digest"]


def write(parquet: Path, folder: Path) -> dict[str, int]:
    """Write `coco/<split>.json` for every split that `parquet` holds.

    Args:
        parquet: a folder filled by `tasks.formats.parquet.write`.
        folder: where `coco/` goes; `file_name` is `images/<id>.png`, which `pull --format coco` writes.

    Returns:
        Images in each file written, by its path in `folder`.
    """
    shards = {split: sorted((parquet / "data").glob(f"{split}-*.parquet")) for split in SPLITS}
    paths = [path for found in shards.values() for path in found]
    seen: set[str] = set()
    for path in paths:
        seen |= set(pq.read_table(path, columns=["label"]).column("label").unique().to_pylist())
    labels = sorted(seen - {_HEALTHY})
    written: dict[str, int] = {}
    for split, found in shards.items():
        if not found:
            continue
        content = _split(found, labels)
        (folder / "coco").mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        (folder / "coco" / f"{split}.json").write_text(text)
        written[f"coco/{split}.json"] = len(content["images"])
    return written


def _split(shards: list[Path], labels: list[str]) -> dict[str, Any]:
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    licences: list[str] = []
    category = {label: index for index, label in enumerate(labels, start=1)}
    columns = ["id", "image", "mask", "label", "licence", *_OURS]
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(64, columns=columns):
            for row in batch.to_pylist():
                height, width = images.decode_grey(row["image"]["bytes"]).shape
                if row["licence"] not in licences:
                    licences.append(row["licence"])
                image_id = len(listed) + 1
                listed.append(
                    {
                        "id": image_id,
                        "file_name": f"images/{row['id']}.png",
                        "height": height,
                        "width": width,
                        "license": licences.index(row["licence"]) + 1,
                        "sonoforge": {
                            "id": row["id"],
                            "label": row["label"],
                            **{name: row[name] for name in _OURS},
                        },
                    }
                )
                annotation = _annotation(row, image_id, category, len(annotations) + 1)
                annotations += [annotation] if annotation is not None else []
    return {
        "info": {"description": "Synthetic ultrasound images made by sonoforge", "version": "1.0"},
        "licenses": [{"id": index, "name": name, "url": ""} for index, name in enumerate(licences, start=1)],
        "categories": [{"id": number, "name": label, "supercategory": "finding"} for label, number in category.items()],
        "images": listed,
        "annotations": annotations,
    }


def _annotation(row: dict[str, Any], image_id: int, category: dict[str, int], number: int) -> dict[str, Any] | None:
    """The annotation of a row's mask; None where there is no mask or it is blank."""
    if row["mask"] is None or row["mask"]["bytes"] is None:
        return None
    mask = images.decode_mask(row["mask"]["bytes"])
    if not mask.any():
        return None
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
