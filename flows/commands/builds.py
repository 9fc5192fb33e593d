"""Commands that make things: build, inspect, train-base, study, ablate.

Each imports what it needs when it runs: torch and Prefect take seconds.
"""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import JsonOption, SetOption, StoreOption
from flows.commands.running import copy_out, quiet

if TYPE_CHECKING:
    from flows.build_dataset import BuildResult

app = typer.Typer()


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours: demo, breast_staged, breast_staged_128.")],
    overrides: SetOption = None,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Build and publish one version of the dataset that RECIPE describes.

    Interrupted builds resume: steps that were finished are reused. Nothing changed means nothing made.

    Examples: `sonoforge build demo`, `sonoforge build flows/recipes/breast_staged.yaml --set source.root=/data/BUSI
    --store s3://my-bucket/datasets`.
    """
    quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows import watching
    from flows.build_dataset import build_dataset
    from tasks.track import display

    watching.started_by(sys.argv[1:])
    # Prefect and libraries may print; with --json standard output carries the result alone.
    with contextlib.redirect_stdout(sys.stderr), display():
        result = build_dataset(recipe=loaded, store=store)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    _print_result(result)


@app.command()
def lock(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours: demo, breast_staged, breast_staged_128.")],
    overrides: SetOption = None,
) -> None:
    """Pin the weights that RECIPE names: base, extractor, what a ControlNet starts from, SAM.

    Writes their sha256 to RECIPE.lock.yaml beside it. From then on a build or study with other weights under the same
    names stops before any work and says which.

    Example: `sonoforge lock breast.yaml --set base=stable-diffusion-v1-5/stable-diffusion-inpainting`.
    """
    quiet()
    from flows import pins
    from flows import recipe as recipes

    found = pins.found(recipes.load(recipe, overrides or []))
    file = pins.write(recipes.find(recipe), found)
    for field, digest in sorted(found.items()):
        typer.echo(f"{field}  {digest}")
    typer.echo(f"wrote {file}")


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="busi, hc18, busuclm, busbra or folder.")],
    root: Annotated[Path, typer.Argument(help="The folder the dataset was unpacked to.")],
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write one row per image: verdict and reasons."),
    ] = None,
) -> None:
    """Say what is in a folder of scans and what is wrong with it.

    Counts per label, near-duplicate groups, label conflicts, defects.
    """
    from rich.table import Table

    from flows.commands.tables import listed, terminal
    from tasks import sources, track
    from tasks.screening import findings
    from tasks.screening.screen import ScreenParams, screen

    scans = list(sources.read(sources.at(source, root)))
    with track.display(), track.track("inspect", len(scans)):
        screened = screen(scans, ScreenParams(), 0, source, lambda count: track.advance("inspect", count))
    found = findings.inspect(screened)
    if csv_file is not None:
        csv_file.write_text(findings.to_csv(screened), newline="")
    labels = Table("label", "files", "kept", box=None)
    for label, count in found.labels.items():
        labels.add_row(label, str(count), str(found.kept.get(label, 0)))
    console = terminal()
    console.print(labels)
    copies = sum(len(files) for files in found.duplicates)
    console.print(f"{found.files} files in {found.groups} groups; splits of what is kept: {listed(found.splits)}")
    console.print(f"near-duplicates: {copies} files in {len(found.duplicates)} groups")
    console.print(f"label conflicts: {len(found.conflicts)} groups")
    for files in found.conflicts:
        console.print(f"  {', '.join(files)}", markup=False)
    reasons = Table("what is wrong", "files", box=None)
    for reason, count in found.reasons.items():
        reasons.add_row(reason, str(count))
    console.print(reasons)
    if csv_file is not None:
        typer.echo(f"wrote {csv_file}: {found.files} rows")


@app.command(name="train-base")
def train_base(
    out: Annotated[Path, typer.Option(help="Where the finished models go.")] = Path("out/models"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. --set unet.steps=20000. Repeatable."),
    ] = None,
) -> None:
    """Pretrain the embedded base model on phantoms alone, on CPU or GPU.

    The same command goes on where it was stopped. The model that ships in models/ was made by it.
    """
    quiet()
    from flows import train_base as training
    from flows.recipe import override
    from tasks.pretrain import PretrainParams
    from tasks.track import display

    content: dict[str, object] = {}
    for text in overrides or []:
        override(content, text)
    with display():
        folder = training.train_base(out, PretrainParams.model_validate(content))
    typer.echo(f"trained {folder}; use it with --set base={folder}")


@app.command()
def study(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours: demo, breast_staged, breast_staged_128.")],
    folds: Annotated[int, typer.Option(min=2, max=100, help="Folds by group; each is held out once.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings of every downstream network.")] = 1,
    overrides: SetOption = None,
    store: StoreOption = "./store",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write study.html, .md, .json and answers.parquet here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the dataset of RECIPE helps people nobody trained on.

    For each fold a generator and its judges learn from the other groups alone; then, on the fold's test groups:
    real or synthetic (AUC of a detector), KID and FID, segmentation and classification trained on real scans against
    real and synthetic ones, copies. Every number has N and interval. An interrupted study resumes.

    Example: `sonoforge study breast_staged --folds 5 --set source.root=/data/BUSI --set study.unet.steps=2000`.
    """
    quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows.commands.tables import print_table
    from flows.study_utility import study_utility
    from tasks.report.study import COLUMNS, rows
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        result = study_utility(recipe=loaded, store=store, folds=folds, seeds=seeds)
    if out is not None:
        copy_out(store, result.key, ("study.json", "study.html", "study.md", "answers.parquet"), out)
    if as_json:
        typer.echo(result.study.model_dump_json(indent=2))
        return
    print_table(COLUMNS, rows(result.study))
    typer.echo(f"study {result.uri}")


@app.command()
def ablate(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours: demo, breast_staged, breast_staged_128.")],
    overrides: SetOption = None,
    store: StoreOption = "./store",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write ablation.json and ablation.md here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what LoRA, each stage, the critic and more candidates buy: the recipe beside variants of it, in one table.

    Nothing is published. What variants have in common is made once; an interrupted ablation resumes.

    Example: `sonoforge ablate breast_staged --set source.root=/data/BUSI --set plan.samples=64`.
    """
    quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows import ablate as ablations
    from flows.commands.tables import print_table
    from tasks.report.ablation import COLUMNS, rows
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        result = ablations.ablate(recipe=loaded, store=store)
    if out is not None:
        copy_out(store, result.key, ("ablation.json", "ablation.md"), out)
    if as_json:
        typer.echo(result.ablation.model_dump_json(indent=2))
        return
    print_table(COLUMNS, rows(result.ablation))
    typer.echo(f"ablation {result.uri}")


def _print_result(result: "BuildResult") -> None:
    from rich.table import Table

    from flows.commands.tables import counts_line, print_gate, print_scores, terminal

    console = terminal()
    console.print(counts_line(result.planned, result.kept, result.rejected, result.failed))
    print_scores(console, result.scores)
    print_gate(console, result)
    steps = Table("step", "seconds", "reused", box=None)
    for step, seconds in result.seconds.items():
        steps.add_row(step, f"{seconds:.1f}", str(result.reused.get(step, 0)))
    console.print(steps)
    console.print(f"peak memory {result.peak_memory_mb:.0f} MB")
    verb = "up to date" if result.up_to_date else "published"
    typer.echo(f"{verb} {result.dataset}@{result.version} {result.uri}")
