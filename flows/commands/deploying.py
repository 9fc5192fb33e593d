"""The command that sets a Prefect server up: deploy."""

import json
from typing import Annotated

import typer

from flows.commands.options import JsonOption
from flows.commands.running import quiet

app = typer.Typer()


@app.command()
def deploy(
    store: Annotated[
        str | None,
        typer.Option(
            envvar="SONOFORGE_STORE",
            show_default="the one given before, else ./store",
            help="Folder or fsspec URL that deployments publish to, e.g. s3://bucket/prefix.",
        ),
    ] = None,
    credentials: Annotated[
        bool,
        typer.Option(
            "--credentials", help="Keep AWS_ACCESS_KEY_ID and so on in the block of the store; workers need none then."
        ),
    ] = False,
    zombie_after: Annotated[
        float | None,
        typer.Option(
            min=60,
            metavar="SECONDS",
            show_default="150",
            help="Mark a run Crashed that gave no sign of life for so long; they come every 30 s.",
        ),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Undo what people changed or deleted on the server since the last time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Set up the Prefect server at PREFECT_API_URL: pools, limits, blocks, deployments, schedules, automations.

    Run it again whenever sonoforge is new: what is as it should be stays, and so does what people changed or deleted
    on the server. Schedules are made paused; whoever switches one on finds it on. With SONOFORGE_NOTIFY_URL set, a
    webhook is told of failed runs.

    Example: `PREFECT_API_URL=http://127.0.0.1:4200/api sonoforge deploy --store s3://my-bucket/datasets`.
    """
    quiet()
    from flows import deploying

    lines = deploying.deploy(store, credentials=credentials, zombie_after_s=zombie_after, reset=reset)
    if as_json:
        typer.echo(json.dumps([line.model_dump() for line in lines], indent=2))
        return
    from flows.commands.tables import print_table

    print_table(["", "name", "", ""], [[line.kind, line.name, line.state, line.note] for line in lines])
    number = deploying.changed(lines)
    typer.echo(
        f"{number} of {len(lines)} created or updated" if number else "nothing changed: the server was set up so"
    )
