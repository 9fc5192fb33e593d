"""Arguments that several commands take."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from storage.store import Store

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
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@VERSION]", help="e.g. demo, demo@latest, demo@3, demo@production (a channel), demo@sha256:1f3a9c"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def store_at(url: str) -> "Store":
    """The store of a `--store`; Prefect is asked only where a block is named."""
    if url.startswith("block:"):
        from tasks.connect import open_store

        return open_store(url)
    from storage.store import Store

    return Store(url)
