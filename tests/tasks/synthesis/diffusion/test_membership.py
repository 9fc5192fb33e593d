import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from tasks.synthesis.diffusion import adapter_files, base, latents, lora, trainable
from tasks.synthesis.diffusion import examples as example_views
from tasks.synthesis.diffusion.adapters import fused
from tasks.synthesis.diffusion.membership import gains
from tests.tasks.synthesis.diffusion.test_lora import PARAMS, Memory, examples

BRIEF = PARAMS.model_copy(update={"steps": 6, "validate_every": 6, "checkpoint_every": 6})


def error(model: base.Base, adapter: bytes | None, example: lora.Example) -> float:
    """Mean error of the predicted noise at two noise levels, written out: holes count `lesion_weight` times."""
    view = example_views.views(example, model.px)
    latent = latents.encode(model, view.images[:1])
    condition = latents.condition(model, view.images[:1], view.holes[:1])
    text = latents.embed(model, [latents.prompt("breast", "benign")])
    weight = 1 + (lora.LoraParams().lesion_weight - 1) * latents.latent_mask(model, view.holes[:1])
    scheduler = DDPMScheduler.from_config(model.scheduler_config)
    noise = torch.randn((2, *latent.shape[1:]), generator=torch.Generator().manual_seed(3))
    errors: list[float] = []
    for own, time in zip(noise, (250, 750), strict=True):
        kept = scheduler.alphas_cumprod[time]
        noisy = kept.sqrt() * latent + (1 - kept).sqrt() * own
        with torch.no_grad():
            seen = torch.cat([noisy, condition], dim=1)
            predicted = fused(model, adapter).unet(seen, torch.tensor([time]), text, return_dict=False)[0]
        squared = ((predicted - own) ** 2).mean(dim=1, keepdim=True)
        errors.append(float((squared * weight).sum() / weight.sum()))
    return float(np.mean(errors))


def test_an_adapter_that_changes_nothing_remembers_nothing(inpainting_base: base.Base):
    fresh = trainable.with_lora(inpainting_base, PARAMS, 0)
    adapter = adapter_files.write(fresh.weights, fresh.scales)
    counted: list[int] = []
    found = gains(inpainting_base, adapter, examples(3), "breast", 2, 0, counted.append)
    assert found == pytest.approx(np.zeros(3), abs=1e-5)
    assert counted == [1, 1, 1]


def test_a_gain_is_the_logarithm_of_the_ratio_of_the_two_errors(inpainting_base: base.Base):
    adapter = lora.train(inpainting_base, examples(3), [], "breast", BRIEF, 0, Memory(), lambda _: None).weights
    asked = examples(3, first=100)
    found = gains(inpainting_base, adapter, asked, "breast", 2, 3)
    expected = [
        np.log(error(inpainting_base, None, example) / error(inpainting_base, adapter, example)) for example in asked
    ]
    assert np.abs(expected).max() > 5e-3
    assert found == pytest.approx(expected, abs=1e-5)
