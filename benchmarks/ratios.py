"""What every benchmark here prints: one table, or with `--json` one list of ratios against a named peer."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Ratio:
    """One line of a benchmark: `what` names our side, the peer and the quantity.

    `ratio` is ours over the peer's, the median of `n` paired measurements between `min` and `max`; `goal` is what
    it should reach, None where there is none. Whether more or less is better, `what` says.
    """

    what: str
    ratio: float
    goal: float | None
    min: float
    max: float
    n: int


def paired(what: str, goal: float | None, ratios: Sequence[float]) -> Ratio:
    """The ratio of several paired measurements.

    >>> paired("images/s, ours / peer's", 2.0, [3.0, 2.0, 2.5])
    Ratio(what="images/s, ours / peer's", ratio=2.5, goal=2.0, min=2.0, max=3.0, n=3)
    """
    return Ratio(what, median(ratios), goal, min(ratios), max(ratios), len(ratios))


def main(description: str, measure: Callable[[bool], Sequence[Ratio]]) -> None:
    """Command line of a benchmark: `measure` is told whether `--quick`, about a minute, was asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="about a minute, fewer repetitions")
    parser.add_argument("--json", action="store_true", help="print a list of ratios instead of a table")
    asked = parser.parse_args()
    ratios = measure(asked.quick)
    if asked.json:
        print(json.dumps([asdict(ratio) for ratio in ratios], indent=1))
        return
    table = Table("what", "ratio", "goal", "min", "max", "n")
    for ratio in ratios:
        goal = "" if ratio.goal is None else f"{ratio.goal:g}"
        numbers = f"{ratio.ratio:.3g}", goal, f"{ratio.min:.3g}", f"{ratio.max:.3g}", str(ratio.n)
        table.add_row(ratio.what, *numbers)
    Console().print(table)
