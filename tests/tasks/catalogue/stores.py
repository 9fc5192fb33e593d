"""Stores to show: small versions with every file that the catalogue speaks of."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from storage.records import Manifest
from storage.store import Store
from storage.versions import About, publish
from tests.storage.published import fill
from tests.tasks.report.pages import score

CARD = """---
license: mit
---

# demo

A **demo**, see [the report](report.html) and [elsewhere](https://example.org/x).

## Quality of the set

| score | value |
| --- | ---: |
| kid | 0.1 |
"""


def sheet(shade: int = 90) -> bytes:
    """A picture as a version has one of its samples."""
    buffer = io.BytesIO()
    Image.new("RGB", (810, 620), (shade, shade, shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def version(store: Store, path: Path, number: int, dataset: str = "demo", card: str = CARD, **about: Any) -> Manifest:
    """Publish a version whose rows depend on `number` alone; `about` changes what is known of it."""
    folder = path / f"{dataset} {number}"
    folder.mkdir()
    known = fill(folder, count=12, seed=number, px=16)
    (folder / "README.md").write_text(card)
    (folder / "report.html").write_text(f"<!doctype html><title>report {number}</title><p>report {number}")
    (folder / "samples.png").write_bytes(sheet(60 + number))
    scores = [score("kid", value=0.5 - 0.05 * number, low=0.1, high=0.7), score("recall", value=0.4 + 0.05 * number)]
    recipe: dict[str, object] = {"name": dataset, "description": f"Version {number} of {dataset}."}
    known = known.model_copy(update={"scores": scores, "recipe": recipe})
    return publish(store, dataset, folder, About.model_validate(known.model_copy(update=about).model_dump()))[0]


def damage(store: Store, manifest: Manifest) -> None:
    """Change a manifest behind its seal's back."""
    key = f"{manifest.dataset}/versions/{manifest.version}/manifest.json"
    path = Path(store.uri(key))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"planned"', b'"plannend"', 1))


LONG = "w" * 100
"""The longest name."""


def populated(path: Path) -> Store:
    """Five versions of demo, one retracted, one damaged, a channel; one of other; one of which everything is long."""
    from storage import channels, retractions

    store = Store(path / "store")
    made = [version(store, path, number) for number in range(1, 6)]
    for channel, number in (("production", 4), ("staging", 2)):
        channels.move(store, "demo", channel, number)
    retractions.retract(store, made[1], "two patients in both splits")
    damage(store, made[2])
    version(store, path, 1, "other", gate="warn", warnings=["kid would be within its limit with 90 samples"])
    scores = [score("s" * 80, extractor="e" * 120, note="n" * 200)]
    recipe = {"description": "d" * 500}
    version(store, path, 1, LONG, f"# x\n\n{'c' * 300}\n", scores=scores, licences=["l" * 90], recipe=recipe)
    return store
