"""COCO files: the same images, lesions, boxes and outlines as the rows they were made from.

Nothing of a stranger's run lengths is unpacked: a mask has one compressed form, which is compared as text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage import json_stream
from storage.checks.notebook import Drawn, Notebook
from storage.checks.pictures import counts_digest
from storage.checks.problems import Problems

_CATEGORIES = 1000


def check_coco(path: str, local: Path, notebook: Notebook, problems: Problems) -> None:
    """Check a COCO file, read piece by piece, against what the rows of its split show.

    Args:
        path: "coco/<split>.json".
        local: where it lies.
        notebook: what the rows show.
        problems: what is wrong.
    """
    split = path.removeprefix("coco/").removesuffix(".json")
    try:
        categories = _categories(local)
        images, lesions = notebook.drawn(split), notebook.drawn(split, lesions=True)
        listed = annotated = 0
        for name, item in json_stream.members(local):
            if name == "images":
                listed += 1
                _compare(path, f"image {listed}", item, _image(listed, next(images, None)), problems)
            elif name == "annotations":
                annotated += 1
                expected = _annotation(annotated, next(lesions, None), categories)
                _compare(path, f"annotation {annotated}", _plain(item), expected, problems)
    except (ValueError, OSError) as error:
        problems.add(path, f"is no COCO file: {error}")
        return
    for what, count, rest in (("images", listed, images), ("annotations", annotated, lesions)):
        missing = sum(1 for _ in rest)
        if missing:
            problems.add(path, f"{count} {what}, expected {count + missing}")


def _categories(local: Path) -> dict[str, Any]:
    """Ids of the categories by name."""
    found: dict[str, Any] = {}
    for name, item in json_stream.members(local):
        if name == "categories":
            if not isinstance(item, dict) or item.get("name") in found or len(found) >= _CATEGORIES:
                raise ValueError(f"category {str(item)[:50]!r} is none, stands there twice, or is one of too many")
            found[str(item.get("name"))] = item.get("id")
    if any(type(number) is not int or number < 1 for number in found.values()):
        raise ValueError("categories are numbered from 1")
    if len(set(found.values())) < len(found):
        raise ValueError("two categories share an id")
    return found


def _image(number: int, row: Drawn | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "id": number,
        "file_name": f"images/{row.id}.png",
        "height": row.height,
        "width": row.width,
    }


def _annotation(number: int, row: Drawn | None, categories: dict[str, Any]) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "id": number,
        "image_id": row.number,
        "category_id": categories.get(row.label),
        "area": row.area,
        "bbox": [row.x, row.y, row.w, row.h],
        "size": [row.height, row.width],
        "mask": row.counts,
        "iscrowd": 0,
    }


def _plain(item: Any) -> Any:
    """An annotation with its run lengths as `Drawn` has them."""
    if not isinstance(item, dict):
        return item
    segmentation = item.get("segmentation")
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str):
        return item
    counts = segmentation["counts"].encode(errors="replace")
    return {**item, "size": segmentation.get("size"), "mask": counts_digest(counts)}


def _compare(path: str, what: str, found: Any, expected: dict[str, Any] | None, problems: Problems) -> None:
    if expected is None:
        problems.add(path, f"{what} belongs to no row")
    elif not isinstance(found, dict):
        problems.add(path, f"{what} is {str(found)[:50]!r}, expected an object")
    else:
        for line in _differences(found, expected):
            problems.add(path, f"{what}: {line}")


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    for name, value in expected.items():
        if name not in found or found[name] != value:
            if name == "mask":
                yield "its run lengths are not those of the row's mask"
            else:
                yield f"{name} {str(found.get(name, 'missing'))[:50]}, expected {value}"
