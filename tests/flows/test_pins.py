"""Weights pinned by digest: what the lock holds, and what a build does with other weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows import pins, recipe
from flows.build_dataset import make
from flows.commands import builds
from flows.recipe import Recipe, RecipeError
from storage.store import Store
from tasks.quality import sam
from tasks.synthesis.diffusion import base as bases
from tests.fakes.base import make_base, make_controlnet
from tests.fakes.sam import sam as make_sam

CONTENT: dict[str, Any] = {
    "name": "tiny",
    "source": {"dataset": "phantom", "count": 12},
    "plan": {"samples": 4},
    "stages": [{"stage": "layout"}, {"stage": "lesion"}],
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    """A recipe with a base of its own, not locked yet."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(CONTENT | {"base": str(base)}))
    return file


def locked(file: Path, *overrides: str) -> Recipe:
    """The recipe as `sonoforge lock` and then a build read it."""
    arguments = ["lock", str(file), *(word for text in overrides for word in ("--set", text))]
    done = CliRunner().invoke(builds.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"wrote {pins.lock_file(file)}" in done.output
    return recipe.load(file, overrides)


def replaced(base: Path) -> str:
    """Other weights at the same place; their digest."""
    shutil.rmtree(base)
    return bases.digest(make_base(base, seed=1))


def test_a_lock_names_what_lies_there_and_changes_no_byte_of_the_dataset(file: Path, base: Path) -> None:
    before = recipe.load(file)
    assert before.pins == {}
    after = locked(file)
    assert after.pins == {"base": bases.digest(base), "extractor": pins.found(before)["extractor"]}
    assert yaml.safe_load(pins.lock_file(file).read_text()) == after.pins
    assert after.published() == before.published()
    assert after.digest() == before.digest()


def test_the_weights_that_were_locked_pass(file: Path) -> None:
    pins.check(locked(file), studied=True)


def test_a_build_with_other_weights_stops_before_any_work(file: Path, base: Path, tmp_path: Path) -> None:
    pinned = bases.digest(base)
    found = locked(file)
    other = replaced(base)
    with pytest.raises(ValueError, match=rf"base .* has sha256 {other}, but the recipe's lock pins {pinned}: .*lock"):
        make(found, str(tmp_path / "store"), [])
    assert Store(str(tmp_path / "store")).list() == []


def test_locking_again_takes_what_is_there_now(file: Path, base: Path) -> None:
    locked(file)
    other = replaced(base)
    found = locked(file)
    assert found.pins["base"] == other
    pins.check(found)


def test_weights_named_after_the_lock_was_written_are_no_loophole(file: Path, tmp_path: Path) -> None:
    locked(file)
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=rf"base '{other}' has sha256"):
        pins.check(recipe.load(file, [f"base={other}"]))
    added = recipe.load(file).model_copy(update={"pins": {"base": bases.digest(tmp_path / "base")}})
    with pytest.raises(ValueError, match="extractor 'sonoforge' is not pinned, while the recipe's lock pins base"):
        pins.check(added)


def test_a_controlnet_to_start_from_is_pinned(file: Path, tmp_path: Path) -> None:
    start = make_controlnet(tmp_path / "controlnet")
    stages = '[{"stage": "segmentation"}, {"stage": "picture"}]'
    found = locked(file, f"controlnet.start={start}", f"stages={stages}")
    pins.check(found)
    shutil.rmtree(start)
    make_controlnet(start, seed=9)
    with pytest.raises(ValueError, match=r"controlnet.start .* has sha256"):
        pins.check(found)


def test_only_a_study_needs_the_weights_of_sam(file: Path, tmp_path: Path) -> None:
    weights = make_sam(tmp_path / "sam")
    found = locked(file, f"study.sam.weights={weights}")
    assert found.pins[pins.STUDIED] == sam.digest(str(weights))
    shutil.rmtree(weights)
    pins.check(found)
    with pytest.raises(ValueError, match="SAM"):
        pins.check(found, studied=True)


def test_random_weights_are_nobodys_to_pin(file: Path) -> None:
    assert pins.STUDIED not in locked(file, "study.sam.weights=random").pins


@pytest.mark.parametrize(("text", "words"), [("base: [", "is not YAML"), ("- base", "is no lock"), ("1: 2", "no lock")])
def test_a_broken_lock_is_refused_with_the_way_out(file: Path, text: str, words: str) -> None:
    pins.lock_file(file).write_text(text)
    with pytest.raises(ValueError, match=rf"{words}.*delete it, then write it again with `sonoforge lock"):
        recipe.load(file)


def test_a_lock_is_no_recipe_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "RECIPES", tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.lock.yaml").touch()
    with pytest.raises(RecipeError, match=r"one of ours: mine$"):
        recipe.load("nothing")
