from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from tasks.synthesis.diffusion import adapters, base, lora, sample, window
from tasks.synthesis.diffusion import examples as example_views
from tests.fakes.drafts import ellipse

PX = 32
PARAMS = lora.LoraParams(
    rank=4, alpha=8, steps=10, batch=3, warmup=2, learning_rate=0.02, validate_every=3, checkpoint_every=4
)


class KilledError(Exception):
    pass


class Memory:
    """Checkpoints that only remember the last one."""

    def __init__(self) -> None:
        self.saved: tuple[int, bytes] | None = None

    def save(self, step: int, data: bytes) -> None:
        self.saved = (step, data)

    def latest(self) -> tuple[int, bytes] | None:
        return self.saved


def examples(count: int, first: int = 0) -> list[lora.Example]:
    made: list[lora.Example] = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        mask = ellipse(PX, rng.uniform(12, 20), rng.uniform(12, 20), 5, 7)
        speckle = np.clip(rng.rayleigh(50, (PX, PX)) + 20, 0, 255).astype(np.uint8)
        made.append(lora.Example(np.where(mask, speckle // 4, speckle).astype(np.uint8), mask, "benign"))
    return made


def train(
    base: base.Base,
    params: lora.LoraParams = PARAMS,
    checkpoints: Memory | None = None,
    advance: Callable[[int], None] = lambda _: None,
    held_out: int = 4,
) -> lora.Adapter:
    held = examples(held_out, first=100)
    return lora.train(
        base,
        examples(5),
        held,
        "breast",
        params,
        seed=7,
        checkpoints=checkpoints or Memory(),
        advance=advance,
    )


@pytest.fixture(scope="module", params=["inpainting_base", "text_base"])
def any_base(request: pytest.FixtureRequest) -> base.Base:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("killed_after", "precision"), [(2, "fp32"), (6, "fp32"), (9, "fp32"), (6, "bf16")])
def test_a_run_killed_and_resumed_equals_one_never_killed_bit_for_bit(
    any_base: base.Base, killed_after: int, precision: sample.Precision
) -> None:
    params = PARAMS.model_copy(update={"precision": precision})
    undisturbed = train(any_base, params)
    checkpoints, done = Memory(), 0

    def kill(images: int) -> None:
        nonlocal done
        done += images
        if done == killed_after * params.batch:
            raise KilledError

    with pytest.raises(KilledError):
        train(any_base, params, checkpoints, kill)
    assert (checkpoints.latest() or (0,))[0] == killed_after // 4 * 4
    counted: list[int] = []
    resumed = train(any_base, params, checkpoints, counted.append)
    assert resumed == undisturbed
    assert sum(counted) == params.steps * params.batch
    assert train(any_base, params, checkpoints) == undisturbed  # a finished run only reads its last checkpoint


def test_an_adapter_gives_plain_diffusers_the_same_unet_output(any_base: base.Base, tmp_path: Path) -> None:
    adapter = train(any_base)
    (tmp_path / "adapter.safetensors").write_bytes(adapter.weights)
    inpaints = sample.reads_condition(any_base.unet)
    kind = diffusers.StableDiffusionInpaintPipeline if inpaints else diffusers.StableDiffusionPipeline
    pipeline = kind.from_pretrained(any_base.path)
    pipeline.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn((2, 9 if inpaints else 4, 8, 8), generator=generator)
    text = torch.randn((2, 77, 16), generator=generator)
    with torch.no_grad():
        theirs = pipeline.unet(seen, 400, text).sample
        ours = adapters.fused(any_base, adapter.weights).unet(seen, 400, text).sample
        without = any_base.unet(seen, 400, text).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - without).abs().max() > 1e-2


def test_training_leaves_the_shared_base_as_it_was(inpainting_base: base.Base) -> None:
    before = safetensors.torch.save(inpainting_base.unet.state_dict())
    train(inpainting_base)
    assert safetensors.torch.save(inpainting_base.unet.state_dict()) == before
    assert not any(weight.requires_grad for weight in inpainting_base.unet.parameters())


def test_the_checkpoint_with_the_lowest_held_out_loss_is_kept(inpainting_base: base.Base) -> None:
    adapter = train(inpainting_base)
    losses = {step: validation for step, _, validation in adapter.curve}
    assert list(losses) == [3, 6, 9, 10]
    assert adapter.best_step == min(losses, key=lambda step: losses[step] or 0)


def test_without_held_out_images_the_last_step_is_kept(text_base: base.Base) -> None:
    adapter = train(text_base, held_out=0)
    assert adapter.best_step == PARAMS.steps
    assert all(validation is None for _, _, validation in adapter.curve)


def test_training_learns(inpainting_base: base.Base) -> None:
    params = PARAMS.model_copy(
        update={"steps": 60, "learning_rate": 0.05, "validate_every": 10, "checkpoint_every": 1000}
    )
    curve = train(inpainting_base, params, held_out=8).curve
    assert (curve[-1][2] or 9) < 0.98 * (curve[0][2] or 0)


def test_image_and_mask_are_cut_and_mirrored_together() -> None:
    rng = np.random.default_rng(0)
    for px in (32, 64, 100):
        mask = np.zeros((px, px), np.bool_)
        row, column = rng.integers(4, px - 8, 2)
        mask[row : row + 4, column : column + 4] = True
        image = np.where(mask, 255, 10).astype(np.uint8)  # a marker exactly where the mask is
        seen_pair = example_views.views(lora.Example(image, mask, "benign"), PX)
        images = seen_pair.images
        for seen, hole in zip(images, seen_pair.holes, strict=True):
            np.testing.assert_array_equal(hole, window.hole(seen > 128, PX))
        np.testing.assert_array_equal(images[1], images[0][:, ::-1])


def test_a_checkpoint_of_another_run_is_refused(text_base: base.Base) -> None:
    checkpoints = Memory()
    train(text_base, PARAMS, checkpoints)
    other = PARAMS.model_copy(update={"learning_rate": 0.01})
    with pytest.raises(ValueError, match="belongs to another base, data, seed or parameters"):
        train(text_base, other, checkpoints)
    often = PARAMS.model_copy(update={"checkpoint_every": 1})
    assert train(text_base, often, checkpoints) == train(text_base)
    checkpoints.saved = (4, b"\x05\0\0\0\0\0\0\0hello")
    with pytest.raises(ValueError, match="torn or none"):
        train(text_base, PARAMS, checkpoints)


def test_examples_without_a_lesion_and_no_examples_are_refused(text_base: base.Base) -> None:
    blank = lora.Example(np.zeros((PX, PX), np.uint8), np.zeros((PX, PX), np.bool_), "benign")
    for given, reason in ([blank], "blank mask"), ([], "no examples"):
        with pytest.raises(ValueError, match=reason):
            lora.train(text_base, given, [], "breast", PARAMS, 0, Memory(), lambda _: None)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="expected fewer than steps"):
        lora.LoraParams(steps=10, warmup=10)
