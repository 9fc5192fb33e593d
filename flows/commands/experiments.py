"""Commands that put a recipe's generator to the test: memorisation."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import JsonOption, SetOption, StoreOption
from flows.commands.running import copy_out, quiet

app = typer.Typer()


@app.command()
def memorisation(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours, of two labels: demo, breast_staged_128.")],
    share: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Of the training scans, whole groups, that teach the generator.")
    ] = 0.2,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings of every classifier.")] = 3,
    draws: Annotated[
        int, typer.Option(min=1, max=100, help="Draws of the groups, each with a generator of its own.")
    ] = 1,
    overrides: SetOption = None,
    store: StoreOption = "./store",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write memorisation.html, .md, .json, answers.parquet here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the samples of RECIPE give away the scans that taught their generator.

    The generator learns from a share of the groups, a classifier from its samples alone; the classifier is tested on
    the scans that taught the generator and on groups that nothing saw. The gap between both AUCs, with its interval, is
    memorisation; beside it two controls: the same classifier taught by those scans themselves, and by others. Nothing
    is published; an interrupted experiment resumes.

    Example: `sonoforge memorisation breast_staged_128 --share 0.2 --set source.root=/data/BUSI`.
    """
    quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows import memorisation as experiment
    from flows.commands.tables import print_table
    from tasks.report.memorisation import COLUMNS, findings, rows
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        result = experiment.memorisation(recipe=loaded, store=store, share=share, seeds=seeds, draws=draws)
    if out is not None:
        names = ("memorisation.json", "memorisation.html", "memorisation.md", "answers.parquet")
        copy_out(store, result.key, names, out)
    if as_json:
        typer.echo(result.memorisation.model_dump_json(indent=2))
        return
    print_table(COLUMNS, rows(result.memorisation))
    for sentence in findings(result.memorisation):
        typer.echo(sentence)
    typer.echo(f"memorisation {result.uri}")
