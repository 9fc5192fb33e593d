"""Inpainting with a latent diffusion model: DPM-Solver++, the real background blended in at every step.

Tensors carry their shape: B batch, C latent channels, h w latent pixels, L tokens, D text width.
"""

import copy
import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from numpy.typing import NDArray

from tasks.synthesis.diffusion import latents
from tasks.synthesis.diffusion.base import Base

Precision = Literal["fp32", "bf16"]

SAMPLER = "DPM-Solver++(2M)"
"""Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022."""


@dataclass(frozen=True)
class Schedule:
    """Levels of a sampler, noisiest first: x = `signal` · clean + `noise` · ε; one more than `times`."""

    times: list[int]
    signal: list[float]
    noise: list[float]
    by_velocity: bool

    def clean(self, x: torch.Tensor, predicted: torch.Tensor, step: int) -> torch.Tensor:
        """The clean latent that a prediction of ε, or of v = signal · ε - noise · clean, stands for."""
        if self.by_velocity:
            return self.signal[step] * x - self.noise[step] * predicted
        return (x - self.noise[step] * predicted) / self.signal[step]

    def advance(self, x: torch.Tensor, clean: torch.Tensor, before: torch.Tensor | None, step: int) -> torch.Tensor:
        """From level `step` to the next, given the clean latents seen here and one level before.

        Algorithm 2 of Lu et al., 2022, with λ = log(signal / noise); the last step, to noise 0, is of first
        order: it ends at `clean`.
        """
        if step + 1 == len(self.times):
            return clean
        h = self._log_snr(step + 1) - self._log_snr(step)
        if before is not None:
            r = (self._log_snr(step) - self._log_snr(step - 1)) / h
            clean = clean + (clean - before) / (2 * r)
        shrunk = self.noise[step + 1] / self.noise[step] * x
        return shrunk - self.signal[step + 1] * math.expm1(-h) * clean

    def _log_snr(self, step: int) -> float:
        return math.log(self.signal[step] / self.noise[step]) if self.signal[step] else -math.inf


def noise_schedule(scheduler_config: Mapping[str, object], steps: int) -> Schedule:
    """The levels of a base's training schedule that `steps` denoising steps visit, evenly spaced in time."""
    training = training_schedule(scheduler_config)
    kept = training.alphas_cumprod.double()
    times = np.linspace(0, len(kept) - 1, steps + 1).round().astype(int)[:0:-1].tolist()
    signal = [*kept[times].sqrt().tolist(), 1.0]
    noise = [*(1 - kept[times]).sqrt().tolist(), 0.0]
    return Schedule(times, signal, noise, training.config["prediction_type"] == "v_prediction")


def training_schedule(scheduler_config: Mapping[str, object]) -> DDPMScheduler:
    """The schedule that a base was trained with, whatever sampler its folder names."""
    config = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
    scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(config))
    predicted = scheduler.config["prediction_type"]
    if predicted not in ("epsilon", "v_prediction"):
        raise ValueError(f"the base predicts {predicted!r}; expected 'epsilon' or 'v_prediction'")
    if predicted == "epsilon" and not scheduler.alphas_cumprod[-1]:
        raise ValueError(
            "the base predicts the noise, but its schedule ends without any signal (rescale_betas_zero_snr); "
            "such a schedule needs 'v_prediction'"
        )
    return scheduler


_FUSED_KEPT = 8
_fused: OrderedDict[tuple[str, str, str], UNet2DConditionModel] = OrderedDict()
_fused_lock = threading.Lock()


