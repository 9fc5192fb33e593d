"""The command line `sonoforge`; its commands are in `flows/commands/`."""

import os
import sys

import typer

from flows.commands import builds, catalogue, deploying, doctor, experiments, quality, reader_study, versions
from storage.errors import StorageError

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
PANELS = {
    "Build": (builds.app,),
    "Judge": (quality.app, experiments.app, reader_study.app),
    "Use versions": (versions.app, catalogue.app),
    "Operate": (deploying.app, doctor.app),
}
for panel, parts in PANELS.items():
    for part in parts:
        for command in part.registered_commands:
            command.rich_help_panel = panel
        app.add_typer(part)


def main() -> None:
    """Run the command line; an error a person can act on ends as one line, not as a traceback."""
    try:
        app()
    except (ValueError, OSError, StorageError) as error:
        if os.environ.get("SONOFORGE_TRACEBACK"):
            raise
        print(f"sonoforge: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("sonoforge: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
