import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from storage import weights
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import cache, controlnet, controlnet_training, examples, lora_state, sample, training
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.controlnet_params import ControlNetParams
from tasks.synthesis.diffusion.trainable import Trainable
from tests.fakes.base import make_base
from tests.fakes.drafts import ellipse
from tests.tasks.synthesis.diffusion import controls
from tests.tasks.synthesis.diffusion.test_lora import KilledError, Memory
from tests.tasks.synthesis.diffusion.test_lora import train as train_adapter


@pytest.fixture(scope="module", params=["inpainting_base", "text_base"])
def any_base(request: pytest.FixtureRequest) -> Base:
    return request.getfixturevalue(request.param)


def folder_of(data: bytes, folder: Path) -> Path:
    """A ControlNet's bytes as the folder that its step leaves in the store."""
    folder.mkdir()
    (folder / controlnet.FILE).write_bytes(data)
    (folder / "config.json").write_text(controlnet.config(data))
    return folder


def test_a_fresh_one_adds_nothing(any_base: Base) -> None:
    network = controlnet.fresh(any_base, any_base.unet, seed=1)
    latent = torch.randn((2, any_base.unet.config["in_channels"], 8, 8), generator=torch.Generator().manual_seed(0))
    text, shown = torch.randn((2, 77, 16)), torch.ones((2, 3, 32, 32))
    with torch.no_grad():
        added = controlnet.residuals(network, latent, torch.tensor(400), text, shown)
    assert not added["mid_block_additional_residual"].any()
    assert not any(part.any() for part in added["down_block_additional_residuals"])
    assert network.config["in_channels"] == 4
    other = controlnet.fresh(any_base, any_base.unet, seed=2)
    assert controlnet.pack(network) != controlnet.pack(other)
    assert controlnet.pack(network) == controlnet.pack(controlnet.fresh(any_base, any_base.unet, seed=1))


def test_beside_an_inpainting_unet_it_begins_with_what_that_sees_of_a_whole_picture(inpainting_base: Base) -> None:
    network = controlnet.fresh(inpainting_base, inpainting_base.unet, seed=1)
    px = inpainting_base.px
    latent = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    everything = np.ones((1, px, px), np.bool_)
    condition = sample._condition(inpainting_base, everything.astype(np.uint8), everything)
    with torch.no_grad():
        seen = inpainting_base.unet.conv_in(torch.cat([latent, condition], dim=1))
        copied = network.conv_in(latent)
        latent_alone = torch.nn.functional.conv2d(latent, inpainting_base.unet.conv_in.weight[:, :4], padding=1)
    inner = (..., slice(2, -2), slice(2, -2))  # at the border zeros are seen around both
    assert (seen - copied)[inner].abs().mean() < 0.2 * (seen - latent_alone)[inner].abs().mean()


@pytest.mark.parametrize(("killed_after", "precision"), [(1, "fp32"), (5, "bf16")])
def test_a_run_killed_and_resumed_equals_one_never_killed_bit_for_bit(
    any_base: Base, killed_after: int, precision: str
) -> None:
    params = controls.PARAMS.model_copy(update={"precision": precision, "ema": 0.9})
    adapter = train_adapter(any_base).weights
    undisturbed = controls.train(any_base, adapter, params)
    checkpoints, done = Memory(), 0

    def kill(images: int) -> None:
        nonlocal done
        done += images
        if done == killed_after * params.batch:
            raise KilledError

    with pytest.raises(KilledError):
        controls.train(any_base, adapter, params, checkpoints, kill)
    assert (checkpoints.latest() or (0,))[0] == killed_after // 2 * 2
    assert controls.train(any_base, adapter, params, checkpoints) == undisturbed
    with pytest.raises(ValueError, match="belongs to another base, data, seed or parameters"):
        controls.train(any_base, None, params, checkpoints)


@pytest.mark.slow
def test_held_out_pictures_are_denoised_better_with_their_own_masks_than_with_others() -> None:
    base = bases.load("embedded")
    params = ControlNetParams(
        steps=16, batch=4, warmup=1, learning_rate=5e-3, lesion_weight=1, validate_every=16, precision="bf16"
    )
    learned, held = _discs(8, base.px), _discs(3, base.px, first=100)
    others = [replace(one, control=other.control) for one, other in zip(held, held[1:] + held[:1], strict=True)]
    trained = controlnet_training.train(
        base, None, None, learned, [], "breast", params, 3, Memory(), advance=lambda _: None
    )
    beside = Trainable(base.unet, base.text_encoder, {}, {}, controlnet.load(trained.weights, base))
    exact = params.model_copy(update={"precision": "fp32"})

    def loss(given: list[examples.Example]) -> float:
        run = training.prepared(base, beside, learned, given, "breast", exact, 3, cache.Forgetful(), "")
        return training._validation_loss(run) or 0.0

    assert 0 < loss(held) < 0.8 * loss(others)