@torch.inference_mode()
def inpaint(
    base: Base,
    images: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    strength: float = 1.0,
    adapter: bytes | None = None,
    precision: Precision = "fp32",
    holes: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Redraw what `masks` cover of grey images (B, H, W), H = W = `base.px`, as one batch.

    The noise of a sample depends on its seed alone. Outside the mask the latent is, at every step, the
    background's own, noised to that step with the sample's noise (Avrahami et al., "Blended Latent
    Diffusion", 2023); the decoder still changes those pixels a little, so the caller composites.

    Args:
        strength: 1 starts inside the mask from pure noise; less keeps the share 1 - strength of the way,
            as in SDEdit (Meng et al., 2022).
        adapter: LoRA weights as safetensors bytes, or None for the base alone.
        holes: what a 9-channel UNet is told to fill, where that is less than what may change.
    """
    unet = fused_unet(base, adapter, precision)
    weight = next(unet.parameters())
    schedule = noise_schedule(base.scheduler_config, steps)
    begin = steps - max(1, min(steps, round(steps * strength)))

    background_BChw = latents.encode(base, images)
    free_B1hw = latents.latent_mask(base, masks).to(background_BChw.device)
    noise_BChw = _noise(seeds, background_BChw)
    condition = _condition(base, unet, images, masks if holes is None else holes)
    text_BLD = _embed(base, prompts, guidance).to(weight.dtype)

    def background_at(step: int) -> torch.Tensor:
        return schedule.signal[step] * background_BChw + schedule.noise[step] * noise_BChw

    x = background_at(begin)
    if begin == 0:
        x = torch.lerp(x, noise_BChw, free_B1hw)
    before = None
    for step in range(begin, steps):
        seen = x if condition is None else torch.cat([x, condition], dim=1)
        time = torch.tensor(schedule.times[step], device=x.device)
        predicted = _predict(unet, seen.to(weight.dtype), time, text_BLD, guidance)
        clean = schedule.clean(x, predicted, step)
        x = torch.lerp(background_at(step + 1), schedule.advance(x, clean, before, step), free_B1hw)
        before = clean
    return latents.decode(base, x)


def fused_unet(base: Base, adapter: bytes | None, precision: Precision = "fp32") -> UNet2DConditionModel:
    """A UNet of its own with the adapter's weights merged in: plain forward calls, safe in many threads.

    One copy per adapter and precision is kept per process, so shards that run side by side share it.
    """
    if adapter is None and precision == "fp32":
        return base.unet
    name = "" if adapter is None else hashlib.sha256(adapter).hexdigest()
    key = (base.digest, name, precision)
    with _fused_lock:  # a second thread waits for the first one's copy instead of making its own
        if key not in _fused:
            _fused[key] = _fuse(base, adapter, precision)
            while len(_fused) > _FUSED_KEPT:
                _fused.popitem(last=False)
        _fused.move_to_end(key)
        return _fused[key]


def _fuse(base: Base, adapter: bytes | None, precision: Precision) -> UNet2DConditionModel:
    unet = copy.deepcopy(base.unet)
    if adapter is not None:
        unet.load_lora_adapter(safetensors.torch.load(adapter), prefix="unet")
        unet.fuse_lora()
        unet.unload_lora()
    unet.requires_grad_(False).eval()
    if precision == "bf16":
        torch.nn.Module.to(unet, torch.bfloat16)  # diffusers wraps `to` in a way that hides its type
    for weight in unet.parameters():  # an eighth faster in fp32 on a CPU, and what tensor cores want
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return unet


def _noise(seeds: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    # Drawn on the CPU, one generator a sample: neither batch nor device decides what a sample looks like.
    shape = like.shape[1:]
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(like.device)


def _condition(
    base: Base, unet: UNet2DConditionModel, images: NDArray[np.uint8], holes: NDArray[np.bool_]
) -> torch.Tensor | None:
    return latents.condition(base, images, holes) if reads_condition(unet) else None


def reads_condition(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet is made for inpainting: 9 input channels instead of 4."""
    read, made = int(unet.config["in_channels"]), int(unet.config["out_channels"])
    if read not in (made, 2 * made + 1):
        raise ValueError(
            f"the base's UNet reads {read} channels and predicts {made}; expected {made} (text to image) or "
            f"{2 * made + 1} (inpainting): choose another base"
        )
    return read != made


def _embed(base: Base, prompts: Sequence[str], guidance: float) -> torch.Tensor:
    """Prompt embeddings (B, L, D), each prompt embedded once; with guidance (2B, L, D), empty ones first."""
    different = sorted({latents.UNCONDITIONAL, *prompts})
    embedded = latents.embed(base, different)
    conditional = embedded[[different.index(prompt) for prompt in prompts]]
    if guidance == 1:
        return conditional
    unconditional = embedded[[different.index(latents.UNCONDITIONAL)] * len(prompts)]
    return torch.cat([unconditional, conditional])


def _predict(
    unet: UNet2DConditionModel,
    seen: torch.Tensor,
    time: torch.Tensor,
    text: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, 2022), both branches in one batch."""
    if guidance == 1:
        return unet(seen, time, text, return_dict=False)[0].float()
    both = unet(torch.cat([seen, seen]), time, text, return_dict=False)[0].float()
    unconditional, conditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)
