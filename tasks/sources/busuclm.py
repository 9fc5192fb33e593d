"""BUS-UCLM: breast ultrasound frames, normal, benign and malignant.

- **Counts** as released: 683 frames of 38 patients = 419 normal, 174 benign, 90 malignant; Siemens ACUSON
  S2000, Ciudad Real, 2022-2023.
- **Layout**: `images/ABCD_000.png`, `masks/ABCD_000.png`, `INFO.csv` (semicolons, byte-order mark) with Image,
  Resolution, Label, Doppler, Marks, Combined. Some copies have the folders inside `BUS-UCLM/`.
- **Masks**: colour-coded on black, green benign, red malignant; read by the nearest colour, since resaved copies
  blur the codes.
- **Groups**: the patient, from the four letters before the underscore.
- **Licence**: CC BY 4.0 (Mendeley Data 7fvgj4jsp7); a Kaggle mirror states CC BY-NC-SA.
- **Defects**: Doppler, caliper marks and two-view frames flagged in the table, which is trusted: every frame is
  tinted and carries the scanner's orange orientation mark, many a pictogram; frames of patient HESN are RGBA and
  of other sizes than their masks; many near-identical frames of a patient.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record, Scan
from tasks.imaging import Mask, to_grey
from tasks.sources import files

LICENCE = "CC BY 4.0"
CITATION = (
    "Vallez N, Bueno G, Deniz O, Rienda MA, Pastor C. BUS-UCLM: Breast ultrasound lesion segmentation dataset. "
    "Scientific Data 12:242, 2025. doi:10.1038/s41597-025-04562-3"
)
ORGAN = "breast"
LABELS = ("benign", "malignant", "normal")
LAYOUT = "images/ABCD_000.png, masks/ABCD_000.png and INFO.csv (Image;Resolution;Label;Doppler;Marks;Combined)"

_CODES = ("black", "benign", "malignant")
_FLAGS = {
    "Doppler": "marks: Doppler (INFO.csv)",
    "Marks": "marks: burned-in marks (INFO.csv)",
    "Combined": "two views in one frame (INFO.csv)",
}
_PATIENT = re.compile(r"(?P<patient>[A-Za-z]+)_\d+")


class Params(Record):
    """Where a BUS-UCLM release lies."""

    dataset: Literal["busuclm"] = "busuclm"
    root: Path = Field(description="Folder with images/, masks/ and INFO.csv, or the one that holds it")


def read(params: Params) -> Iterator[Scan]:
    """Every frame, mask without frame and table row without file, sorted by file."""
    root = files.require_root(params.root, LAYOUT)
    inner = root / "BUS-UCLM"
    root = inner if inner.is_dir() else root
    if not ((root / "images").is_dir() and (root / "INFO.csv").is_file()):
        found = sorted(path.name for path in root.iterdir())[:5]
        raise ValueError(f"source root {root} holds {found}; expected {LAYOUT}")
    rows = files.read_csv(root / "INFO.csv", delimiter=";", required=("Image", "Label"))
    table = {row["Image"]: row for row in rows}
    images = {path.name: path for path in files.listed(root / "images")}
    masks = {path.name: path for path in files.listed(root / "masks")} if (root / "masks").is_dir() else {}
    for name in sorted({*images, *masks, *table}):
        yield _scan(name, images.get(name), masks.get(name), table.get(name))


def _scan(name: str, path: Path | None, mask_path: Path | None, row: dict[str, str] | None) -> Scan:
    label = row["Label"].lower() if row else ""
    match = _PATIENT.match(name)
    group = match["patient"] if match else None
    file = f"images/{name}"
    if path is None:
        reason = "mask without image" if mask_path else "listed in INFO.csv, no file"
        file = f"masks/{name}" if mask_path else file
        return Scan(file, None, None, label, ORGAN, group, defects=(reason,))
    picture = files.open_picture(path)
    if picture.pixels is None:
        return Scan(file, None, None, label, ORGAN, group, defects=(picture.defect,))
    image, defects = to_grey(picture.pixels), tuple[str, ...]()
    if row is None:
        defects += ("no row in INFO.csv",)
    elif label not in LABELS:
        defects += (f"unknown label {row['Label']!r}: expected one of {', '.join(LABELS)}",)
    if row:
        defects += tuple(text for flag, text in _FLAGS.items() if row.get(flag, "").lower() == "yes")
    if match is None:
        defects += ("no patient in the name: expected ABCD_000.png",)
    mask: Mask | None = None
    if mask_path is None:
        defects += ("image without mask",)
    else:
        mask, problems = _lesion(mask_path, image.shape, label)
        defects += problems
    return Scan(file, image, mask, label, ORGAN, group, defects=defects)


def _lesion(path: Path, shape: tuple[int, ...], label: str) -> tuple[Mask | None, tuple[str, ...]]:
    """The lesion in either colour, and where the colour contradicts `label`."""
    picture = files.open_picture(path)
    if picture.pixels is None:
        return None, (f"mask {path.name} {picture.defect}",)
    pixels = picture.pixels
    classes = nearest_colour(np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels)
    mask, problems = files.fit_shape(classes > 0, path.name, shape)
    if mask is None:
        return None, problems
    drawn = {_CODES[k]: int((classes == k).sum()) for k in (1, 2)}
    wrong = [f"{count} px {name}" for name, count in drawn.items() if count and name != label and label in LABELS]
    if wrong:
        return mask, (f"mask colour says {' and '.join(wrong)}, the table {label}",)
    if label in ("benign", "malignant") and not mask.any():
        return mask, (f"blank mask on a {label} image",)
    return mask, ()


def nearest_colour(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Class of each pixel of shape (h, w, 3) by the nearest colour code: 0 black, 1 benign (green), 2
    malignant (red)."""
    # Of the three codes, black is farther than a colour exactly where that channel passes one half, and of the
    # two colours the nearer is the larger channel; blue says nothing.
    red, green = pixels[..., 0], pixels[..., 1]
    return np.where((green >= 128) & (green >= red), 1, np.where(red >= 128, 2, 0))
