"""The command that checks a set-up: doctor."""

import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import JsonOption, SetOption, StoreOption
from flows.commands.running import quiet

if TYPE_CHECKING:
    from flows.doctor import Finding

app = typer.Typer()

_COLOURS = {"ok": "green", "information": "cyan", "warning": "yellow", "failure": "bold red"}


@app.command()
def doctor(
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose scans, base model and lock are checked: a YAML file, or ours.")
    ] = "demo",
    overrides: SetOption = None,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Check a set-up end to end, and say what to do about each finding. Exit code 1 where something fails.

    This machine (packages, disks, GPU), the store (written to, read back, create-only writes, clock), the recipe's
    scans and base model against its lock, and the Prefect server of PREFECT_API_URL: work pools and their workers,
    limits, deployments, the automation for zombie runs, runs that stand still. Nothing is changed.

    Examples: `sonoforge doctor`, `sonoforge doctor --store s3://bucket/prefix --recipe breast.yaml --json`.
    """
    quiet()
    from flows.doctor import examine, worst

    with contextlib.redirect_stdout(sys.stderr):  # libraries may print; standard output carries the result alone
        findings = examine(store, recipe, overrides or [])
    if as_json:
        _print_json(findings)
    else:
        _print_table(findings)
    if worst(findings) == "failure":
        raise typer.Exit(1)


def _print_json(findings: Sequence["Finding"]) -> None:
    import json

    from flows.doctor import worst

    content = {"worst": worst(findings), "findings": [finding.model_dump() for finding in findings]}
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _print_table(findings: Sequence["Finding"]) -> None:
    from rich.table import Table
    from rich.text import Text

    from flows.commands.tables import listed, terminal

    table = Table("", "check", "found, and what to do", box=None)
    for finding in findings:
        level = Text(finding.level, style=_COLOURS[finding.level])
        table.add_row(level, Text(finding.check), Text(finding.found))
        if finding.advice:
            table.add_row("", "", Text(f"→ {finding.advice}", style="bold"))
    console = terminal()
    console.print(table)
    console.print(listed(Counter(finding.level for finding in findings)))
