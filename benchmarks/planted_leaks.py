"""Planted leaks: copies among real scans, and what the leakage checker says of splits that were spoiled on purpose."""

import csv
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.leak_changes import CHANGES
from benchmarks.planting import Row
from tasks.imaging import Grey
from tasks.leakage import Leakage, check
from tasks.picture_sets import Picture, open_set
from tasks.screening.duplicates import Likeness, find_alike

SETS = {"busi": "BUSI", "bus-uclm": "BUS-UCLM", "hc18": "HC18"}
GATE = "near-duplicates"


def rows(data: Path, quick: bool) -> Iterator[Row]:
    """Copies planted in each dataset that lies in `data`, then spoiled splits of the first."""
    for folder, name in SETS.items():
        if (data / folder).is_dir():
            found = [*open_set(str(data / folder)).pictures()]
            found = [found[k] for k in np.random.default_rng(0).permutation(len(found))[: 120 if quick else None]]
            alike = find_alike([picture.image for picture in found])
            yield from _planted_copies(name, found, alike, 60 if quick else min(360, len(found)))
            yield from _strangers(name, found, alike)
            if folder == "busi":
                yield from _spoiled_splits(name, found, alike, 12 if quick else 40)


def _planted_copies(name: str, pictures: Sequence[Picture], before: Likeness, count: int) -> Iterator[Row]:
    """One changed copy of each of `count` pictures; false alarms are other pictures that now belong to something."""
    images = [picture.image for picture in pictures]
    kinds, chosen = [*CHANGES], np.random.default_rng(1).permutation(len(images))[:count].tolist()
    planted = [(origin, kinds[n % len(kinds)]) for n, origin in enumerate(chosen)]
    changed = [CHANGES[kind](images[origin], np.random.default_rng([1, n])) for n, (origin, kind) in enumerate(planted)]
    after = find_alike([*images, *changed])
    found, near, of = Counter[str](), Counter[str](), Counter[str]()
    for number, (origin, kind) in enumerate(planted, len(images)):
        of[kind] += 1
        found[kind] += after.copies[number] == after.copies[origin]
        near[kind] += after.scenes[number] == after.scenes[origin]
    # Sets of scenes that were apart before must stay apart: a copy ties its origin's scene to nothing else.
    tied: dict[int, set[int]] = {}
    for number in range(len(after.scenes)):
        origin = number if number < len(images) else planted[number - len(images)][0]
        tied.setdefault(after.scenes[number], set()).add(before.scenes[origin])
    wrong = sum(len(scenes) for scenes in tied.values() if len(scenes) > 1)
    for kind in kinds:
        note = f"{near[kind] - found[kind]} more as frames of one scene" if near[kind] > found[kind] else ""
        yield Row(f"{name}: {kind}", GATE, of[kind], found[kind], len(set(before.scenes)), wrong, note)


def _strangers(name: str, pictures: Sequence[Picture], alike: Likeness) -> Iterator[Row]:
    """Pictures tied to another patient's: false alarms where the dataset knows its patients."""
    groups: dict[int, set[str | None]] = {}
    for picture, scene in zip(pictures, alike.scenes, strict=True):
        groups.setdefault(scene, set()).add(picture.group)
    known = [(picture, scene) for picture, scene in zip(pictures, alike.scenes, strict=True) if picture.group]
    if known:
        wrong = sum(len(groups[scene]) > 1 for _, scene in known)
        yield Row(f"{name}: pictures as released", GATE, 0, 0, len(known), wrong, "false: tied to another patient's")


def _spoiled_splits(name: str, pictures: Sequence[Picture], alike: Likeness, count: int) -> Iterator[Row]:
    """Two folders and a list, clean but for `count` leaks of each kind."""
    rng = np.random.default_rng(2)
    first = {scene: k for k, scene in reversed([*enumerate(alike.scenes)])}
    kept = [k for k, scene in enumerate(alike.scenes) if first[scene] == k]
    sides = {k: "train" if place % 3 else "test" for place, k in enumerate(kept)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for k, side in sides.items():
            _save(folder / side / f"{k}.png", pictures[k].image)
        for n, k in enumerate([k for k in kept if sides[k] == "test"][:count]):
            change = [*CHANGES.values()][n % len(CHANGES)]
            _save(folder / "train" / f"copy of {k}.png", change(pictures[k].image, np.random.default_rng([2, n])))
        found = check([str(folder / "train"), str(folder / "test")])
        planted = {f"{k}.png" for k in kept if (folder / "train" / f"copy of {k}.png").exists()}
        yield _tally(f"{name}: copies of test images in the training folder", found, "duplicate", planted, len(kept))
        for kind, column in (("group", "group"), ("background", "background_id"), ("mask", "mask_id")):
            leaked = {str(k) for k in rng.permutation(kept)[:count]}
            table = folder / f"{kind}.csv"
            _write_list(table, column, sides, leaked)
            yield _tally(f"{name}: leaked {kind}s in a list", check([str(table)]), kind, leaked, len(kept))


def _write_list(path: Path, column: str, sides: dict[int, str], leaked: set[str]) -> None:
    """Two rows for each scan, both in its split; of `leaked` ones, one in the other."""
    other = {"train": "test", "test": "train"}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "split", column))
        for k, side in sides.items():
            writer.writerow((f"a {k}", side, k))
            writer.writerow((f"b {k}", other[side] if str(k) in leaked else side, k))


def _tally(what: str, leakage: Leakage, kind: str, planted: set[str], clean: int) -> Row:
    """How many of the planted leaks were found; any other leak is a false alarm."""
    named = [{span.name, *(name for names in span.members.values() for name in names)} for span in leakage.spans]
    found = {leak for leak in planted if any(leak in names for names in named)}
    false = sum(not names & planted for names in named)
    return Row(what, f"check-leakage: {kind}", len(planted), len(found), clean - len(planted), false)


def _save(path: Path, image: Grey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
