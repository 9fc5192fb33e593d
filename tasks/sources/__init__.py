"""Public datasets, your own folder, and the phantom: one file per source, one line each in `SOURCES`."""

import difflib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Protocol, assert_never

from pydantic import Field, TypeAdapter

from storage.records import Scan
from tasks.sources import busbra, busi, busuclm, files, folder, hc18, phantom


class Source(Protocol):
    """What every source module declares besides its own `Params` and `read(params)`."""

    @property
    def LICENCE(self) -> str: ...  # noqa: N802 (a module's constant)
    @property
    def CITATION(self) -> str: ...  # noqa: N802
    @property
    def ORGAN(self) -> str: ...  # noqa: N802
    @property
    def LABELS(self) -> tuple[str, ...]: ...  # noqa: N802


SOURCES: dict[str, Source] = {
    "busi": busi,
    "busuclm": busuclm,
    "busbra": busbra,
    "hc18": hc18,
    "folder": folder,
    "phantom": phantom,
}

SourceParams = Annotated[
    busi.Params | busuclm.Params | busbra.Params | hc18.Params | folder.Params | phantom.Params,
    Field(discriminator="dataset"),
]


def at(dataset: str, root: Path) -> SourceParams:
    """The parameters of a source that lies in a folder.

    Raises:
        ValueError: no such source, or one that lies in no folder; with the nearest that does.
    """
    readable = [name for name in SOURCES if name != "phantom"]
    if dataset not in readable:
        near = difflib.get_close_matches(dataset, readable, n=2) or readable
        raise ValueError(f"no source {dataset!r} that lies in a folder; did you mean {' or '.join(near)}?")
    return TypeAdapter[SourceParams](SourceParams).validate_python({"dataset": dataset, "root": root})


def read(params: SourceParams) -> Iterator[Scan]:
    """Every file of the source as one scan, sorted by file; unreadable ones carry their reason.

    Raises:
        ValueError: the root is missing, empty or laid out otherwise; the message shows what was expected.
    """
    match params:
        case busi.Params():
            return busi.read(params)
        case busuclm.Params():
            return busuclm.read(params)
        case busbra.Params():
            return busbra.read(params)
        case hc18.Params():
            return hc18.read(params)
        case folder.Params():
            return folder.read(params)
        case phantom.Params():
            return phantom.read(params)
        case _:
            assert_never(params)


def digest(params: SourceParams) -> str:
    """sha256 of what `read` would deliver: the parameters, and the names and bytes of all files below the root.

    The root itself is left out: the same files elsewhere are the same source. A phantom is its parameters.

    Raises:
        ValueError: the root is missing or empty.
    """
    content = params.model_dump_json(exclude={"root"})
    if not isinstance(params, phantom.Params):
        content += files.digest_folder(files.require_root(params.root, "a folder of scans in the layout of its source"))
    return hashlib.sha256(content.encode()).hexdigest()
