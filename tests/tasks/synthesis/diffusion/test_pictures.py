"""Whole pictures: the same image as plain diffusers for the same noise, and nothing of a neighbour in any."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet, sample
from tasks.synthesis.diffusion.base import Base
from tests.fakes.base import make_base
from tests.fakes.drafts import ellipse
from tests.tasks.synthesis.diffusion import controls
from tests.tasks.synthesis.diffusion.test_lora import train as train_adapter

KINDS = [(channels, prediction) for channels in (4, 9) for prediction in ("epsilon", "v_prediction")]
PROMPT = "ultrasound of breast, benign lesion, oval"
STEPS, GUIDANCE, SEEDS = 5, 2.0, [3, 4]
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps")


def masks_of(base: Base) -> np.ndarray:
    px = base.px
    return np.stack(
        [ellipse(px, px * 0.4, px / 2, px * 0.2, px * 0.2), ellipse(px, px * 0.6, px * 0.4, px / 6, px / 4)]
    )


def drawn(base: Base, seeds: list[int] = SEEDS, **how: Any) -> np.ndarray:
    return sample.pictures(base, [PROMPT] * len(seeds), seeds, **{"steps": STEPS, "guidance": GUIDANCE} | how)


def by_diffusers(base: Base, folder: Path, adapter: bytes, control: sample.Control | None) -> np.ndarray:
    """The pipeline's pictures (B, px, px, 3), 0 to 255, of the same noise, levels, adapter and ControlNet."""
    inpaints = sample.reads_condition(base.unet)
    (folder / "adapter.safetensors").write_bytes(adapter)
    given: dict[str, Any] = {}
    if control is not None:
        (folder / "controlnet").mkdir()
        (folder / "controlnet" / controlnet.FILE).write_bytes(control.network)
        (folder / "controlnet" / "config.json").write_text(controlnet.config(control.network))
        given["controlnet"] = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
    held = "ControlNet" if control is not None else ""
    kind = getattr(diffusers, f"StableDiffusion{held}{'Inpaint' if inpaints else ''}Pipeline")
    pipeline = kind.from_pretrained(base.path, **given)
    pipeline.set_progress_bar_config(disable=True)
    known = {name: base.scheduler_config[name] for name in SCHEDULE if name in base.scheduler_config}
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(**known)
    pipeline.load_lora_weights(folder, weight_name="adapter.safetensors")
    side, px = base.unet.config["sample_size"], base.px
    asked: dict[str, Any] = {
        "latents": torch.stack(
            [torch.randn((4, side, side), generator=torch.Generator().manual_seed(s)) for s in SEEDS]
        ),
        "prompt": [PROMPT] * 2,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "height": px,
        "width": px,
        "output_type": "np",
    }
    if inpaints:
        asked |= {"image": torch.zeros((2, 3, px, px)), "mask_image": torch.ones((2, 1, px, px))}
    if control is not None:
        asked["control_image" if inpaints else "image"] = controlnet.shown(
            torch.from_numpy(control.masks), torch.float32
        )
        asked["controlnet_conditioning_scale"] = control.scale
        asked["control_guidance_start"], asked["control_guidance_end"] = control.steps
    return np.rint(pipeline(**asked).images * 255)


@pytest.fixture
def encodes_to_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws the latent of the masked image from the posterior; here the mode is taken, as in training."""

    def mode(self: DiagonalGaussianDistribution, generator: object = None) -> torch.Tensor:
        return self.mode()

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", mode)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
@pytest.mark.usefixtures("encodes_to_the_mode")
@pytest.mark.parametrize(("channels", "prediction"), KINDS)
def test_plain_diffusers_draws_the_same_pictures_with_our_adapter_and_controlnet(
    channels: int, prediction: Any, tmp_path: Path
) -> None:
    base = bases.load(str(make_base(tmp_path / "base", channels=channels, prediction=prediction)))
    adapter = train_adapter(base).weights
    network = controls.train(base, adapter).weights
    plain = drawn(base, adapter=adapter)
    assert np.abs(plain - by_diffusers(base, tmp_path, adapter, None)).max() <= 1
    for scale, steps in ((1.0, (0.0, 1.0)), (0.7, (0.2, 0.8))):
        folder = tmp_path / f"{scale}"
        folder.mkdir()
        control = sample.Control(network, masks_of(base), scale, steps)
        ours = drawn(base, adapter=adapter, control=control)
        assert np.abs(ours - by_diffusers(base, folder, adapter, control)).max() <= 1
        assert (ours != plain).any()


def test_a_picture_is_the_same_in_any_company(inpainting_base: Base, text_base: Base) -> None:
    for base in inpainting_base, text_base:
        network, masks = controls.train(base).weights, masks_of(base)
        together = drawn(base, control=sample.Control(network, masks))
        alone = drawn(base, seeds=SEEDS[1:], control=sample.Control(network, masks[1:]))
        np.testing.assert_array_equal(alone[0], together[1])
        assert together.shape == (2, base.px, base.px, 3)


def test_the_controlnet_acts_between_its_steps_alone(inpainting_base: Base) -> None:
    network, masks = controls.train(inpainting_base).weights, masks_of(inpainting_base)

    def held(scale: float = 1.0, steps: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
        return drawn(inpainting_base, control=sample.Control(network, masks, scale, steps))

    without = drawn(inpainting_base)
    np.testing.assert_array_equal(held(scale=0), without)
    np.testing.assert_array_equal(held(steps=(0.9, 1.0)), without)  # a fifth of the steps is the least that one takes
    assert len({part.tobytes() for part in (held(), held(scale=2), held(steps=(0, 0.6)), without)}) == 4


def test_the_embedded_base_draws_whole_pictures_of_its_size() -> None:
    base = bases.load("embedded")
    picture = drawn(base, seeds=[1], steps=2, precision="bf16")
    assert picture.shape == (1, base.px, base.px, 3)
    assert picture.std() > 10


def test_the_prompt_reaches_the_model(text_base: Base) -> None:
    one, other = (sample.pictures(text_base, [prompt], [1], steps=3, guidance=4.0) for prompt in (PROMPT, "fetal head"))
    assert (one != other).any()
