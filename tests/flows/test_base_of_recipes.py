"""Every recipe of ours draws with any base: `base` is the one line that changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import pins
from flows.recipe import RECIPES, Recipe, load
from tasks import synthesis
from tasks.imaging import Grey, Mask
from tasks.synthesis import Donor, Draft, Tools, seams
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet_training, decoder, latents, lora
from tasks.synthesis.diffusion.base import Base
from tests.fakes.base import as_published, make_base
from tests.fakes.drafts import ellipse, sector

PX = 64
NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml") if not file.name.endswith(pins.SUFFIX))
QUICK = {"steps": 2, "batch": 2, "warmup": 0, "validate_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in the layout of Stable Diffusion 1.5; for other kinds see test_base_matrix.py."""
    return as_published(make_base(tmp_path_factory.mktemp("base") / "base", px=PX))


class Nowhere:
    """Checkpoints that nobody needs."""

    def save(self, step: int, data: bytes) -> None:
        pass

    def latest(self) -> None:
        return None


def ignore(count: int) -> None:
    pass


def shortened(params: Any, **more: object) -> Any:
    """The recipe's own parameters of a training, for two steps."""
    return params.model_copy(update={**QUICK, **more})


def donors(label: str) -> list[Donor]:
    """Scans with masks of several sizes and places, as many as shape models ask for."""
    image, _ = sector(PX)
    rng = np.random.default_rng(0)
    masks = [ellipse(PX, *rng.uniform(26, 38, 2), *rng.uniform(8, 14, 2)) for _ in range(24)]
    return [Donor(f"{label}-{n}", mask, label, f"p{n}", pixel_mm=0.7, image=image) for n, mask in enumerate(masks)]


def examples(route: str, image: Grey, masks: list[Mask], label: str) -> list[lora.Example]:
    """What an adapter of each route learns."""
    if route == "picture":
        return [lora.Example(image, None, label) for _ in masks]
    return [lora.Example(image, mask, label, joint=route == "pair") for mask in masks]


def tools_of(recipe: Recipe, base: Base) -> Tools:
    """Everything that the recipe trains for its stages, with its own parameters but for two steps."""
    (image, _), organ = sector(PX), "organ"
    real = {label: donors(label) for label in recipe.plan.labels}
    route, adapters = synthesis.learned(recipe.stages), dict[str, bytes]()
    for label, own in real.items():
        learned = examples(route, image, [donor.mask for donor in own[:2]], label)
        params = shortened(recipe.lora)
        adapters[label] = lora.train(base, learned, learned[:1], organ, params, 0, Nowhere(), ignore).weights
    if recipe.decoder is not None:
        masks = [donor.mask for own in real.values() for donor in own]
        pictures = [latents.joint(image, mask) if route == "pair" else image for mask in masks]
        quick = recipe.decoder.model_copy(update={"steps": 2, "batch": 2, "warmup": 1, "crop": 32})
        base = decoder.apply(base, decoder.tune(base, np.stack(pictures), quick, 0, Nowhere(), ignore).weights)
    tools = Tools(base=base, adapters=adapters, donors=[donor for own in real.values() for donor in own])
    if recipe.harmonizer is not None:
        scans = [lora.Example(image, donor.mask, label) for label, own in real.items() for donor in own[:2]]
        params = shortened(recipe.harmonizer)
        pairs = seams.pairs(scans, 1, 0)
        trained = lora.train(base, pairs, [], organ, params, 0, Nowhere(), ignore)
        tools = replace(tools, harmonizer=trained.weights)
    if recipe.controlnet is not None:
        label, adapter = next(iter(adapters.items()))
        shown = [lora.Example(image, None, label, control=donor.mask) for donor in real[label][:2]]
        params = shortened(recipe.controlnet)
        held = controlnet_training.train(base, adapter, None, shown, [], organ, params, 0, Nowhere(), ignore)
        tools = replace(tools, controlnet=held.weights)
    return tools


def blank_or_healthy(recipe: Recipe) -> list[Draft]:
    """A draft of each label, as `tasks.synthesize` would begin it."""
    image, _ = sector(PX)
    whole = not synthesis.needs_background(recipe.stages)
    start = np.zeros_like(image) if whole else image
    about = (None, None) if whole else ("healthy-1", "real")
    return [
        Draft(label, 7, label, "organ", start, *about, None, "p0", start, point=0.3) for label in recipe.plan.labels
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_draws_with_another_base_when_its_base_alone_is_changed(name: str, folder: Path) -> None:
    recipe = load(name, [f"base={folder}"])
    assert recipe == load(name).model_copy(update={"base": str(folder)})
    drafts = blank_or_healthy(recipe)
    tools = tools_of(recipe, bases.load(recipe.base))
    for stage in recipe.stages:
        quick = {"steps": 2} if "steps" in type(stage).model_fields else {}
        drafts = synthesis.apply(stage.model_copy(update=quick), drafts, tools)
    for draft in drafts:
        if draft.failure is None:
            assert draft.lineage["base_digest"] == bases.digest(folder)
            assert draft.image.std() > 0
        else:
            assert "no pair in 4 attempts" in draft.failure  # a network that learned for two steps draws no head
