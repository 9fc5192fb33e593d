"""Which planted failures are caught, and at how many false alarms: on real scans, with judges that never saw them.

    python -m benchmarks.planted /data [--only copies] [--quick] [--json FILE]

`/data` holds datasets in their own layouts: busi/, hc18/, bus-uclm/. Every rate has its 95 % Wilson interval.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import planted_copies, planted_images, planted_leaks, planted_sets
from benchmarks.planting import Row
from tasks.quality.resampling import wilson

PLANTS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "copies": planted_copies.rows,
    "images": planted_images.rows,
    "sets": planted_sets.rows,
    "leaks": planted_leaks.rows,
}


def main() -> None:
    """Print the table as it grows; write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that holds busi/, hc18/ and bus-uclm/")
    parser.add_argument("--only", choices=list(PLANTS), action="append", help="some kinds of failures; repeatable")
    parser.add_argument("--quick", action="store_true", help="about a minute, fewer plants")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    asked = parser.parse_args()
    if not (asked.data / "busi").is_dir():
        sys.exit(f"{asked.data} holds no busi/: give the folder that holds the datasets")
    rows: list[Row] = []
    for kind in asked.only or PLANTS:
        for row in PLANTS[kind](asked.data, asked.quick):
            print(line(row), file=sys.stderr, flush=True)
            rows.append(row)
    table = Table("planted", "gate", "found", "95 %", "false alarms", "95 %", "note")
    for row in rows:
        table.add_row(row.what, row.gate, *_rate(row.found, row.planted), *_rate(row.false_alarms, row.clean), row.note)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")


def line(row: Row) -> str:
    """One row as text.

    >>> line(Row("flips", "copies", 40, 39, 100, 2))
    'flips: copies found 39 of 40 (0.871 to 0.996), 2 false alarms of 100 (0.006 to 0.070)'
    """
    (found, span), (false, around) = _rate(row.found, row.planted), _rate(row.false_alarms, row.clean)
    return f"{row.what}: {row.gate} found {found} ({span}), {false.replace(' of', ' false alarms of')} ({around})"


def _rate(hits: int, n: int) -> tuple[str, str]:
    if not n:
        return "none", ""
    low, high = wilson(hits, n)
    return f"{hits} of {n}", f"{low:.3f} to {high:.3f}"


if __name__ == "__main__":
    main()
