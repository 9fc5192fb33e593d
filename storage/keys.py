"""Where everything lives in a store: pure functions from what a thing is to its key.

- `builds/<step>/<key>/…`: what a step made; its `ref.json`, written last, says that it is complete.
- `<dataset>/objects/<sha256>.…`: the files of all versions, each stored once.
- `<dataset>/versions/<n>/manifest.json`: the version; it exists exactly when this does.
- `<dataset>/versions/<n>/retracted.json`: its tombstone.
- `<dataset>/channels/<channel>/<n>.json`: one move of a channel; the highest number counts.
- `leases/<id>.json`: what a running publisher or build relies on.
- `collecting/<id>.json`: a garbage collection is running.
- `catalogue/…`: pages about all versions, made anew from them at any time.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel

from storage.errors import UnsafePathError

BUILDS = "builds"
LEASES = "leases"
COLLECTING = "collecting"
CATALOGUE = "catalogue"
RESERVED = (BUILDS, LEASES, COLLECTING, CATALOGUE)
"""Folders of a store that are no datasets."""

SCRATCH = ".tmp"
"""Folder of what is on its way into a store; neither listed nor a dataset."""

LATEST = "latest"

_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,49}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_ROW = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,149}")
_HEX = re.compile(r"[0-9a-f]{64}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]+)?")


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, models as their fields; NaN is refused.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    b'{"a":[1.5,null],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
    return text.encode()


def step_key(step: str, version: int, params: Mapping[str, object] | BaseModel, inputs: Sequence[str]) -> str:
    """Key of a step's output: a digest of everything that decides its content.

    Args:
        step: name of the step.
        version: of its algorithm; raise it when the same parameters make something else.
        params: its parameters.
        inputs: digests of what it reads, in the order it reads them.

    Returns:
        32 hexadecimal digits.
    """
    described = {"step": step, "version": version, "params": params, "inputs": list(inputs)}
    return hashlib.sha256(canonical_json(described)).hexdigest()[:32]


def step_file(step: str, key: str, name: str) -> str:
    """Key of one file that a step makes.

    >>> step_file("score", "ab12", "scores.parquet")
    'builds/score/ab12/scores.parquet'
    """
    return f"{BUILDS}/{step}/{key}/{name}"


def step_ref(step: str, key: str) -> str:
    """Key of the reference whose existence says that a step is complete."""
    return step_file(step, key, "ref.json")


def step_folder(file: str) -> str:
    """Folder of the step that a file belongs to, given its key.

    >>> step_folder("builds/train-adapter/ab12/checkpoints/100.safetensors")
    'builds/train-adapter/ab12'
    """
    return "/".join(file.split("/")[:3])


def object_key(dataset: str, sha256: str, suffix: str = "") -> str:
    """Key of a file's content, whatever the versions call it.

    Args:
        dataset: its name.
        sha256: of the bytes, hexadecimal.
        suffix: ".parquet" and the like, for people who browse the store.
    """
    if not _HEX.fullmatch(sha256) or not _SUFFIX.fullmatch(suffix):
        raise ValueError(f"{sha256!r} with suffix {suffix!r} is no sha256 and file ending")
    return f"{check_name(dataset)}/objects/{sha256}{suffix}"


def is_object(key: str) -> bool:
    """Whether a key is one that `object_key` makes."""
    name = key.rsplit("/", 1)[-1]
    return bool(_HEX.fullmatch(name[:64]) and _SUFFIX.fullmatch(name[64:])) and key.endswith(f"/objects/{name}")


def manifest_key(dataset: str, version: int) -> str:
    """Key of the manifest that is the version.

    >>> manifest_key("demo", 3)
    'demo/versions/3/manifest.json'
    """
    if version < 1:
        raise ValueError(f"{dataset}@{version}: versions are numbered from 1")
    return f"{check_name(dataset)}/versions/{version}/manifest.json"


def tombstone_key(dataset: str, version: int) -> str:
    """Key of what says that a version was retracted."""
    return manifest_key(dataset, version).replace("manifest.json", "retracted.json")


def channel_folder(dataset: str, channel: str = "") -> str:
    """Folder of a channel's entries; of all channels for ""."""
    folder = f"{check_name(dataset)}/channels"
    return f"{folder}/{check_channel(channel)}" if channel else folder