def _discs(count: int, px: int, first: int = 0) -> list[examples.Example]:
    """Grey pictures with a dark ellipse, which their mask shows."""
    rngs = [np.random.default_rng(number) for number in range(first, first + count)]
    masks = [ellipse(px, *rng.uniform(0.3 * px, 0.7 * px, 2), *rng.uniform(px / 8, px / 4, 2)) for rng in rngs]
    return [examples.Example(np.where(mask, 40, 160).astype(np.uint8), None, "benign", control=mask) for mask in masks]


def test_gradient_checkpoints_and_micro_batches_change_nothing_but_rounding(inpainting_base: Base) -> None:
    plain = safetensors.torch.load(controls.train(inpainting_base).weights)
    params = controls.PARAMS.model_copy(update={"gradient_checkpointing": True, "accumulate": 2})
    other = safetensors.torch.load(controls.train(inpainting_base, params=params).weights)
    for name, weight in plain.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-2, atol=2e-4)


def test_its_header_has_one_entry_so_that_its_bytes_are_the_same_in_every_process(text_base: Base) -> None:
    """safetensors writes several in an order that changes from process to process."""
    data = controlnet.pack(controlnet.fresh(text_base, text_base.unet, 0))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["controlnet"]
    assert "_name_or_path" not in json.loads(controlnet.config(data))


def test_a_folder_in_diffusers_layout_is_gone_on_from(any_base: Base, tmp_path: Path) -> None:
    trained = controls.train(any_base)
    folder = folder_of(trained.weights, tmp_path / "controlnet")
    assert weights.locate(str(folder), controlnet.LAYOUT) == folder
    start = controlnet.read(folder, any_base, str(folder))
    assert controlnet.pack(start) == trained.weights
    theirs = diffusers.ControlNetModel.from_pretrained(folder)
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(weight, start.state_dict()[name], rtol=0, atol=0)
    given = controls.examples(5), controls.examples(3, first=100), "breast", controls.PARAMS, 7
    further = controlnet_training.train(any_base, None, start, *given, Memory(), lambda _: None)
    assert further.curve[0][1] != trained.curve[0][1]
    assert controlnet.pack(start) == trained.weights  # what was given is left as it was


def test_one_of_another_architecture_is_refused_by_name(any_base: Base, tmp_path: Path) -> None:
    data = controls.train(any_base).weights
    other = bases.load(str(make_base(tmp_path / "wide", channels=4)))
    other.unet.register_to_config(cross_attention_dim=32)
    with pytest.raises(ValueError, match="its cross_attention_dim is 16, the base's 32"):
        controlnet.load(data, replace(other, digest="another"))
    other.unet.register_to_config(cross_attention_dim=16, block_out_channels=(8, 32))
    with pytest.raises(ValueError, match=r"its block_out_channels is \[8, 16\], the base's \[8, 32\]"):
        controlnet.load(data, replace(other, digest="a third"))
    with pytest.raises(ValueError, match="says nothing of its architecture"):
        controlnet.load(safetensors.torch.save({"a": torch.zeros(1)}), any_base)
    config = json.loads(controlnet.config(data)) | {"conditioning_channels": 1}
    narrow = diffusers.ControlNetModel.from_config(config)
    with pytest.raises(ValueError, match="is shown 1 channels; expected 3"):
        controlnet.check(narrow, any_base, "x")
    torn = safetensors.torch.save({"conv_in.bias": torch.zeros(8)}, {"controlnet": controlnet.config(data)})
    with pytest.raises(ValueError, match="is torn"):
        controlnet.load(torn, any_base)


def test_pictures_without_masks_are_refused(text_base: Base) -> None:
    blank = replace(controls.examples(1)[0], control=None)
    for given, found in ([blank], "a picture without a mask"), ([], "0 training pictures"):
        with pytest.raises(ValueError, match=found):
            controlnet_training.train(
                text_base, None, None, given, [], "breast", controls.PARAMS, 0, Memory(), lambda _: None
            )


def test_mask_and_picture_are_mirrored_together_and_errors_count_more_where_the_mask_is() -> None:
    (example,) = controls.examples(1)
    marked = replace(example, image=np.where(example.control, 255, 10).astype(np.uint8))
    seen = examples.views(marked, 32)
    assert seen.holes.all()
    assert seen.controls is not None
    np.testing.assert_array_equal(seen.controls, seen.images > 128)
    assert not np.array_equal(seen.controls[0], seen.controls[1])
    counting = examples._counting(seen)
    assert (counting[0] & ~seen.controls[0]).any()
    assert counting[0][seen.controls[0]].all()
    assert lora_state.digest_of(*marked.parts()) != lora_state.digest_of(*replace(marked, control=None).parts())
