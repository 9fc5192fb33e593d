from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel

from tasks.synthesis.diffusion import adapters, latents, sample, solver
from tasks.synthesis.diffusion.base import Base
from tests.fakes.drafts import ellipse

PX = 32


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, PX, PX)).astype(np.uint8)
    return images, np.stack([ellipse(PX, 14 + number, 16, 6, 7) for number in range(count)])


@pytest.fixture(params=["inpainting_base", "text_base"])
def any_base(request: pytest.FixtureRequest) -> Base:
    return request.getfixturevalue(request.param)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_solver_takes_the_steps_of_diffusers_dpm_solver(steps: int, prediction: str) -> None:
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
    }
    theirs = DPMSolverMultistepScheduler(**config, algorithm_type="dpmsolver++", solver_order=2)
    theirs.set_timesteps(steps)
    ours = solver.noise_schedule(config, steps)
    assert ours.times == theirs.timesteps.tolist()
    generator = torch.Generator().manual_seed(steps)
    x = y = torch.randn((2, 4, 8, 8), generator=generator)
    before = None
    for step, time in enumerate(theirs.timesteps):
        predicted = torch.randn((2, 4, 8, 8), generator=generator)
        clean = ours.clean(x, predicted, step)
        x, before = ours.advance(x, clean, before, step), clean
        y = theirs.step(predicted, time, y).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
@pytest.mark.parametrize("steps", [2, 8, 30])
def test_karras_levels_are_those_of_diffusers(steps: int) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = DPMSolverMultistepScheduler(**config, use_karras_sigmas=True)
    theirs.set_timesteps(steps)
    ours = solver.noise_schedule(config | {"prediction_type": "epsilon"}, steps, "karras")
    sigmas = np.array(ours.noise[:-1]) / np.array(ours.signal[:-1])
    np.testing.assert_allclose(sigmas, theirs.sigmas[:-1], rtol=1e-5)
    assert np.abs(np.array(ours.times) - theirs.timesteps.numpy()).max() <= 0.5 + 1e-6  # they take whole times


def test_karras_spacing_refuses_a_schedule_that_ends_without_signal() -> None:
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    }
    assert solver.noise_schedule(config, 4).signal[0] == 0
    with pytest.raises(ValueError, match="uniform"):
        solver.noise_schedule(config, 4, "karras")


def test_noise_depends_on_the_seed_alone(any_base: Base) -> None:
    images, masks = pictures(4)
    prompts = ["a", "b", "a", "c"]
    seeds = [5, 6, 7, 8]
    together = sample.inpaint(any_base, images, masks, prompts, seeds, steps=3, guidance=2)
    for number in (2, 0):
        picked = slice(number, number + 1)
        alone = sample.inpaint(
            any_base, images[picked], masks[picked], prompts[picked], seeds[picked], steps=3, guidance=2
        )
        np.testing.assert_array_equal(alone[0], together[number])
    other = sample.inpaint(any_base, images, masks, prompts, [9, 6, 7, 8], steps=3, guidance=2)
    assert (other[0] != together[0]).mean() > 0.1


def test_outside_the_mask_latents_stay_those_of_the_background(any_base: Base) -> None:
    images, masks = pictures(2)
    nothing = np.zeros_like(masks)
    kept = sample.inpaint(any_base, images, nothing, ["a", "b"], [1, 2], steps=3, guidance=2)
    through = latents.decode(any_base, latents.encode(any_base, images))
    assert np.abs(kept.astype(int) - through).max() <= 1  # the same network, its channels in another order


def test_less_strength_changes_less(any_base: Base) -> None:
    images, masks = pictures(2)
    start = latents.encode(any_base, latents.decode(any_base, latents.encode(any_base, images)))
    changes: list[float] = []
    for strength in (0.1, 0.4, 1.0):
        made = sample.inpaint(any_base, images, masks, ["a", "a"], [1, 2], steps=10, guidance=1, strength=strength)
        changes.append(float((latents.encode(any_base, made) - start).abs().mean()))
    assert changes == sorted(changes)


