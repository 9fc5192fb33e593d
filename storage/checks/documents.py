"""croissant.json and provenance.json: the digests that they name are those of the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage import json_stream
from storage.checks.problems import Problems
from storage.records import Manifest

CROISSANT, PROVENANCE = "croissant.json", "provenance.json"
DOCUMENTS = (CROISSANT, PROVENANCE)

_MOST = 64 * 2**20


def check_document(path: str, local: Path, manifest: Manifest, problems: Problems) -> None:
    """Check one of `DOCUMENTS` against the manifest."""
    files = {file.path: file.sha256 for file in manifest.files}
    try:
        named = list((_croissant if path == CROISSANT else _provenance)(json_stream.load(local, _MOST)))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        problems.add(path, f"cannot be read: {type(error).__name__}: {error}")
        return
    if len(dict(named)) < len(named):
        problems.add(path, "names a file twice")
    for name, sha256 in named:
        if name not in files:
            problems.add(path, f"names {name!r}, which is no file of this version")
        elif files[name] != sha256:
            problems.add(path, f"{name} has sha256 {str(sha256)[:12]}…, expected {files[name][:12]}…")
    if path == PROVENANCE:
        for name in sorted(set(files) - dict(named).keys() - {PROVENANCE}):
            problems.add(path, f"says nothing of {name}")


def _croissant(content: Any) -> Iterator[tuple[str, str]]:
    for item in content["distribution"]:
        if item["@type"] == "cr:FileObject":
            yield str(item["contentUrl"]), item["sha256"]


def _provenance(content: Any) -> Iterator[tuple[str, str]]:
    for item in content["subject"]:
        yield str(item["name"]), item["digest"]["sha256"]
