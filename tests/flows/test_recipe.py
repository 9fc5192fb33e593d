"""Recipes: what is read, what is refused, and with which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.recipe import RECIPES, Recipe, RecipeError, load, parse


def content(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "tiny",
        "source": {"dataset": "phantom", "count": 12},
        "plan": {"samples": 4},
        "stages": [{"stage": "layout"}, {"stage": "lesion"}, {"stage": "harmonize"}],
    }
    return base | changes


def refusal(**changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(content(**changes))
    return str(caught.value)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_we_ship_is_valid(file: Path) -> None:
    assert load(file).name == file.stem


def test_a_recipe_is_found_by_its_name() -> None:
    assert load("demo") == load(RECIPES / "demo.yaml")


def test_set_changes_a_field_a_list_item_and_a_stage_by_name() -> None:
    changed = load("demo", ["plan.samples=8", "stages.lesion.steps=5", "curate.0.min=0.25"])
    assert changed.plan.samples == 8
    assert [stage.steps for stage in changed.stages if stage.stage == "lesion"] == [5]
    assert changed.curate[0].min == 0.25


def test_the_digest_ignores_where_a_build_runs_and_where_its_scans_lie(tmp_path: Path) -> None:
    source = {"dataset": "busi", "root": str(tmp_path)}
    moved = {"dataset": "busi", "root": str(tmp_path / "elsewhere")}
    one = parse(content(source=source))
    assert one.digest() == parse(content(source=moved, runner={"workers": 3})).digest()
    assert one.digest() != parse(content(source=source, seed=1)).digest()


def test_where_weights_lie_is_nobody_elses_business(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    private = content(extractor={"weights": str(tmp_path / "private.safetensors")}, base=str(tmp_path / "base"))
    private |= {
        "controlnet": {"start": str(tmp_path / "base")},
        "stages": [{"stage": "segmentation"}, {"stage": "picture"}],
    }
    published = parse(private).published()
    assert str(tmp_path) not in str(published)
    assert published["base"] == "base"


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    assert "plan.sample: unknown field; did you mean samples" in refusal(plan={"sample": 4})
    assert "did you mean curate" in refusal(curat=[])


def test_an_unknown_field_of_a_stage_and_of_a_source_is_refused_with_the_nearest() -> None:
    assert "did you mean steps" in refusal(stages=[{"stage": "lesion", "step": 4}])
    assert "did you mean count" in refusal(source={"dataset": "phantom", "cuont": 4})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": {"dataset": "bussi", "root": "/x"}}, ["bussi", "busi"]),
        ({"stages": [{"stage": "lesoin"}]}, ["lesoin", "lesion"]),
        ({"curate": [{"score": "segmenter_dise", "min": 0.5}]}, ["segmenter_dise", "segmenter_dice"]),
        ({"image_scores": ["segmenter_dise"]}, ["segmenter_dise", "segmenter_dice"]),
        ({"set_scores": ["fidd"]}, ["fidd", "fid"]),
        ({"formats": ["parquet", "cocoo"]}, ["cocoo", "coco"]),
        ({"quotas": {"best": "critic", "each": [{"keep": 3}]}}, ["quotas", "critic"]),
        (
            {"quotas": {"best": "segmenter_dice", "each": [{"where": {"colour": "red"}, "keep": 3}]}},
            ["colour", "margin"],
        ),
        ({"gate": {"limits": [{"score": "kidd", "max": 1}]}}, ["kidd", "kid"]),
        ({"set_scores": ["fid"], "gate": {"limits": [{"score": "kid", "max": 1}]}}, ["kid", "set_scores"]),
        ({"extractor": {"kind": "inception"}}, ["inception", "weights"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(**changes)
    assert all(word in message for word in words), message


def test_a_value_out_of_range_names_field_limit_and_value() -> None:
    message = refusal(plan={"samples": 0})
    assert "plan.samples" in message
    assert "greater than or equal to 1" in message
    assert "'0'" in message


def test_a_missing_field_is_named() -> None:
    incomplete = content()
    del incomplete["source"]
    with pytest.raises(RecipeError, match="source: missing"):
        parse(incomplete)


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "holds list"), ("a: [", "is not YAML"), ("", "holds NoneType")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load(file)


def test_a_recipe_that_does_not_exist_lists_ours() -> None:
    with pytest.raises(RecipeError, match="demo"):
        load("demoo")


@pytest.mark.parametrize("override", ["plan.samples", "=3", "name.x=3", "stages.9.steps=3", "stages.lesoin.steps=3"])
def test_an_override_that_points_nowhere_is_refused(override: str) -> None:
    with pytest.raises(RecipeError):
        load("demo", [override])


def test_a_recipe_survives_its_own_yaml() -> None:
    recipe = load("demo")
    assert Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe
