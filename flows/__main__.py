"""The command line `sonoforge`. Each command imports what it needs when it runs: torch and Prefect take seconds."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flows.build_dataset import BuildResult
    from storage.records import SetScore

app = typer.Typer(
    name="sonoforge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Synthetic ultrasound datasets that people dare to train on.

    A recipe names real scans, a base model and what is good enough. `build` fine-tunes LoRA adapters on the scans,
    turns healthy images into lesion images with exact masks, throws away what is unreal, wrong or copied, and
    publishes the rest as an immutable version: Parquet and COCO, readable without sonoforge.

    Start with:  `sonoforge build demo`  then  `sonoforge pull demo@latest ./demo`
    """,
)

StoreOption = Annotated[
    str,
    typer.Option(
        envvar="SONOFORGE_STORE",
        help="Folder or fsspec URL that holds the datasets, e.g. s3://bucket/prefix.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. --set plan.samples=32. Repeatable."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="e.g. demo, demo@latest or demo@3")]


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours: demo, breast_staged, breast_staged_128.")],
    overrides: SetOption = None,
    store: StoreOption = "./store",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Build and publish one version of the dataset that RECIPE describes.

    Interrupted builds resume: steps that were finished are reused. Nothing changed means nothing made.

    Examples: `sonoforge build demo`, `sonoforge build flows/recipes/breast_staged.yaml --set source.root=/data/BUSI
    --store s3://my-bucket/datasets`.
    """
    _quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows.build_dataset import build_dataset
    from tasks.track import display

    # Prefect and libraries may print; with --json standard output carries the result alone.
    with contextlib.redirect_stdout(sys.stderr), display():
        result = build_dataset(recipe=loaded, store=store)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
        return
    _print_result(result)


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

    from tasks import sources, track
    from tasks.screening import findings
    from tasks.screening.screen import ScreenParams, screen

    scans = list(sources.read(sources.at(source, root)))
    with track.display(), track.track("inspect", len(scans)):
        screened = screen(scans, ScreenParams(), 0, source, lambda count: track.advance("inspect", count))
    found = findings.inspect(screened)
    if csv_file is not None:
        csv_file.write_text(findings.to_csv(screened), newline="")
    console = _console()
    labels = Table("label", "files", "kept", box=None)
    for label, count in found.labels.items():
        labels.add_row(label, str(count), str(found.kept.get(label, 0)))
    console.print(labels)
    copies = sum(len(files) for files in found.duplicates)
    console.print(f"{found.files} files in {found.groups} groups; splits of what is kept: {_listed(found.splits)}")
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
    _quiet()
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
        Path | None, typer.Option(metavar="DIR", help="Also write study.json, study.md and answers.parquet here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the study as one JSON object.")] = False,
) -> None:
    """Say whether the dataset of RECIPE helps people nobody trained on.

    For each fold a generator and its judges learn from the other groups alone; then, on the fold's test groups:
    real or synthetic (AUC of a detector), KID and FID, segmentation and classification trained on real scans against
    real and synthetic ones, copies. Every number has N and interval. An interrupted study resumes.

    Example: `sonoforge study breast_staged --folds 5 --set source.root=/data/BUSI --set study.unet.steps=2000`.
    """
    _quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows.study_utility import study_utility
    from tasks.report.study import COLUMNS, rows
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        result = study_utility(recipe=loaded, store=store, folds=folds, seeds=seeds)
    if out is not None:
        _copy_out(store, result.key, ("study.json", "study.md", "answers.parquet"), out)
    if as_json:
        typer.echo(result.study.model_dump_json(indent=2))
        return
    _print_table(COLUMNS, rows(result.study))
    typer.echo(f"study {result.uri}")


@app.command()
def ablate(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or one of ours: demo, breast_staged, breast_staged_128.")],
    overrides: SetOption = None,
    store: StoreOption = "./store",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write ablation.json and ablation.md here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ablation as one JSON object.")] = False,
) -> None:
    """Say what LoRA, each stage, the critic and more candidates buy: the recipe beside variants of it, in one table.

    Nothing is published. What variants have in common is made once; an interrupted ablation resumes.

    Example: `sonoforge ablate breast_staged --set source.root=/data/BUSI --set plan.samples=64`.
    """
    _quiet()
    from flows import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from flows import ablate as ablations
    from tasks.report.ablation import COLUMNS, rows
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        result = ablations.ablate(recipe=loaded, store=store)
    if out is not None:
        _copy_out(store, result.key, ("ablation.json", "ablation.md"), out)
    if as_json:
        typer.echo(result.ablation.model_dump_json(indent=2))
        return
    _print_table(COLUMNS, rows(result.ablation))
    typer.echo(f"ablation {result.uri}")


@app.command(name="list")
def list_(store: StoreOption = "./store") -> None:
    """List the versions in a store."""
    from rich.table import Table

    from storage.store import Store
    from storage.versions import list_versions, manifest_uri

    table = Table("version", "rows", "digest", "created", "uri", box=None)
    opened = Store(store)
    manifests = list_versions(opened)
    if not manifests:
        typer.echo(f"no versions in {store}; `sonoforge build demo --store {store}` makes one")
        return
    for manifest in manifests:
        name = f"{manifest.dataset}@{manifest.version}"
        table.add_row(name, str(manifest.kept), manifest.digest[:12], manifest.created, manifest_uri(opened, manifest))
    _console().print(table)


@app.command()
def show(
    name: NameArgument,
    store: StoreOption = "./store",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Show what a version holds: counts, scores with N, interval and floor, files."""
    from rich.table import Table

    from storage.store import Store
    from storage.versions import manifest_uri, open_manifest

    opened = Store(store)
    manifest = open_manifest(opened, name)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    console = _console()
    console.print(f"[bold]{manifest.dataset}@{manifest.version}[/]  {manifest_uri(opened, manifest)}")
    console.print(f"created {manifest.created}   digest {manifest.digest}")
    console.print(f"licences: {', '.join(manifest.licences)}")
    console.print(_counts_line(manifest.planned, manifest.kept, manifest.rejected, manifest.failed))
    _print_scores(console, manifest.scores)
    files = Table("file", "bytes", "rows", "sha256", box=None)
    for file in manifest.files:
        files.add_row(file.path, f"{file.bytes:,}", "" if file.rows is None else str(file.rows), file.sha256[:12])
    console.print(files)