def channel_key(dataset: str, channel: str, number: int) -> str:
    """Key of one entry of a channel.

    >>> channel_key("demo", "production", 12)
    'demo/channels/production/00000012.json'
    """
    return f"{channel_folder(dataset, channel)}/{number:08d}.json"


def lease_key(id: str) -> str:
    """Key of a lease."""
    return f"{LEASES}/{id}.json"


def collecting_key(id: str) -> str:
    """Key of what says that a garbage collection is running."""
    return f"{COLLECTING}/{id}.json"


def check_channel(channel: str) -> str:
    """The name itself where a channel may be called that; else ValueError."""
    if not may_be_channel(channel):
        raise ValueError(
            f"{channel!r} cannot name a channel: expected up to 50 of a-z 0-9 _ -, starting with a letter, and not "
            f"{LATEST!r}, which always means the highest version that was not retracted"
        )
    return channel


def may_be_channel(selector: str) -> bool:
    """Whether a channel may be called that."""
    return bool(_CHANNEL.fullmatch(selector)) and selector != LATEST


def may_be_dataset(name: str) -> bool:
    """Whether a dataset may be called that."""
    return bool(_NAME.fullmatch(name)) and name not in RESERVED


def check_name(dataset: str) -> str:
    """The name itself where a dataset may be called that; else ValueError."""
    if not may_be_dataset(dataset):
        raise ValueError(
            f"{dataset!r} cannot name a dataset: expected up to 100 of a-z 0-9 _ . -, starting with a letter "
            f"or digit, and not {', '.join(RESERVED)}"
        )
    return dataset


def parse_name(name: str) -> tuple[str, str]:
    """Split "demo@3" into dataset and selector; the selector is "latest" where none is given.

    >>> parse_name("demo@3"), parse_name("demo")
    (('demo', '3'), ('demo', 'latest'))
    """
    dataset, _, selector = name.partition("@")
    return check_name(dataset), selector or LATEST


def is_row_id(text: str) -> bool:
    """Whether a row may be called that: it names files in pulls, so it has to be safe as one.

    >>> is_row_id("syn-00000012"), is_row_id("../12"), is_row_id("nul")
    (True, False, False)
    """
    return _ROW.fullmatch(text) is not None and not text.endswith(".") and not _DEVICE.fullmatch(text)


def safe_path(path: str) -> str:
    """The path itself where it stays below any folder it is joined to, on every system.

    Raises:
        UnsafePathError: it may not.
    """
    parts = path.split("/")
    bad = any(part != part.strip() or part.endswith(".") or len(part.encode(errors="replace")) > 200 for part in parts)
    bad = bad or any(not part or _DEVICE.fullmatch(part) for part in parts) or len(path) > 1000
    if bad or not path.isprintable() or re.search(r'[\\:*?"<>|]', path):
        shown = repr(path) if len(path) <= 80 else f"{path[:80]!r}… ({len(path)} characters)"
        raise UnsafePathError(
            f"the path {shown} could leave its folder, or is no file on some system: expected plain names of at most "
            "200 bytes joined by /, without . or .., and none that Windows keeps for a device"
        )
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Whether files of these names fit into one folder together, on every system.

    Raises:
        UnsafePathError: one of them is unsafe, stands there twice (capital letters aside), or is a folder of another.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        folded = unicodedata.normalize("NFC", safe_path(path)).casefold()
        if folded in seen:
            raise UnsafePathError(f"the same path twice: {path!r}; some systems do not tell a from A")
        seen.add(folded)
        parents = folded.split("/")[:-1]
        folders |= {"/".join(parents[: depth + 1]) for depth in range(len(parents))}
    for path in sorted(seen & folders):
        raise UnsafePathError(f"{path!r} is a file and a folder of other files")


def content_digest(files: Iterable[tuple[str, str]]) -> str:
    """What identifies the content of a version: a digest of its paths and their sha256s, in their order."""
    return hashlib.sha256(canonical_json([list(file) for file in files])).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON: use a pydantic model, or plain values")
