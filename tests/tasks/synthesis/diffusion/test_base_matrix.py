"""Every kind of Stable Diffusion that people have, from loading to a drawn sample: random weights, their layouts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from tasks.synthesis import Draft, StageParams, Tools, apply, layout, lesion, picture
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet, controlnet_training, lora
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.controlnet_params import ControlNetParams
from tests.fakes.base import as_published, in_halves, in_shards, make_base, make_controlnet
from tests.fakes.drafts import donors, drafts, ellipse, sector

PX = 32
KINDS: dict[str, Callable[[Path], Path]] = {
    "1.x": lambda folder: make_base(folder),
    "1.x, v": lambda folder: make_base(folder, prediction="v_prediction"),
    "1.x inpainting": lambda folder: make_base(folder, 9),
    "1.x inpainting, v": lambda folder: make_base(folder, 9, "v_prediction"),
    "2.x": lambda folder: make_base(folder, prediction="v_prediction", generation=2),
    "2.x inpainting": lambda folder: make_base(folder, 9, generation=2),
}
STORED: dict[str, Callable[[Path], Path]] = {
    "1.5 as published": lambda folder: as_published(make_base(folder)),
    "1.5 inpainting as published": lambda folder: as_published(make_base(folder, 9)),
    "half precision": lambda folder: in_halves(make_base(folder)),
    "shards": lambda folder: in_shards(make_base(folder, 9)),
}
"""Other ways in which the same networks lie in a folder."""
TRAINING = {"steps": 2, "batch": 2, "warmup": 0, "validate_every": 1, "learning_rate": 0.1}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return bases.load(str(KINDS[request.param](tmp_path_factory.mktemp("base") / "base")))


class Nowhere:
    """Checkpoints that nobody needs."""

    def save(self, step: int, data: bytes) -> None:
        pass

    def latest(self) -> tuple[int, bytes] | None:
        return None


def scans(*, controlled: bool = False) -> list[lora.Example]:
    image, _ = sector(PX)
    masks = [ellipse(PX, 14 + number, 16, 5, 7) for number in range(3)]
    if controlled:
        return [lora.Example(image, None, "benign", control=mask) for mask in masks]
    return [lora.Example(image, mask, "benign") for mask in masks]


def adapter_of(base: Base) -> bytes:
    params = lora.LoraParams(rank=2, alpha=8, **TRAINING)
    return lora.train(base, scans(), scans()[:1], "breast", params, 0, Nowhere(), lambda _: None).weights


def run(tools: Tools, items: list[Draft], *stages: StageParams) -> list[Draft]:
    for stage in stages:
        items = apply(stage, items, tools)
    assert not [draft.failure for draft in items if draft.failure]
    return items


@pytest.mark.parametrize("kind", KINDS | STORED)
def test_it_is_the_model_that_plain_diffusers_reads(kind: str, tmp_path: Path) -> None:
    base = bases.load(str((KINDS | STORED)[kind](tmp_path / "base")))
    index = json.loads((base.path / "model_index.json").read_text())
    theirs = getattr(diffusers, index["_class_name"])
    variant = "fp16" if any(base.path.glob("unet/*.fp16.*")) else None
    pipeline = theirs.from_pretrained(base.path, variant=variant, safety_checker=None, feature_extractor=None)
    for part in ("unet", "vae", "text_encoder"):
        weights = getattr(pipeline, part).state_dict()
        ours = getattr(base, part).state_dict()
        assert set(weights) == set(ours)
        for name, weight in ours.items():
            torch.testing.assert_close(weight, weights[name].float(), rtol=0, atol=0)
    assert base.vae.config["scaling_factor"] == pipeline.vae.config["scaling_factor"]
    assert base.scheduler_config.get("prediction_type", "epsilon") == pipeline.scheduler.config["prediction_type"]


def test_it_learns_an_adapter_and_paints_lesions_with_it(base: Base) -> None:
    background, _ = sector(PX)
    stages: list[StageParams] = [layout.Params(smallest=0.1), lesion.Params(steps=3)]
    plain = run(Tools(base=base, adapters={}, donors=donors(PX)), drafts(2, background), *stages)
    tools = Tools(base=base, adapters={"benign": adapter_of(base)}, donors=donors(PX))
    for without, draft in zip(plain, run(tools, drafts(2, background), *stages), strict=True):
        assert draft.region is not None
        np.testing.assert_array_equal(draft.image[~draft.region], background[~draft.region])
        assert (draft.image != without.image).any()


def test_a_rate_left_open_is_the_one_that_suits_its_width(tmp_path: Path) -> None:
    base = bases.load(str(make_base(tmp_path / "base")))
    params = lora.LoraParams(rank=2, **{**TRAINING, "learning_rate": None})
    stated = params.model_copy(update={"learning_rate": params.rate(16)})
    learned = scans()[:1]
    made = [lora.train(base, learned, [], "breast", one, 0, Nowhere(), lambda _: None) for one in (params, stated)]
    assert made[0].weights == made[1].weights


def test_it_learns_a_controlnet_and_draws_whole_pictures_with_it(base: Base) -> None:
    params = ControlNetParams(**TRAINING)
    learned = scans(controlled=True)
    trained = controlnet_training.train(
        base, None, None, learned, learned[:1], "breast", params, 0, Nowhere(), lambda _: None
    )
    black = np.zeros((PX, PX), np.uint8)
    blank = [replace(draft, background=black, image=black) for draft in drafts(1, black)]
    tools = Tools(base=base, adapters={}, donors=[], controlnet=trained.weights)
    seen = {}
    for row in (10, 22):
        masked = [replace(draft, mask=ellipse(PX, row, 16, 5, 7)) for draft in blank]
        (seen[row],) = run(tools, masked, picture.Params(steps=3))
    (free,) = run(replace(tools, controlnet=None), blank, picture.Params(steps=3))
    assert (seen[10].image != seen[22].image).any()
    assert (seen[10].image != free.image).any()
    assert seen[10].lineage["base_digest"] == base.digest


def test_a_controlnet_of_its_own_kind_fits_and_another_is_refused_with_both_widths(base: Base, tmp_path: Path) -> None:
    width = int(base.unet.config["cross_attention_dim"])
    heads = base.unet.config["attention_head_dim"]
    if heads == 4:
        found = controlnet.read(make_controlnet(tmp_path / "fits", width), base, "fits")
        assert found.config["cross_attention_dim"] == width
    with pytest.raises(
        ValueError, match=rf"'wide' does not fit the base: its cross_attention_dim is 40, the base's {width}"
    ):
        controlnet.read(make_controlnet(tmp_path / "wide", 40), base, "wide")