def test_prompt_and_guidance_reach_the_model(any_base: Base) -> None:
    images, masks = pictures(1)
    made = [
        sample.inpaint(any_base, images, masks, [prompt], [1], steps=3, guidance=guidance)
        for prompt, guidance in [("benign", 1), ("malignant", 1), ("benign", 6)]
    ]
    assert (made[0] != made[1]).any()
    assert (made[0] != made[2]).any()


@pytest.mark.parametrize(
    ("guided", "branches"),
    [((0.0, 1.0), [2, 2, 2, 2]), ((0.6, 1.0), [2, 2, 1, 1]), ((0.3, 0.6), [1, 1, 2, 1]), ((0.5, 0.4), [1, 1, 1, 1])],
)
def test_outside_its_interval_guidance_costs_nothing(
    any_base: Base, guided: tuple[float, float], branches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    by_rows = sample._by_rows

    def counted(call: Callable[..., torch.Tensor], size: int, *inputs: torch.Tensor) -> torch.Tensor:
        if inputs[0].is_floating_point() and inputs[-1].ndim == 3:  # latents and their text: the UNet
            rows.append(len(inputs[0]))
        return by_rows(call, size, *inputs)

    monkeypatch.setattr(sample, "_by_rows", counted)
    images, masks = pictures(1)
    sample.inpaint(any_base, images, masks, ["a"], [1], steps=4, guidance=3, guided=guided)
    assert rows == branches


def test_candidates_of_one_image_are_those_that_are_drawn_alone(any_base: Base) -> None:
    images, masks = pictures(2)
    together = sample.inpaint(
        any_base, images, masks, ["a", "b"], [1, 2, 3], steps=3, guidance=2, spacing="karras", of=[0, 0, 1]
    )
    for row, (image, seed) in enumerate([(0, 1), (0, 2), (1, 3)]):
        picked = slice(image, image + 1)
        alone = sample.inpaint(
            any_base, images[picked], masks[picked], "ab"[image], [seed], steps=3, guidance=2, spacing="karras"
        )
        np.testing.assert_array_equal(together[row], alone[0])


def test_only_the_rows_chosen_early_are_finished_and_as_if_alone(any_base: Base) -> None:
    images, masks = pictures(2)
    shown: list[np.ndarray] = []

    def keep(seen: np.ndarray) -> list[int]:
        shown.append(seen)
        return [1, 2]

    everything = {"steps": 4, "guidance": 2.0}
    all_rows = sample.inpaint(any_base, images, masks, ["a", "b"], [1, 2, 3, 4], of=[0, 0, 1, 1], **everything)
    kept = sample.inpaint(
        any_base, images, masks, ["a", "b"], [1, 2, 3, 4], of=[0, 0, 1, 1], early=(0.5, keep), **everything
    )
    assert [len(seen) for seen in shown] == [4]
    np.testing.assert_array_equal(kept, all_rows[[1, 2]])
    latest = sample.inpaint(
        any_base, images, masks, ["a", "b"], [1, 2, 3, 4], of=[0, 0, 1, 1], early=(1.0, keep), **everything
    )
    np.testing.assert_array_equal(latest, all_rows)  # nothing is left to save: the caller chooses


def test_half_precision_comes_close_and_has_its_own_copy(any_base: Base) -> None:
    images, masks = pictures(2)
    full, half = (
        sample.inpaint(any_base, images, masks, ["a", "b"], [1, 2], steps=4, guidance=2, precision=precision).astype(
            int
        )
        for precision in ("fp32", "bf16")
    )
    assert np.abs(full - half).mean() < 3
    assert next(any_base.unet.parameters()).dtype == torch.float32
    assert adapters.fused(any_base, None, "bf16") is adapters.fused(any_base, None, "bf16")


def test_a_unet_of_five_channels_and_another_prediction_are_refused(text_base: Base) -> None:
    odd = UNet2DConditionModel(
        in_channels=5,
        out_channels=4,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
    )
    with pytest.raises(ValueError, match="reads 5 channels"):
        sample.reads_condition(odd)
    config = {**text_base.scheduler_config, "prediction_type": "sample"}
    images, masks = pictures(1)
    with pytest.raises(ValueError, match="predicts 'sample'"):
        sample.inpaint(replace(text_base, scheduler_config=config), images, masks, ["a"], [1], steps=2, guidance=1)
