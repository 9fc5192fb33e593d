"""Sources whose licences contradict each other are refused: before any work, and again before anything is published."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.build_dataset import build_dataset, facts_of
from flows.recipe import Recipe, parse
from storage.keys import canonical_json
from storage.records import Ref
from storage.store import Store
from tasks.curate import Curation
from tasks.documents.licences import LicenceConflictError
from tasks.export import export
from tasks.synthesis.diffusion.base import EMBEDDED

pytestmark = pytest.mark.usefixtures("prefect_server")


def _recipe(licence: str, tmp_path: Path, base: str = "embedded") -> Recipe:
    content: dict[str, Any] = {
        "name": "mixed",
        "source": {"dataset": "folder", "root": str(tmp_path / "scans"), "licence": licence},
        "base": base,
        "plan": {"samples": 4, "shard": 4},
        "stages": [{"stage": "layout"}],
    }
    return parse(content)


def _base(tmp_path: Path, licence: str) -> str:
    """A copy of the embedded base under another licence."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "foreign-base"))
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return str(folder)


def test_a_build_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    recipe = _recipe("CC BY-SA 4.0", tmp_path, _base(tmp_path, "creativeml-openrail-m"))
    store = Store(str(tmp_path / "store"))
    with pytest.raises(LicenceConflictError) as caught:
        build_dataset(recipe=recipe, store=store.url)
    text = str(caught.value)
    assert "scans of folder (CC BY-SA 4.0) and base foreign-base (creativeml-openrail-m)" in text
    assert "restrictions of use" in text
    assert "What to do" in text
    assert "builds" not in store.folders()


def test_an_export_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    table = Ref(key="builds/curate/x/verdicts.parquet", sha256="0" * 64)
    counts: dict[str, Any] = {"planned": 1, "kept": 1, "rejected": {}, "failed": 0, "scores": []}
    curation = Curation(**counts, table=table, thresholds=[], problems=[])
    curated = Ref(key="builds/curate/x/curation.json", sha256="1" * 64)
    store.put(curated.key, canonical_json(curation))
    facts = facts_of(_recipe("CC BY-ND 4.0", tmp_path))
    with pytest.raises(LicenceConflictError, match=r"scans of folder \(CC BY-ND 4.0\)"):
        export.fn(store.url, facts, table, [table], curated, {})
    assert "mixed" not in store.folders()
