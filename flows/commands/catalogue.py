"""The command catalogue: pages about everything in a store, for people who look before they pull."""

from typing import Annotated

import typer

from flows.commands.options import JsonOption, StoreOption, store_at

app = typer.Typer()


@app.command()
def catalogue(
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT_DIR_OR_URL", help="Where to: a folder or URL of its own, or the store's folder catalogue/."
        ),
    ],
    store: StoreOption = "./store",
    as_json: JsonOption = False,
) -> None:
    """Write a static site about the store: datasets, versions, scores over versions, samples, cards, code to copy.

    No server is needed: open index.html, or put the folder behind any web server. Every publication rewrites the one in
    the store, under catalogue/; anywhere else it gets copies of reports and samples, and needs nothing of the store.

    Examples: `sonoforge catalogue ./site`, `sonoforge catalogue s3://bucket/prefix/catalogue --store s3://bucket/prefix`.
    """
    from tasks.catalogue import write

    written = write(store_at(store), out)
    if as_json:
        typer.echo(written.model_dump_json(indent=2))
        return
    typer.echo(f"{written.uri}: {written.versions} versions of {written.datasets} datasets")
    if written.unreadable:
        typer.echo(f"{written.unreadable} of them cannot be read: the pages say which and why", err=True)
