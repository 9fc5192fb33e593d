"""Blocks on a Prefect server, which hold what is secret: where datasets are published, and whom to tell of failures."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flows.reconciling import Line, Memory, key_of, left_out

if TYPE_CHECKING:
    from prefect.blocks.core import Block

_AnyBlock = TypeVar("_AnyBlock", bound="Block")


def of_store(memory: Memory, name: str, store: str | None, *, credentials: bool, reset: bool) -> Line:
    """Where deployments publish: `store`, or where it is None the URL that is there, or ./store."""
    from storage.store import Store
    from tasks.connect import BLOCK, SonoforgeStore

    if store == f"{BLOCK}{name}":
        store = None
    if store is not None and store.startswith(BLOCK):
        raise ValueError(
            f"--store {store}: deployments publish to {BLOCK}{name}, which is a folder or a URL. To publish to another "
            "block, edit the deployment's parameter `store` on its page"
        )
    there = _loaded(SonoforgeStore, name)
    given: dict[str, Any] = _s3_credentials() if credentials else {}
    # Absolute, for workers elsewhere; refused with credentials in it.
    url = there.url if there is not None and store is None else Store(store or "./store").url
    asked = reset or store is not None
    line = _block(memory, SonoforgeStore, name, there, {**given, "url": url}, asked)
    return line if line.state == "left out" else line.model_copy(update={"note": url})


def _s3_credentials() -> dict[str, str]:
    """Fields of a `SonoforgeStore`, from the environment."""
    names = {
        "key": ("AWS_ACCESS_KEY_ID",),
        "secret": ("AWS_SECRET_ACCESS_KEY",),
        "token": ("AWS_SESSION_TOKEN",),
        "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    }
    found = {field: next(filter(None, map(os.environ.get, given)), None) for field, given in names.items()}
    if not (found["key"] and found["secret"]):
        raise ValueError(
            "--credentials takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY from the environment: set both"
        )
    return {field: value for field, value in found.items() if value}


def of_webhook(memory: Memory, name: str, variable: str, *, reset: bool) -> Line:
    """Who is told of failed runs: the URL in an environment variable; where that is not set, the one that is there."""
    from prefect.blocks.webhook import Webhook

    there = _loaded(Webhook, name)
    url = os.environ.get(variable)
    if there is None and not url:
        state = "left out" if key_of("block", name) in memory else "off"
        return Line(kind="block", name=name, state=state, note=f"set {variable} to be told of failed runs")
    if url and not url.startswith(("https://", "http://")):
        raise ValueError(f"{variable} is no URL: expected https://…; it is not shown here, as it may be a secret")
    given: dict[str, Any] = {"url": url} if url else {}
    if there is None:
        given["headers"] = {"Content-Type": "application/json"}
    return _block(memory, Webhook, name, there, given, asked=bool(url) or reset)


def _block(
    memory: Memory, made_of: "type[Block]", name: str, there: "Block | None", given: Mapping[str, Any], asked: bool
) -> Line:
    """Save a block unless the one that is there has all that is given. Its content, secrets, is not remembered."""
    key = key_of("block", name)
    if there is None and key in memory and not asked:
        return left_out("block", name)
    fields = {} if there is None else {field: getattr(there, field) for field in made_of.model_fields}
    block = made_of(**{**fields, **given})
    memory[key] = {}
    if there is not None and all(getattr(block, field) == fields[field] for field in fields):
        return Line(kind="block", name=name, state="kept")
    block.save(name, overwrite=True)
    return Line(kind="block", name=name, state="created" if there is None else "updated")


def _loaded(made_of: "type[_AnyBlock]", name: str) -> "_AnyBlock | None":
    made_of.register_type_and_schema()
    try:
        return cast(Any, made_of.load(name))  # typed as if it might be a coroutine
    except ValueError:
        return None
