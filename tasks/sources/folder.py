"""Your own scans: a folder of images, a folder of masks and a table.

- **Layout**: `images/` with pictures of any name, below it any subfolders; `masks/` with a picture of the same
  relative path (its suffix may differ); one csv file beside them, `labels.csv` or the only one there.
- **Table**: columns `file` (path below `images/`) and `label` (normal, benign, malignant or head; `normal` takes
  no mask); optional `group` (patient or exam: give it whenever you know it), `pixel_mm` (millimetres per pixel),
  `organ` (breast or fetal head), `split` (train, val or test). Separators: comma or semicolon.
- **Masks**: any channel in the upper half is inside; the size of the image.
- **Licence**: yours; state it in the recipe.
- **Defects**: found by screening. A file without a row, a row without a file and an unknown label each end as a
  row with the reason.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from storage.records import SPLITS, Record, Scan, Split
from tasks.imaging import Mask
from tasks.sources import files

LICENCE = "as stated by the owner"
CITATION = "none"
ORGAN = "breast"
LABELS = ("benign", "head", "malignant", "normal")
LAYOUT = "images/, masks/ (same names) and labels.csv with columns file,label[,group,pixel_mm,organ,split]"

_ORGANS = ("breast", "fetal head")


class Params(Record):
    """Where your own scans lie."""

    dataset: Literal["folder"] = "folder"
    root: Path = Field(description="Folder with images/, masks/ and labels.csv")
    organ: Literal["breast", "fetal head"] = Field(default="breast", description="Organ where the table names none")
    licence: str = Field(default=LICENCE, description="Licence of the scans, inherited by everything made from them")


def read(params: Params) -> Iterator[Scan]:
    """Every picture, mask without picture and table row without file, sorted by file."""
    root = files.require_root(params.root, LAYOUT)
    if not (root / "images").is_dir():
        found = sorted(path.name for path in root.iterdir())[:5]
        raise ValueError(f"source root {root} holds {found}; expected {LAYOUT}")
    table = _table(root)
    images = {path.relative_to(root / "images").as_posix(): path for path in _below(root / "images")}
    masks = {path.relative_to(root / "masks").with_suffix("").as_posix(): path for path in _below(root / "masks")}
    stems = {Path(name).with_suffix("").as_posix() for name in (*images, *table)}
    for name in sorted({*images, *table}):
        mask_path = masks.get(Path(name).with_suffix("").as_posix())
        yield _scan(name, images.get(name), mask_path, table.get(name, []), params.organ)
    for stem in sorted(set(masks) - stems):
        file = masks[stem].relative_to(root).as_posix()
        reason = f"mask without image: no images/{stem}.* beside it"
        yield Scan(file, None, None, "", params.organ, defects=(reason,))


def _below(folder: Path) -> list[Path]:
    """Files in `folder` and its visible subfolders, none where it is absent."""
    if not folder.is_dir():
        return []
    subfolders = (p for p in folder.rglob("*") if p.is_dir())
    visible = [p for p in subfolders if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted(path for place in (folder, *visible) for path in files.listed(place))


def _table(root: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of the table by file; more than one row is a conflict that becomes a defect."""
    tables = sorted(root.glob("*.csv"))
    named = [path for path in tables if path.name == "labels.csv"] or tables
    if len(named) != 1:
        raise ValueError(f"source root {root} holds {len(tables)} csv files; expected {LAYOUT}")
    first = named[0].read_bytes().split(b"\n", 1)[0]
    delimiter = ";" if first.count(b";") > first.count(b",") else ","
    rows: dict[str, list[dict[str, str]]] = {}
    for row in files.read_csv(named[0], delimiter, required=("file", "label")):
        rows.setdefault(row["file"].replace("\\", "/").removeprefix("images/"), []).append(row)
    return rows


def _scan(name: str, path: Path | None, mask_path: Path | None, rows: list[dict[str, str]], organ: str) -> Scan:
    file, row = f"images/{name}", rows[0] if rows else {}
    label, organ, group = row.get("label", "").lower(), row.get("organ") or organ, row.get("group") or None
    if path is None:
        return Scan(file, None, None, label, organ, group, defects=("listed in the table, no file",))
    image, defects = files.open_grey(path)
    if image is None:
        return Scan(file, None, None, label, organ, group, defects=defects)
    if not rows:
        defects += ("no row in the table",)
    elif label not in LABELS:
        defects += (f"unknown label {row['label']!r}: expected one of {', '.join(LABELS)}",)
    if len({tuple(sorted(row.items())) for row in rows}) > 1:
        defects += (f"{len(rows)} different rows in the table",)
    if organ not in _ORGANS:
        defects += (f"unknown organ {organ!r}: expected one of {', '.join(_ORGANS)}",)
    pixel_mm, split, problems = _extras(row)
    defects += problems
    mask: Mask | None = None
    if mask_path is not None:
        mask, problems = files.open_mask(mask_path, image.shape)
        defects += problems
    elif label == "normal":
        mask = np.zeros(image.shape, np.bool_)
    else:
        defects += ("image without mask",)
    if mask is not None and label in LABELS and mask.any() == (label == "normal"):
        defects += (f"{'lesion' if label == 'normal' else 'blank'} mask on a {label} image",)
    return Scan(file, image, mask, label, organ, group, pixel_mm, split, defects)


def _extras(row: dict[str, str]) -> tuple[float | None, Split | None, tuple[str, ...]]:
    """Pixel size and split of a row, and what is wrong with them."""
    problems: tuple[str, ...] = ()
    pixel_mm: float | None = None
    if text := row.get("pixel_mm", ""):
        try:
            pixel_mm = float(text)
        except ValueError:
            problems += (f"pixel_mm {text!r}: expected millimetres",)
        if pixel_mm is not None and not 0 < pixel_mm < 5:
            pixel_mm, problems = None, (*problems, f"pixel_mm {text}: expected 0 to 5 mm")
    named = row.get("split", "").lower()
    split: Split | None = next((known for known in SPLITS if known == named), None)
    if named and split is None:
        problems += (f"unknown split {named!r}: expected one of {', '.join(SPLITS)}",)
    return pixel_mm, split, problems