@app.command()
def pull(
    name: NameArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")],
    format: Annotated[Literal["parquet", "coco"], typer.Option(help="What to write.")] = "parquet",
    store: StoreOption = "./store",
) -> None:
    """Copy a version to DIR, every byte checked against its digest. DIR exists only when it is complete."""
    from storage.pulling import files_for
    from storage.store import Store
    from storage.versions import open_manifest
    from storage.versions import pull as pull_version
    from tasks import track

    opened = Store(store)
    manifest = open_manifest(opened, name)
    total = sum(file.bytes for file in files_for(manifest, format)) / 1e6
    with track.display(), track.track("pull", total, "MB"):
        pull_version(opened, manifest, directory, format, lambda size: track.advance("pull", size / 1e6))
    typer.echo(f"pulled {manifest.dataset}@{manifest.version} to {directory}")


@app.command()
def verify(name: NameArgument, store: StoreOption = "./store") -> None:
    """Check every file of a version: digest, rows, images and masks. Exit code 1 where something is wrong."""
    from storage.store import Store
    from storage.versions import open_manifest
    from storage.versions import verify as verify_version

    opened = Store(store)
    manifest = open_manifest(opened, name)
    problems = verify_version(opened, manifest)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{manifest.dataset}@{manifest.version} is whole: {len(manifest.files)} files, digest {manifest.digest}")


def main() -> None:
    """Run the command line; an error a person can act on ends as one line, not as a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("SONOFORGE_TRACEBACK"):
            raise
        print(f"sonoforge: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("sonoforge: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _quiet() -> None:
    """Before libraries are imported: no telemetry, and no log beside our own words, unless asked otherwise."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # 20 is too few on a busy machine


def _print_result(result: "BuildResult") -> None:
    from rich.table import Table

    console = _console()
    console.print(_counts_line(result.planned, result.kept, result.rejected, result.failed))
    _print_scores(console, result.scores)
    steps = Table("step", "seconds", "reused", box=None)
    for step, seconds in result.seconds.items():
        steps.add_row(step, f"{seconds:.1f}", str(result.reused.get(step, 0)))
    console.print(steps)
    console.print(f"peak memory {result.peak_memory_mb:.0f} MB")
    verb = "up to date" if result.up_to_date else "published"
    typer.echo(f"{verb} {result.dataset}@{result.version} {result.uri}")


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*columns, box=None)
    for line in lines:
        table.add_row(*line)
    _console().print(table, markup=False)


def _copy_out(store: str, key: str, names: Sequence[str], folder: Path) -> None:
    """Files that lie beside `key` in the store, to a local folder."""
    from storage.store import Store

    opened = Store(store)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(opened.read(f"{key.rsplit('/', 1)[0]}/{name}"))


def _counts_line(planned: int, kept: int, rejected: dict[str, int], failed: int) -> str:
    return f"planned {planned}   kept {kept}   failed {failed}   rejected: {_listed(rejected)}"


def _print_scores(console: "Console", scores: list["SetScore"]) -> None:
    from rich.table import Table

    table = Table("score", "value", "95 % interval", "real vs real", "N real", "N synthetic", "extractor", box=None)
    for score in scores:
        table.add_row(
            score.name,
            "refused" if score.value is None else _number(score.value),
            _interval(score.low, score.high),
            f"{_number(score.floor)} {_interval(score.floor_low, score.floor_high)}",
            str(score.n_real),
            str(score.n_synthetic),
            score.extractor,
        )
    console.print(table)
    for score in scores:
        if score.value is None:
            console.print(f"{score.name} {score.note}", markup=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)


if __name__ == "__main__":
    main()
