"""The smallest folders that can be published, for tests about everything but what is in them."""

from pathlib import Path

from storage.records import Manifest
from storage.store import Store
from storage.versions import About, publish

ABOUT = About(planned=1, kept=1, rejected={}, failed=0, scores=[], licences=["MIT"], recipe={"a": 1}, provenance={})
SAME = "# same in all\n"


def folder(path: Path, text: str) -> Path:
    """Two files: one holds the text, the other is the same whatever the text."""
    (path / "data").mkdir(parents=True)
    (path / "data" / "file.txt").write_text(text)
    (path / "README.md").write_text(SAME)
    return path


def version(store: Store, path: Path, text: str, dataset: str = "demo", **known: object) -> Manifest:
    """Publish such a folder."""
    return publish(store, dataset, folder(path / f"{dataset} {text}", text), ABOUT.model_copy(update=known))[0]
