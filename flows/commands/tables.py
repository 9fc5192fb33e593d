"""How commands show things: tables and lines on a terminal, of a fixed width where nobody is looking."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from storage.records import Outcome, SetScore


def listed(counts: Mapping[str, int]) -> str:
    """Counts in one line; "none" for no counts.

    >>> listed({"train": 3, "val": 1})
    'train 3, val 1'
    """
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def counts_line(planned: int, kept: int, rejected: dict[str, int], failed: int) -> str:
    """How the planned samples ended."""
    return f"planned {planned}   kept {kept}   failed {failed}   rejected: {listed(rejected)}"


def print_scores(console: Console, scores: Sequence[SetScore]) -> None:
    """Set scores with interval, floor and N; below the table why a score is refused."""
    head = ("score", "value", "95 % interval", "real vs real", "× floor", "p", "control", "N", "extractor")
    table = Table(*head, box=None)
    for score in scores:
        table.add_row(
            score.name,
            "refused" if score.value is None else number(score.value),
            interval(score.low, score.high),
            f"{number(score.floor)} {interval(score.floor_low, score.floor_high)}",
            number(score.over_floor),
            "" if score.p is None else f"{score.p:.2g}",
            number(score.control),
            f"{score.n_real} + {score.n_synthetic}",
            score.extractor,
        )
    console.print(table)
    for score in scores:
        if score.value is None:
            console.print(f"{score.name} {score.note}", markup=False)


def print_gate(console: Console, outcome: Outcome) -> None:
    """Whether the set passed its gate, what only just held, and what would change that."""
    console.print(f"gate: {outcome.gate}")
    for line in (*outcome.warnings, *outcome.advice):
        console.print(f"  {line}", markup=False)


def number(value: float | None) -> str:
    """Four significant digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
    """ "low to high"; nothing where there is none."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def terminal() -> Console:
    """Where tables go; 160 columns wide into a file or pipe."""
    return Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table of plain text."""
    table = Table(*columns, box=None)
    for line in lines:
        table.add_row(*line)
    terminal().print(table, markup=False)
