"""The ablation on tiny fakes: the variants a recipe has, their numbers, and what they share."""

from pathlib import Path
from typing import Any

import pytest

from flows.ablate import AblationResult, ablate, changed, variants
from flows.recipe import parse
from tests import fakes
from tests.fakes.base import make_base

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = fakes.busi(tmp_path_factory.mktemp("busi"), n=10, shape=(64, 72))
    base = make_base(tmp_path_factory.mktemp("base"), channels=9)
    return {
        "name": "tiny",
        "source": {"dataset": "busi", "root": str(root)},
        "screen": {"px": 64},
        "base": str(base),
        "lora": {"steps": 2, "warmup": 1, "batch": 2, "rank": 2},
        "judges": {"classifier": {"steps": 2}, "segmenter": {"steps": 2}, "detector": {"steps": 2}, "critic": None},
        "plan": {"samples": 4, "shard": 4},
        "stages": [{"stage": "lesion", "steps": 1}],
    }


def test_variants_take_away_what_the_recipe_has_and_are_recipes(content: dict[str, Any]) -> None:
    staged = content | {
        "stages": [{"stage": "layout"}, {"stage": "lesion", "candidates": 2}, {"stage": "harmonize"}],
        "judges": {"critic": {"generated": 10}},
    }
    recipe = parse(staged)
    found = {variant.name: changed(recipe, variant.changes) for variant in variants(recipe)}
    assert found["full"] == recipe
    assert [stage.stage for stage in found["without harmonize"].stages] == ["layout", "lesion"]
    assert found["without critic"].judges.critic is None
    assert found["without LoRA"].lora.learning_rate < 1e-9
    assert {"k = 1", "k = 4", "k = 8"} <= set(found)
    assert "k = 2" not in found
    assert len({variant.digest() for variant in found.values()}) == len(found)
    assert [variant.name for variant in variants(parse(content))] == ["full", "without LoRA"]


def test_every_variant_is_a_row_and_common_steps_are_made_once(content: dict[str, Any], tmp_path: Path) -> None:
    staged = content | {"stages": [{"stage": "layout"}, {"stage": "lesion", "steps": 1}]}
    recipe, store = parse(staged), tmp_path / "store"
    result: AblationResult = ablate(recipe=recipe, store=str(store))
    assert [row.variant for row in result.ablation.rows] == [variant.name for variant in variants(recipe)]
    rows = {row.variant: row for row in result.ablation.rows}
    # Too few masks to learn shapes from: every sample fails, and the row says so instead of ending the ablation.
    learned = rows.pop("shapes: model")
    assert (learned.made, learned.acceptance.value, learned.kid.value) == (0, None, None)
    for row in rows.values():
        assert row.made == 4
        assert row.seconds is not None
        assert row.acceptance.value is not None
        assert row.detector_auc.low is not None
        assert row.kid.value is not None
    assert len(list(store.glob("builds/ingest/*/ref.json"))) == 1
    assert len(list(store.glob("builds/train-adapter/*/ref.json"))) == 4
    page = (Path(result.uri).parent / "ablation.md").read_text()
    assert "without LoRA" in page
    assert ablate(recipe=recipe, store=str(store)) == result
