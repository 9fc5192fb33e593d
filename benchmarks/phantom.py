"""How near phantoms come to real scans, statistic by statistic.

Real scans: BUSI (benign, malignant, normal) and HC18 (heads) below SONOFORGE_DATA, else ../shared/data, screened as a
build screens them, training split alone, 128 px. Prints quartiles of both, the Wasserstein-1 distance over the real
standard deviation with its 90 % bootstrap interval, and whether the real median lies inside the phantoms' quartiles.
With `--json` a list of ratios, phantom median over real median, `min` and `max` those of the phantoms' quartiles.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.ratios import Ratio
from tasks import sources
from tasks.imaging.appearance import Compared, compare, describe
from tasks.screening.screen import ScreenParams, screen
from tasks.sources import phantom

DATA = Path(os.environ.get("SONOFORGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
PX, SEED = 128, 77
KINDS: tuple[phantom.Kind, ...] = ("benign", "malignant", "normal", "head")
Described = list[dict[str, float]]


def real(dataset: str) -> dict[str, Described]:
    """Statistics of the training split's kept scans, by label."""
    scans = list(sources.read(sources.at(dataset, DATA / dataset)))
    found: dict[str, Described] = {}
    for row in screen(scans, ScreenParams(px=PX), 0, dataset):
        if row.split == "train" and row.verdict == "kept" and row.image is not None:
            mask = row.mask if row.mask is not None and row.mask.any() else None
            found.setdefault(row.label, []).append(describe(row.image, mask))
    return found


def simulated(kind: phantom.Kind, count: int) -> tuple[Described, float]:
    """Statistics of so many phantoms, and the milliseconds of one core that each took to draw."""
    start = time.process_time()
    drawn = [phantom.draw(kind, SEED, index, 0, PX) for index in range(count)]
    spent = (time.process_time() - start) / count * 1000
    return [describe(picture.image, picture.mask) for picture in drawn], spent


def show(kind: str, rows: list[Compared], sizes: str) -> None:
    table = Table("statistic", "phantom", "real", "distance", "90 % interval", "covered", title=f"{kind}: {sizes}")
    for row in rows:
        ours, theirs = ("{1:.3g} [{0:.3g}, {2:.3g}]".format(*side) for side in (row.ours, row.theirs))
        interval = f"{row.low:.2f} to {row.high:.2f}"
        table.add_row(row.name, ours, theirs, f"{row.distance:.2f}", interval, "yes" if row.covered else "no")
    Console(width=150).print(table)


def ratios(kind: str, rows: list[Compared], n: int) -> list[Ratio]:
    """Phantom over real medians; statistics whose real median is 0 have none."""
    kept = [row for row in rows if abs(row.theirs[1]) > 1e-9]
    out: list[Ratio] = []
    for row in kept:
        low, middle, high = sorted(value / row.theirs[1] for value in row.ours)
        out.append(Ratio(f"{kind}, {row.name}, phantom / real", middle, 1.0, low, high, n))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 phantoms of a kind instead of 160")
    parser.add_argument("--json", action="store_true", help="print a list of ratios instead of tables")
    asked = parser.parse_args()
    known = real("busi") | real("hc18")
    count = 40 if asked.quick else 160
    every: list[Compared] = []
    told: list[Ratio] = []
    for kind in KINDS:
        ours, spent = simulated(kind, count)
        rows = compare(ours, known[kind])
        every += rows
        told += ratios(kind, rows, count)
        if not asked.json:
            show(kind, rows, f"{count} phantoms ({spent:.0f} ms each), {len(known[kind])} real")
    distance, covered = float(np.mean([row.distance for row in every])), sum(row.covered for row in every)
    if asked.json:
        print(json.dumps([asdict(ratio) for ratio in told], indent=1))
    else:
        Console().print(f"mean distance {distance:.3f}; {covered} of {len(every)} real medians covered")


if __name__ == "__main__":
    main()
