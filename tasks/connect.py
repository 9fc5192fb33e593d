"""Open a store by its URL, or by the name of the Prefect block that holds its URL and credentials.

A URL takes credentials from the environment; "block:NAME" takes them from Prefect, so that they are in no
parameter, log or database row of a run.
"""

from typing import Any, cast

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from storage.store import Store

BLOCK = "block:"


class SonoforgeStore(Block):
    """Where datasets are published, with the credentials to get there.

    Example:
        `SonoforgeStore(url="s3://bucket/datasets", key="…", secret="…").save("clinic")`, then `--store block:clinic`.
    """

    _block_type_name = "sonoforge store"
    _block_type_slug = "sonoforge-store"

    url: str = Field(description="Folder or fsspec URL, e.g. s3://bucket/prefix; without credentials in it")
    key: SecretStr | None = Field(default=None, description="S3 access key id; the environment's where left out")
    secret: SecretStr | None = Field(default=None, description="S3 secret access key")
    token: SecretStr | None = Field(default=None, description="S3 session token")
    endpoint_url: str | None = Field(default=None, description="S3 server other than AWS")
    region: str | None = Field(default=None, description="S3 region")

    def open(self, **more: Any) -> Store:
        """The store, with these credentials, and `more` that `Store` takes."""
        options: dict[str, Any] = {
            name: value.get_secret_value()
            for name, value in (("key", self.key), ("secret", self.secret), ("token", self.token))
            if value is not None
        }
        if self.endpoint_url is not None:
            options["endpoint_url"] = self.endpoint_url
        if self.region is not None:
            options["client_kwargs"] = {"region_name": self.region}
        return Store(self.url, **{**options, **more})


def open_store(where: str, **more: Any) -> Store:
    """The store at a URL, or that of the Prefect block named after "block:"; `more` is what `Store` takes besides.

    Raises:
        ValueError: there is no such block.
    """
    if not where.startswith(BLOCK):
        return Store(where, **more)
    name = where.removeprefix(BLOCK)
    try:
        block = cast(SonoforgeStore, SonoforgeStore.load(name))  # typed as if it might be a coroutine
    except ValueError as error:
        raise ValueError(
            f"Prefect has no sonoforge-store block called {name!r}: save one with tasks.connect.SonoforgeStore(…)"
            f".save({name!r}), or give --store a URL"
        ) from error
    return block.open(**more)
