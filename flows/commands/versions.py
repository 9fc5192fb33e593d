"""Commands about what is published: list, show, pull, verify, diff, lineage, promote, channels, retract, gc.

None of them imports torch or Prefect.
"""

import json
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.options import JsonOption, NameArgument, StoreOption, store_at

if TYPE_CHECKING:
    from storage.store import Store

app = typer.Typer()

_AGE = re.compile(r"(\d+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@app.command(name="list")
def list_(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """List the versions in a store, with the channels that point at them and those that were retracted."""
    from rich.table import Table

    from flows.commands.tables import terminal
    from storage import channels, retractions
    from storage.versions import list_versions, manifest_uri

    opened = store_at(store)
    pointing: dict[tuple[str, int], list[str]] = {}
    table = Table("version", "rows", "digest", "created", "state", "uri", box=None)
    lines: list[dict[str, object]] = []
    looked_up: set[str] = set()
    for manifest in list_versions(opened, dataset):
        if manifest.dataset not in looked_up:
            looked_up.add(manifest.dataset)
            for channel in channels.names(opened, manifest.dataset):
                entries = channels.history(opened, manifest.dataset, channel)
                pointing.setdefault((manifest.dataset, entries[-1].version), []).append(channel)
        tombstone = retractions.find(opened, manifest.dataset, manifest.version)
        names = pointing.get((manifest.dataset, manifest.version), [])
        line: dict[str, object] = {
            "version": f"{manifest.dataset}@{manifest.version}",
            "rows": manifest.kept,
            "digest": manifest.digest,
            "created": manifest.created,
            "channels": names,
            "retracted": None if tombstone is None else tombstone.reason,
            "uri": manifest_uri(opened, manifest),
        }
        lines.append(line)
        state = ", ".join(names) if tombstone is None else f"retracted: {tombstone.reason}"
        table.add_row(
            str(line["version"]), str(manifest.kept), manifest.digest[:12], manifest.created, state, str(line["uri"])
        )
    if as_json:
        typer.echo(json.dumps(lines, indent=2, ensure_ascii=False))
    elif lines:
        terminal().print(table)
    else:
        typer.echo(f"no versions in {store}; `sonoforge build demo --store {store}` makes one")


@app.command()
def show(name: NameArgument, store: StoreOption = "./store", as_json: JsonOption = False) -> None:
    """Show what a version holds: counts, scores with N, interval and floor, files."""
    from rich.table import Table

    from flows.commands.tables import counts_line, print_gate, print_scores, terminal
    from storage import retractions
    from storage.versions import manifest_uri, open_manifest

    opened = store_at(store)
    manifest = open_manifest(opened, name)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    console = terminal()
    console.print(f"[bold]{manifest.dataset}@{manifest.version}[/]  {manifest_uri(opened, manifest)}")
    console.print(f"created {manifest.created}   digest {manifest.digest}")
    tombstone = retractions.find(opened, manifest.dataset, manifest.version)
    if tombstone is not None:
        console.print(f"[bold red]retracted[/] {tombstone.retracted}: {tombstone.reason}")
    console.print(f"licences: {', '.join(manifest.licences)}")
    console.print(counts_line(manifest.planned, manifest.kept, manifest.rejected, manifest.failed))
    print_scores(console, manifest.scores)
    print_gate(console, manifest)
    files = Table("file", "bytes", "rows", "sha256", box=None)
    for file in manifest.files:
        files.add_row(file.path, f"{file.bytes:,}", "" if file.rows is None else str(file.rows), file.sha256[:12])
    console.print(files)


@app.command()
def pull(
    name: NameArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")],
    format: Annotated[Literal["parquet", "coco", "webdataset"], typer.Option(help="What to write.")] = "parquet",
    split: Annotated[Literal["train", "val", "test"] | None, typer.Option(help="Only this split.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help="Only rows for which this holds, e.g. \"label = 'malignant' and segmenter_dice > 0.8\"."
        ),
    ] = None,
    store: StoreOption = "./store",
) -> None:
    """Copy a version to DIR, every byte checked against its digest. DIR exists only when it is complete.

    An interrupted pull goes on where it stopped; a version that is there already is not transferred again. With
    --split or --where only the pictures wanted travel; the columns to choose by are those of metadata.parquet.
    """
    from storage.pulling import pull as pull_version
    from storage.versions import open_manifest

    opened = store_at(store)
    manifest = open_manifest(opened, name)
    shown = f"{manifest.dataset}@{manifest.version}"
    with _transfer(shown) as (expect, advance):
        pulled = pull_version(
            opened, manifest, directory, format=format, split=split, where=where, advance=advance, expect=expect
        )
    if pulled.up_to_date:
        typer.echo(f"{shown} is in {directory} already, every file checked; nothing transferred")
        return
    typer.echo(f"pulled {shown} to {directory}: {pulled.rows} rows, {pulled.bytes_moved / 1e6:.1f} MB")


@app.command()
def verify(
    name: NameArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte: digests, rows, pictures, groups, counts.")
    ] = False,
    store: StoreOption = "./store",
) -> None:
    """Check that a version is whole. Exit code 1 where something is wrong.

    Without --deep: the manifest, and that every file is there with its size; seconds for any version.
    """
    from storage.verifying import verify as verify_version
    from storage.versions import open_manifest

    opened = store_at(store)
    manifest = open_manifest(opened, name)
    problems = verify_version(opened, manifest, deep=deep)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    checked = "every byte" if deep else "manifest and sizes; --deep reads every byte"
    typer.echo(f"{manifest.dataset}@{manifest.version} is whole ({checked}): {len(manifest.files)} files")


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The older one.")],
    two: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The newer one.")],
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: rows added, removed and changed; recipe; scores side by side with intervals."""
    from storage.comparing import compare, lines
    from storage.versions import open_manifest

    opened = store_at(store)
    found = compare(opened, open_manifest(opened, one), open_manifest(opened, two))
    typer.echo(found.model_dump_json(indent=2) if as_json else "\n".join(lines(found)))


@app.command()
def lineage(
    name: NameArgument,
    row: Annotated[str, typer.Argument(metavar="ID", help="The row's id, e.g. syn-00000003; rejected ones too.")],
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Show what one row was made from: scan, mask, base model, adapters, prompt, seed, recipe."""
    from storage.lineage import lines, trace
    from storage.versions import open_manifest

    opened = store_at(store)
    traced = trace(opened, open_manifest(opened, name), row)
    typer.echo(traced.model_dump_json(indent=2) if as_json else "\n".join(lines(traced)))


@app.command()
def promote(
    name: NameArgument,
    channel: Annotated[str, typer.Argument(help='Such as "production"; made where it is new.')],
    store: StoreOption = "./store",
) -> None:
    """Move a channel to a version. NAME@CHANNEL then means it; earlier moves stay on record."""
    from storage import channels
    from storage.versions import open_manifest

    opened = store_at(store)
    manifest = open_manifest(opened, name)
    entry = channels.move(opened, manifest.dataset, channel, manifest.version)
    typer.echo(f"{manifest.dataset}@{channel} is {manifest.dataset}@{manifest.version} (move {entry.number})")
    _show(opened)


@app.command(name="channels")
def channels_(
    dataset: Annotated[str, typer.Argument(help="A dataset.")],
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """List every move of a dataset's channels, the latest last."""
    from flows.commands.tables import print_table
    from storage import channels

    opened = store_at(store)
    moves = [entry for name in channels.names(opened, dataset) for entry in channels.history(opened, dataset, name)]
    if as_json:
        typer.echo(json.dumps([entry.model_dump() for entry in moves], indent=2))
    elif moves:
        rows = [[entry.channel, str(entry.number), f"{dataset}@{entry.version}", entry.moved] for entry in moves]
        print_table(["channel", "move", "version", "moved"], rows)
    else:
        typer.echo(f"{dataset} has no channels; `sonoforge promote {dataset}@latest production` makes one")


@app.command()
def retract(
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why; shown to everybody who asks for the version.")],
    store: StoreOption = "./store",
) -> None:
    """Retract a version for good: pulls of it are refused with the reason. Its files stay."""
    from storage import retractions
    from storage.versions import open_manifest

    opened = store_at(store)
    tombstone = retractions.retract(opened, open_manifest(opened, name), reason)
    typer.echo(f"retracted {tombstone.dataset}@{tombstone.version} ({tombstone.retracted}): {tombstone.reason}")
    _show(opened)


@app.command()
def gc(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; else only say what would be.")] = False,
    older_than: Annotated[str, typer.Option(help="Leave younger files alone, e.g. 12h, 7d.")] = "1d",
    builds: Annotated[
        bool, typer.Option("--builds", help="Also steps of builds that no version was made from.")
    ] = False,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Find files that no version refers to, left by killed publishers; with --delete, remove them.

    Nothing that a manifest, a running publisher or a running build refers to is ever touched.
    """
    from storage.garbage import collect, lines

    found = collect(store_at(store), dataset=dataset, older_than=_age(older_than), builds=builds, delete=delete)
    typer.echo(found.model_dump_json(indent=2) if as_json else "\n".join(lines(found)))


def _show(store: "Store") -> None:
    """Bring the catalogue up to date where the store has one; what was done before stands, whatever becomes of that."""
    from storage import keys
    from storage.errors import StorageError

    try:
        if store.exists(f"{keys.CATALOGUE}/index.html"):
            from tasks.catalogue import rebuild

            rebuild(store)
    except (StorageError, OSError) as error:
        again = f"sonoforge catalogue {store.uri(keys.CATALOGUE)} --store {store.url}"
        typer.echo(f"the catalogue does not show this yet ({error}): run `{again}`", err=True)


def _age(text: str) -> timedelta:
    """A length of time.

    >>> _age("12h"), _age("7d")
    (datetime.timedelta(seconds=43200), datetime.timedelta(days=7))
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"--older-than {text!r} is no length of time: expected a number and s, m, h, d or w, e.g. 12h")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


@contextmanager
def _transfer(what: str) -> Generator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar with MB/s on a terminal, nothing where nobody is looking: what adds to its length, and what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=0)

        def expect(size: int) -> None:
            progress.update(task, total=(progress.tasks[0].total or 0) + size)

        yield expect, lambda size: progress.advance(task, size)
