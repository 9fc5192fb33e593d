"""HC18: fetal heads in the standard plane, with outlines and head circumference.

- **Counts** as released: 999 training images of 551 women and 335 test images without annotation; mostly
  800 × 540 px, Radboud UMC, Voluson E8 and 730.
- **Layout**: `training_set/000_HC.png` with `000_HC_Annotation.png`, further frames of one exam `010_2HC.png`,
  `010_3HC.png`, `010_4HC.png`; `training_set_pixel_size_and_HC.csv` with filename, `pixel size(mm)` and
  `head circumference (mm)`; `test_set/`, `test_set_pixel_size.csv`.
- **Masks**: a thin ellipse outline, filled here. Where the head leaves the picture the outline is open at the
  border (186 and 346 among others): it is closed along that border.
- **Groups**: the exam, from the number before the underscore.
- **Licence**: CC BY 4.0 (Zenodo 1327317).
- **Defects**: test images have no mask; 2HC to 4HC frames are near-duplicates of their exam's first.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from storage.records import Record, Scan
from tasks.imaging import Mask
from tasks.imaging import ellipse as ellipses
from tasks.sources import files

LICENCE = "CC BY 4.0"
CITATION = (
    "van den Heuvel TLA, de Bruijn D, de Korte CL, van Ginneken B. Automated measurement of fetal head "
    "circumference using 2D ultrasound images. PLOS ONE 13(8):e0200412, 2018. doi:10.1371/journal.pone.0200412"
)
ORGAN = "fetal head"
LABELS = ("head",)
LAYOUT = (
    "training_set/000_HC.png with 000_HC_Annotation.png beside it, and training_set_pixel_size_and_HC.csv "
    "(filename, pixel size(mm), head circumference (mm))"
)

_EXAM = re.compile(r"(?P<exam>\d+)_\d*HC")
_TABLES = {"training_set": "training_set_pixel_size_and_HC.csv", "test_set": "test_set_pixel_size.csv"}
_THICK_PX = 6
_PIXEL = "pixel size(mm)"


class Params(Record):
    """Where an HC18 release lies."""

    dataset: Literal["hc18"] = "hc18"
    root: Path = Field(description="Folder with training_set/ and training_set_pixel_size_and_HC.csv")


def read(params: Params) -> Iterator[Scan]:
    """Every file of the training and, where present, the test set; outlines filled, pixel size from the table."""
    root = files.require_root(params.root, LAYOUT)
    if not (root / "training_set").is_dir():
        found = sorted(path.name for path in root.iterdir())[:5]
        raise ValueError(f"source root {root} holds {found}; expected {LAYOUT}")
    for name in sorted(_TABLES):
        if (root / name).is_dir():
            yield from _read_set(root, name)


def _read_set(root: Path, name: str) -> Iterator[Scan]:
    table = root / _TABLES[name]
    if not table.is_file():
        raise ValueError(f"source root {root} lacks {table.name}; expected {LAYOUT}")
    sizes = {row["filename"]: row[_PIXEL] for row in files.read_csv(table, required=("filename", _PIXEL))}
    paths = {path.name: path for path in files.listed(root / name)}
    for file in sorted({*paths, *sizes}):
        stem = Path(file).stem
        if file not in paths:
            yield Scan(f"{name}/{file}", None, None, "head", ORGAN, defects=(f"listed in {table.name}, no file",))
        elif not stem.endswith("_Annotation"):
            yield _scan(paths[file], paths.get(f"{stem}_Annotation.png"), name, sizes.get(file))
        elif stem.removesuffix("_Annotation") + ".png" not in paths:
            missing = stem.removesuffix("_Annotation") + ".png"
            yield _unusable(paths[file], name, f"mask without image: no {missing} beside it")


def _unusable(path: Path, name: str, defect: str) -> Scan:
    return Scan(f"{name}/{path.name}", None, None, "head", ORGAN, defects=(defect,))


def _scan(path: Path, annotation: Path | None, name: str, size: str | None) -> Scan:
    match = _EXAM.fullmatch(path.stem)
    if path.suffix.lower() not in files.SUFFIXES:
        return _unusable(path, name, f"unreadable: not a picture file ({path.suffix or 'no suffix'})")
    image, defects = files.open_grey(path)
    if image is None:
        return _unusable(path, name, defects[0])
    if match is None:
        defects += ("no exam number in the name: expected 000_HC.png or 000_2HC.png",)
    mask: Mask | None = None
    if annotation is None:
        defects += ("image without mask",)
    else:
        outline, problems = files.open_mask(annotation, image.shape)
        defects += problems
        if outline is not None:
            mask = fill_outline(outline)
            defects += () if mask.any() else ("outline encloses nothing",)
    pixel_mm, problems = _pixel_mm(size)
    # Exams are numbered separately in the two sets.
    group = f"{name}/{match['exam']}" if match else None
    return Scan(f"{name}/{path.name}", image, mask, "head", ORGAN, group, pixel_mm, None, defects + problems)


def _pixel_mm(size: str | None) -> tuple[float | None, tuple[str, ...]]:
    try:
        pixel_mm = float(size or "")
    except ValueError:
        return None, (f"pixel size {size!r} in the table: expected millimetres",)
    return (pixel_mm, ()) if 0 < pixel_mm < 5 else (None, (f"pixel size {pixel_mm} mm: expected 0 to 5",))


def fill_outline(outline: Mask) -> Mask:
    """The head inside a thin ellipse outline of shape (h, w), open or not where the picture ends.

    The outline is 3 px wide and the head's edge is its middle: filled so, the circumference of the mask agrees
    with the published one to 0.02 % (whole outline in: +0.7 %). Regions count as inside by an ellipse fitted to
    the outline, so neither an open border nor a corner cut off needs closing; an outline with a gap elsewhere
    gives the fitted ellipse itself. An empty result means that nothing is enclosed.
    """
    if ndimage.binary_erosion(outline, iterations=_THICK_PX).any():
        return outline.copy()  # drawn filled already
    ellipse = _fitted_ellipse(outline)
    if not ellipse.any():
        return ellipse
    regions, count = cast("tuple[NDArray[np.int32], int]", ndimage.label(~outline))
    shares = ndimage.mean(ellipse, regions, np.arange(1, count + 1))
    inside = np.isin(regions, 1 + np.flatnonzero(np.asarray(shares) > 0.5))
    if (inside & ellipse).sum() < 0.9 * (ellipse & ~outline).sum() or not inside.any():
        return ellipse
    outside = ~outline & ~inside
    if not outside.any():
        return np.ones_like(outline)
    to_inside = np.asarray(ndimage.distance_transform_edt(~inside))
    to_outside = np.asarray(ndimage.distance_transform_edt(~outside))
    return inside | (outline & (to_inside <= to_outside))


def _fitted_ellipse(outline: Mask) -> Mask:
    """Least-squares ellipse through the outline's pixels, filled; empty where they lie on none."""
    try:
        return ellipses.fitted(np.argwhere(outline).astype(np.float64)).filled(outline.shape)
    except ValueError:
        return np.zeros_like(outline)
