"""The command that makes and scores reader studies: reader-study."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from tasks.blind import Screening

app = typer.Typer()

_SCORING = "Scoring"


@app.command(name="reader-study")
def reader_study(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME[@VERSION] | FILE...", help="A version; with --score the files that readers saved."
        ),
    ],
    score: Annotated[bool, typer.Option("--score", help="Score answers.", rich_help_panel=_SCORING)] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="The *.key.json written beside the page; looked for beside the answers where left out.",
            rich_help_panel=_SCORING,
        ),
    ] = None,
    real: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET",
            help="Real pictures that the version did not learn from: a folder, a dataset, a Parquet file, or a recipe, "
            "whose held-out scans are taken. Repeatable. Default: the scans that the version itself held out.",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Pictures of each side; up to 50 where left out.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=0, max=200, help="Pictures that are shown twice: does a reader agree with themselves?")
    ] = 0,
    per_group: Annotated[int, typer.Option(min=1, max=100, help="Pictures of one patient, at most.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the choice of pictures; drawn at random where left out.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page; its key is written beside it.")] = Path(
        "reader-study.html"
    ),
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Ask people whether they can tell the synthetic pictures of a version from real ones, and score what they say.

    Writes one offline page with real and synthetic pictures in random order, blinded, and beside it the key for whoever
    scores. The page saves a file of answers; --score gives each reader's AUC with interval, and agreement.

    The page holds real scans: it is for the readers alone.

    Examples: `sonoforge reader-study demo@latest --images 40 --repeats 10`,
    `sonoforge reader-study --score ann.json bob.json`.
    """
    if score:
        _score([Path(target) for target in targets], key, as_json)
        return
    if key is not None:
        raise ValueError(f"--key {key} is for scoring: give --score and the files that the readers saved")
    if len(targets) != 1:
        raise ValueError(f"found {', '.join(targets)}; expected one version, or --score and the files of answers")
    from tasks import blind

    params = blind.BlindParams(images=images, repeats=repeats, per_group=per_group, seed=seed)
    with contextlib.redirect_stdout(sys.stderr):
        made = blind.blind(targets[0], store, [_set(one) for one in real or []], out, params)
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
        return
    from flows.commands.tables import listed

    sides = f"{made.real} real and {made.synthetic} synthetic pictures of {made.px} px"
    typer.echo(f"{made.page}: {sides}, of each {listed(made.labels)}; {made.again} are shown twice")
    typer.echo(f"real: {made.from_real}. The page is for the readers alone: it must not be published or passed on")
    typer.echo(f"{made.key}: the truth, for whoever scores; keep it from the readers")
    for note in made.notes:
        typer.echo(f"note: {note}")


def _score(files: list[Path], key: Path | None, as_json: bool) -> None:
    from tasks import score_readers

    found = score_readers.score(files, key)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from flows.commands.tables import print_table

    print_table(score_readers.COLUMNS, score_readers.rows(found))
    for sentence in score_readers.findings(found):
        typer.echo(sentence)


def _set(spec: str) -> "str | Screening":
    """A set of pictures by its name, or the scans of a recipe; recipes bring torch, so only they are read as such."""
    ours = Path(__file__).parents[1] / "recipes" / f"{spec}.yaml"
    if Path(spec).is_dir() or not (Path(spec).suffix in (".yaml", ".yml") or ours.is_file()):
        return spec
    from flows import recipe as recipes
    from tasks.blind import Screening

    loaded = recipes.load(spec)
    return Screening(loaded.name, loaded.source, loaded.screen, loaded.seed)
