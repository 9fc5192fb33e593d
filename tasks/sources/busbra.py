"""BUS-BRA: breast ultrasound with biopsy-proven lesions and BI-RADS categories.

- **Counts** as released: 1,875 images of 1,064 patients = 1,268 benign, 607 malignant (722 and 342 patients);
  four scanners, National Cancer Institute, Rio de Janeiro. No normals.
- **Layout**: `Images/bus_0001-l.png` (views -l, -r, -s …), `Masks/mask_0001-l.png`, `bus_data.csv` (ID, Case,
  Histology, Pathology, BIRADS, Device, Width, Height, Side, BBOX), `5-fold-cv.csv` and `10-fold-cv.csv`
  (ID, Pathology, kFold, …). Some copies have them inside `BUSBRA/`.
- **Masks**: 0/255, size of the image.
- **Groups**: the patient, column Case. Splits by the official five folds, which keep patients together:
  fold 5 is test, fold 4 validation, the rest training; without the table, none.
- **Licence**: CC BY 4.0 (Zenodo 8231412).
- **Defects**: two views of most patients.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from storage.records import Record, Scan, Split
from tasks.imaging import Mask
from tasks.sources import files

LICENCE = "CC BY 4.0"
CITATION = (
    "Gómez-Flores W, Gregorio-Calas MJ, Coelho de Albuquerque Pereira W. BUS-BRA: A breast ultrasound dataset for "
    "assessing computer-aided diagnosis systems. Medical Physics 51(4):3110-3123, 2024. doi:10.1002/mp.16812"
)
ORGAN = "breast"
LABELS = ("benign", "malignant")
LAYOUT = "Images/bus_0001-l.png, Masks/mask_0001-l.png, bus_data.csv (ID, Case, Pathology, …) and 5-fold-cv.csv"

_SPLITS: dict[str, Split] = {"1": "train", "2": "train", "3": "train", "4": "val", "5": "test"}


class Params(Record):
    """Where a BUS-BRA release lies."""

    dataset: Literal["busbra"] = "busbra"
    root: Path = Field(description="Folder with Images/, Masks/ and bus_data.csv, or the one that holds it")
    official_folds: bool = Field(default=True, description="Split by 5-fold-cv.csv: fold 5 test, fold 4 validation")


def read(params: Params) -> Iterator[Scan]:
    """Every image, mask without image and table row without file, sorted by file."""
    root = files.require_root(params.root, LAYOUT)
    inner = root / "BUSBRA"
    root = inner if inner.is_dir() else root
    if not ((root / "Images").is_dir() and (root / "bus_data.csv").is_file()):
        found = sorted(path.name for path in root.iterdir())[:5]
        raise ValueError(f"source root {root} holds {found}; expected {LAYOUT}")
    rows = files.read_csv(root / "bus_data.csv", required=("ID", "Case", "Pathology"))
    table = {row["ID"]: row for row in rows}
    folds: dict[str, str] = {}
    if params.official_folds and (root / "5-fold-cv.csv").is_file():
        fold_rows = files.read_csv(root / "5-fold-cv.csv", required=("ID", "kFold"))
        folds = {row["ID"]: row["kFold"] for row in fold_rows}
    images = {path.stem: path for path in files.listed(root / "Images")}
    masks: dict[str, Path] = {}
    if (root / "Masks").is_dir():
        masks = {path.stem.replace("mask_", "bus_", 1): path for path in files.listed(root / "Masks")}
    for name in sorted({*images, *masks, *table}):
        yield _scan(name, images.get(name), masks.get(name), table.get(name), _SPLITS.get(folds.get(name, "")))


def _scan(
    name: str, path: Path | None, mask_path: Path | None, row: dict[str, str] | None, split: Split | None
) -> Scan:
    label = row["Pathology"].lower() if row else ""
    group = f"case-{row['Case']}" if row and row["Case"] else None
    if path is None:
        file = f"Masks/{mask_path.name}" if mask_path else f"Images/{name}.png"
        reason = "mask without image" if mask_path else "listed in bus_data.csv, no file"
        return Scan(file, None, None, label, ORGAN, group, split=split, defects=(reason,))
    file = f"Images/{path.name}"
    image, defects = files.open_grey(path)
    if image is None:
        return Scan(file, None, None, label, ORGAN, group, split=split, defects=defects)
    if row is None:
        defects += ("no row in bus_data.csv",)
    elif label not in LABELS:
        defects += (f"unknown label {row['Pathology']!r}: expected one of {', '.join(LABELS)}",)
    mask: Mask | None = None
    if mask_path is None:
        defects += ("image without mask",)
    else:
        mask, problems = files.open_mask(mask_path, image.shape)
        defects += problems
        if mask is not None and not mask.any():
            defects += (f"blank mask on a {label or 'lesion'} image",)
    return Scan(file, image, mask, label, ORGAN, group, split=split, defects=defects)
