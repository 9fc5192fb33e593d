"""Commands that judge sets of pictures, whoever made them: score, copies, check-leakage."""

import contextlib
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from tasks.leakage import Leakage

app = typer.Typer()

SHOWN = 20
"""Copies that the terminal lists; --csv and --json have all."""

SETS = (
    "A set is a folder of pictures (`NAME_mask.png` beside `NAME.png` is its mask), a public dataset in its own "
    "layout, a pulled version, a Parquet file, or NAME[@VERSION] in the store; each may end in :SPLIT."
)


@app.command(epilog=SETS)
def score(
    real: Annotated[str, typer.Argument(metavar="REAL", help="A set of real pictures.")],
    synthetic: Annotated[str, typer.Argument(metavar="SYNTHETIC", help="A set of synthetic ones.")],
    extractor: Annotated[
        Literal["sonoforge", "inception"], typer.Option(help="Whose features FID, KID and their like compare.")
    ] = "sonoforge",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The extractor's weights, safetensors; inception needs them (FID's layout)."),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Of the weights; those from a URL need it.")] = None,
    px: Annotated[int, typer.Option(min=32, max=1024, help="Side of the square that pictures are fitted into.")] = 128,
    most: Annotated[int, typer.Option(min=20, help="Pictures a side that are compared, in whole groups.")] = 4000,
    trained: Annotated[
        bool, typer.Option("--trained/--untrained", help="Also train the detector and the classifier (a minute or so).")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Score one set against another, without a build: FID, KID, precision, recall and the rest, each with N,
    extractor, 95 % interval and what the same score is between two halves of the real set.

    Examples: `sonoforge score /data/BUSI demo@latest`, `sonoforge score real/ fake/ --json`.
    """
    from tasks.compare import CompareParams, compare
    from tasks.quality.extractors import ExtractorParams
    from tasks.track import display

    chosen: dict[str, object] = {} if trained else {"detector": None, "classifier": None}
    params = CompareParams.model_validate(
        chosen
        | {"px": px, "most": most, "seed": seed}
        | {"extractor": ExtractorParams(kind=extractor, weights=weights, sha256=sha256)}
    )
    with contextlib.redirect_stdout(sys.stderr), display():
        comparison = compare(real, synthetic, store, params)
    if as_json:
        typer.echo(comparison.model_dump_json(indent=2))
        return
    from flows.commands.tables import listed, print_scores, terminal

    console = terminal()
    for name, side in (("real", comparison.real), ("synthetic", comparison.synthetic)):
        groups = "groups unknown" if side.groups is None else f"{side.groups} groups"
        about = f"{side.compared} of {side.read} compared, {groups}, {side.masks} with a mask; {listed(side.labels)}"
        console.print(f"{name}: {side.described}: {about}", markup=False)
        for bad in side.unreadable:
            console.print(f"  not readable: {bad.file}: {bad.reason}", markup=False)
    print_scores(console, comparison.scores)
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False)


@app.command(epilog=SETS)
def copies(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="The pictures that the generator learned from.")],
    synthetic: Annotated[str, typer.Argument(metavar="SYNTHETIC", help="What it made.")],
    held_out: Annotated[
        str | None, typer.Option(metavar="SET", help="Real pictures of other people: what they reach is no copy.")
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write one row per synthetic picture: file, nearest, similarity, …"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of which pictures the limit is taken from.")] = 0,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Find synthetic pictures that are copies of training pictures: whole, mirrored, cropped, brightened,
    compressed, or in part; and, where both have masks, copied lesions. One row per synthetic picture.

    A likeness to the background that a row itself names is declared, and no copy.

    Example: `sonoforge copies /data/BUSI demo@latest --csv copies.csv`.
    """
    from tasks import copy_search
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        found = copy_search.find(train, synthetic, held_out, store, copy_search.CopyParams(seed=seed))
    if csv_file is not None:
        copy_search.write_csv(found, csv_file)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from flows.commands.tables import interval, number, print_table, terminal

    console = terminal()
    for line in (f"train: {found.train}", f"synthetic: {found.synthetic}"):
        console.print(line, markup=False)
    for file, reason in found.unreadable.items():
        console.print(f"not readable: {file}: {reason}", markup=False)
    print_table(
        ("what", "found", "of", "share", "95 % interval"),
        [
            (what, str(rate.found), str(rate.of), number(rate.share), interval(rate.low, rate.high))
            for what, rate in (
                ("synthetic pictures that are copies", found.copies),
                ("training pictures that were copied", found.copied),
                (f"{'held-out' if held_out else 'training'} pictures above the limit", found.alarms),
            )
        ],
    )
    worst = [row for row in sorted(found.rows, key=lambda row: -row.similarity) if row.is_copy][:SHOWN]
    for row in worst:
        console.print(f"{row.file} copies {row.nearest} ({row.similarity:.2f})", markup=False)
    declared = [f"{found.declared} resemble the background that they declare"] if found.declared else []
    for note in [*declared, *found.notes]:
        console.print(f"note: {note}", markup=False)


@app.command(name="check-leakage", epilog=SETS + " Or a CSV or text file that lists files.")
def check_leakage(
    sets: Annotated[
        list[str], typer.Argument(metavar="SET...", help="One set with splits; or several, each of them one split.")
    ],
    root: Annotated[Path | None, typer.Option(help="Folder that the files of a CSV or text file lie below.")] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="The group is what its bracket finds in a file's name, e.g. '(\\d+)_'."),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one row per entry of every leak.")
    ] = None,
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Find what lies in more than one split: patients, near-duplicates, frames of one sweep, backgrounds and other
    scans that rows descend from. Exit code 1 where anything does.

    Examples: `sonoforge check-leakage demo@latest`, `sonoforge check-leakage train/ test/`,
    `sonoforge check-leakage splits.csv --root /data/images --group-pattern '(\\d+)_'`.
    """
    from tasks import leakage
    from tasks.track import display

    with contextlib.redirect_stdout(sys.stderr), display():
        found = leakage.check(sets, store, root, group_pattern)
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["kind", "name", "split", "file"])
            for span in found.spans:
                writer.writerows(
                    [span.kind, span.name, split, name] for split, names in span.members.items() for name in names
                )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print_leakage(found)
    if found.spans:
        raise typer.Exit(1)


def _print_leakage(found: "Leakage") -> None:
    from flows.commands.tables import listed, terminal
    from tasks.leakage import lines

    console = terminal()
    for line in found.sets:
        console.print(line, markup=False)
    console.print(f"splits: {listed(found.splits)}; {found.unassigned} of none; {found.looked_at} pictures looked at")
    for file, reason in found.unreadable.items():
        console.print(f"not readable: {file}: {reason}", markup=False)
    for line in lines(found):
        console.print(line, markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    if not found.spans:
        console.print("nothing spans splits")
