"""BUSI: breast ultrasound, normal, benign and malignant.

- **Counts** as released: 780 images = 437 benign, 210 malignant, 133 normal, of 600 women aged 25 to 75, one
  hospital (Baheya, Cairo, 2018), LOGIQ E9. The dataset paper prints 487 benign; the files are 437.
- **Layout**: `Dataset_BUSI_with_GT/{benign,malignant,normal}/benign (1).png` with `benign (1)_mask.png`; further
  lesions of one image in `benign (100)_mask_1.png`, `_mask_2.png` (17 images): merged by OR.
- **Masks**: 0/255, size of the image, one, three or four channels; normals have black masks.
- **Licence**: statements conflict between mirrors; the authors ask for the citation below.
- **Defects**: no patient ids; about 330 images in 149 near-duplicate groups (Curated BUSI; 235 by Pawłowska et
  al., doi 10.1016/j.dib.2023.109247), some with conflicting labels; about 295 with burned-in annotations;
  axillae, biopsy needles, coloured stickers. Screening finds duplicates, conflicts and marks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from storage.records import Record, Scan
from tasks.imaging import Mask
from tasks.sources import files

LICENCE = "conflicting statements; citation requested (Al-Dhabyani et al. 2020)"
CITATION = (
    "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. "
    "Data in Brief 28:104863, 2020. doi:10.1016/j.dib.2019.104863"
)
ORGAN = "breast"
LABELS = ("benign", "malignant", "normal")
LAYOUT = "{benign,malignant,normal}/benign (1).png with benign (1)_mask.png, benign (1)_mask_1.png … beside it"

_MASK = re.compile(r"(?P<stem>.+)_mask(_\d+)?", re.IGNORECASE)


class Params(Record):
    """Where a BUSI release lies."""

    dataset: Literal["busi"] = "busi"
    root: Path = Field(description="Folder with benign/, malignant/ and normal/, or the one that holds it")


def read(params: Params) -> Iterator[Scan]:
    """Every file of the release as one scan, sorted by file; masks are part of their image's scan."""
    root = files.require_root(params.root, LAYOUT)
    inner = root / "Dataset_BUSI_with_GT"
    root = inner if inner.is_dir() else root
    if not any((root / label).is_dir() for label in LABELS):
        found = sorted(path.name for path in root.iterdir())[:5]
        raise ValueError(f"source root {root} holds {found}; expected {LAYOUT}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = [path for path in files.listed(root) if path.suffix.lower() in files.SUFFIXES]
    scans = [(path, [], f"outside the label folders {', '.join(LABELS)}") for path in loose]
    for folder in folders:
        scans += _paired(folder)
    for path, masks, defect in sorted(scans, key=lambda scan: scan[0].relative_to(root).as_posix()):
        yield _scan(root, path, masks, defect)


def _paired(folder: Path) -> list[tuple[Path, list[Path], str]]:
    """(image, its masks, reason why it cannot be used) for every file of a label folder."""
    pictures: dict[str, tuple[Path, list[Path]]] = {}
    rest: list[tuple[Path, list[Path], str]] = []
    masks: list[tuple[str, Path]] = []
    for path in files.listed(folder):
        match = _MASK.fullmatch(path.stem)
        if path.suffix.lower() not in files.SUFFIXES:
            rest.append((path, [], f"unreadable: not a picture file ({path.suffix or 'no suffix'})"))
        elif match:
            masks.append((match["stem"], path))
        elif path.stem in pictures:
            rest.append((path, [], f"same name as {pictures[path.stem][0].name}"))
        else:
            pictures[path.stem] = (path, [])
    for stem, path in masks:
        if stem in pictures:
            pictures[stem][1].append(path)
        else:
            rest.append((path, [], f"mask without image: no {stem}.png beside it"))
    unknown = f"unknown label folder {folder.name!r}: expected one of {', '.join(LABELS)}"
    known = folder.name in LABELS
    return rest + [(path, found, "" if known else unknown) for path, found in pictures.values()]


def _scan(root: Path, path: Path, mask_paths: list[Path], defect: str) -> Scan:
    file, label = path.relative_to(root).as_posix(), path.parent.name if path.parent != root else ""
    if defect.startswith(("mask without", "unreadable")):
        return Scan(file, None, None, label, ORGAN, defects=(defect,))
    image, defects = files.open_grey(path)
    defects = ((defect,) if defect else ()) + defects
    if image is None:
        return Scan(file, None, None, label, ORGAN, defects=defects)
    mask: Mask | None = None
    if label in LABELS:
        mask, problems = _merged(mask_paths, image.shape, label)
        defects += problems
    return Scan(file, image, mask, label, ORGAN, defects=defects)


def _merged(paths: list[Path], shape: tuple[int, ...], label: str) -> tuple[Mask | None, tuple[str, ...]]:
    """All lesions of one image as one mask; as bool, because summed uint8 masks wrap where lesions overlap."""
    if not paths:
        return None, ("image without mask",)
    merged = np.zeros(shape, np.bool_)
    for path in paths:
        mask, problems = files.open_mask(path, shape)
        if mask is None:
            return None, problems
        merged |= mask
    if label == "normal" and merged.any():
        return merged, (f"normal with a lesion mask of {int(merged.sum())} px",)
    if label != "normal" and not merged.any():
        return merged, (f"blank mask on a {label} image",)
    return merged, ()
