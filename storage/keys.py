"""Where everything lives in a store: pure functions from what a thing is to its key.

- `builds/<step>/<key>/…`: what a step made; its `ref.json`, written last, says that it is complete.
- `<dataset>/objects/<sha256>.…`: the files of all versions, each stored once.
- `<dataset>/versions/<n>/manifest.json`: the version; it exists exactly when this does.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from storage.errors import UnsafePathError

BUILDS = "builds"

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_HEX = re.compile(r"[0-9a-f]{64}")
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


def manifest_key(dataset: str, version: int) -> str:
    """Key of the manifest that is the version.

    >>> manifest_key("demo", 3)
    'demo/versions/3/manifest.json'
    """
    if version < 1:
        raise ValueError(f"{dataset}@{version}: versions are numbered from 1")
    return f"{check_name(dataset)}/versions/{version}/manifest.json"


def check_name(dataset: str) -> str:
    """The name itself where a dataset may be called that; else ValueError."""
    if not _NAME.fullmatch(dataset) or dataset == BUILDS:
        raise ValueError(
            f"{dataset!r} cannot name a dataset: expected up to 100 of a-z 0-9 _ . -, starting with a letter "
            f"or digit, and not {BUILDS!r}"
        )
    return dataset


def parse_name(name: str) -> tuple[str, str]:
    """Split "demo@3" into dataset and selector; the selector is "latest" where none is given.

    >>> parse_name("demo@3"), parse_name("demo")
    (('demo', '3'), ('demo', 'latest'))
    """
    dataset, _, selector = name.partition("@")
    return check_name(dataset), selector or "latest"


def safe_path(path: str) -> str:
    """The path itself where it stays below any folder it is joined to, on every system.

    Raises:
        UnsafePathError: it may not.
    """
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or part != part.strip() for part in parts)
    if bad or not path.isprintable() or re.search(r'[\\:*?"<>|]', path):
        raise UnsafePathError(
            f"the path {path!r} could leave its folder: expected plain names joined by /, without . or .."
        )
    return path


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON: use a pydantic model, or plain values")
