"""Inpainting with a latent diffusion model: DPM-Solver++, the real background blended in at every step.

Tensors carry their shape: B rows, C latent channels, h w latent pixels, L tokens, D text width.

Kernels round differently by batch size, so every network here sees one batch size only, filled up where rows are
missing: what is drawn depends on image, prompt and seed, and on no neighbour, bit for bit.
"""

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from numpy.typing import NDArray

from tasks.synthesis.diffusion import adapters, latents
from tasks.synthesis.diffusion.adapters import Precision
from tasks.synthesis.diffusion.base import Base

SAMPLER = "DPM-Solver++(2M)"
"""Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022."""

Spacing = Literal["uniform", "karras"]
Keep = Callable[[NDArray[np.uint8]], Sequence[int]]
"""Given what every row shows so far, (B, H, W): the rows worth finishing."""

_KARRAS_RHO = 7.0
_UNET_LATENT_PX = {"cpu": 16 * 32**2, "cuda": 16 * 64**2}  # that much in one call keeps the device busy
_UNET_ROWS = {"cpu": 16, "cuda": 64}  # and no more rows than this
_VAE_ROWS = {"cpu": 1, "cuda": 8}  # one picture alone fits the cache of a core


@dataclass(frozen=True)
class Schedule:
    """Levels of a sampler, noisiest first: x = `signal` · clean + `noise` · ε; one more than `times`."""

    times: list[float]
    signal: list[float]
    noise: list[float]
    by_velocity: bool
    trained: int = 1000

    def share(self, step: int) -> float:
        """Where a level lies in the training schedule: near 0 the cleanest, 1 the noisiest."""
        return (self.times[step] + 1) / self.trained

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


def noise_schedule(scheduler_config: Mapping[str, object], steps: int, spacing: Spacing = "uniform") -> Schedule:
    """The levels of a base's training schedule that `steps` denoising steps visit.

    Args:
        spacing: "uniform" is even in time. "karras" is even in (noise / signal)^(1/7), which spends more steps
            on low noise (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
            2022, equation 5), each at the time, not always whole, at which the training schedule had that level.
    """
    training = training_schedule(scheduler_config)
    kept = training.alphas_cumprod.double().numpy()
    if spacing == "karras":
        times, level = _karras(kept, steps)
    else:
        times = np.linspace(0, len(kept) - 1, steps + 1).round().astype(int)[:0:-1]
        level = kept[times]
    return Schedule(
        times.tolist(),
        [*np.sqrt(level).tolist(), 1.0],
        [*np.sqrt(1 - level).tolist(), 0.0],
        training.config["prediction_type"] == "v_prediction",
        len(kept),
    )


def _karras(kept: NDArray[np.float64], steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and squared signals of Karras et al.'s levels, given the squared signals of training."""
    if not kept[-1]:
        raise ValueError(
            "karras spacing needs a schedule that ends with some signal; this base's ends without any "
            "(rescale_betas_zero_snr): use spacing 'uniform'"
        )
    trained = np.sqrt((1 - kept) / kept)
    sigma = np.linspace(trained[-1] ** (1 / _KARRAS_RHO), trained[0] ** (1 / _KARRAS_RHO), steps) ** _KARRAS_RHO
    return np.interp(np.log(sigma), np.log(trained), np.arange(len(trained))), 1 / (1 + sigma**2)


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


@dataclass(frozen=True)
class _Scene:
    """What stays as it is from step to step, a row for each latent that is drawn.

    Shapes: background and noise (B, C, h, w), free (B, 1, h, w), condition (B, 1+C, h, w), text (B, L, D).
    """

    background: torch.Tensor
    noise: torch.Tensor
    free: torch.Tensor
    condition: torch.Tensor | None
    text: torch.Tensor

    def rows(self, kept: Sequence[int]) -> "_Scene":
        """These rows alone, one as often as it is named."""
        index = list(kept)
        condition = None if self.condition is None else self.condition[index]
        return _Scene(
            self.background[index],
            self.noise[index],
            self.free[index],
            condition,
            self.text[index],
        )

    def background_at(self, schedule: Schedule, step: int) -> torch.Tensor:
        """The background noised to a level: what surrounds the hole there."""
        return schedule.signal[step] * self.background + schedule.noise[step] * self.noise

    def blend(self, inside: torch.Tensor, schedule: Schedule, step: int) -> torch.Tensor:
        """`inside` where pixels may change, the background noised to level `step` elsewhere."""
        return torch.lerp(self.background_at(schedule, step), inside, self.free)


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
    spacing: Spacing = "uniform",
    guided: tuple[float, float] = (0.0, 1.0),
    of: Sequence[int] | None = None,
    early: tuple[float, Keep] | None = None,
) -> NDArray[np.uint8]:
    """Redraw what `masks` cover of grey images (B, H, W), H = W = `base.px`; one result for each seed.

    The noise of a result depends on its seed alone. Outside the mask the latent is, at every step, the
    background's own, noised to that step with the same noise (Avrahami et al., "Blended Latent Diffusion",
    2023); the decoder still changes those pixels a little, so the caller composites.

    Args:
        strength: 1 starts inside the mask from pure noise; less keeps the share 1 - strength of the way,
            as in SDEdit (Meng et al., 2022).
        adapter: LoRA weights as safetensors bytes, or None for the base alone.
        holes: what a 9-channel UNet is told to fill, where that is less than what may change.
        guided: shares of the training schedule, 1 the noisiest, between which guidance is applied; elsewhere
            the prompt's branch runs alone (Kynkäänniemi et al., "Applying Guidance in a Limited Interval
            Improves Sample and Distribution Quality in Diffusion Models", 2024).
        of: which image each seed redraws, for several candidates of one; each image has one by default.
        early: after this share of the steps, finish only the rows that are worth it.
    """
    made = adapters.fused(base, adapter, precision)
    base = replace(base, text_encoder=made.text_encoder, vae=autoencoder(base.vae, precision))
    schedule = noise_schedule(base.scheduler_config, steps, spacing)
    begin = steps - max(1, min(steps, round(steps * strength)))
    choice = steps if early is None else begin + max(1, round((steps - begin) * early[0]))
    unet = Denoiser(_quicker(made.unet), _embed(base, [latents.UNCONDITIONAL]), guidance, guided, schedule)

    scene = _scene(base, made.unet, images, masks, masks if holes is None else holes, prompts)
    scene = scene.rows(range(len(images)) if of is None else of)
    scene = replace(scene, noise=_noise(seeds, scene.background))

    x = scene.background_at(schedule, begin) if begin else scene.blend(scene.noise, schedule, 0)
    before = None
    for step in range(begin, steps):
        clean = schedule.clean(x, unet.predict(x, scene.condition, scene.text, step), step)
        x = scene.blend(schedule.advance(x, clean, before, step), schedule, step + 1)
        before = clean
        if early is not None and step + 1 == choice < steps:
            kept = list(early[1](decode(base, scene.blend(clean, schedule, steps))))
            scene, x, before = scene.rows(kept), x[kept], before[kept]
    return decode(base, x)


def reads_condition(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet is made for inpainting: 9 input channels instead of 4."""
    read, made = int(unet.config["in_channels"]), int(unet.config["out_channels"])
    if read not in (made, 2 * made + 1):
        raise ValueError(
            f"the base's UNet reads {read} channels and predicts {made}; expected {made} (text to image) or "
            f"{2 * made + 1} (inpainting): choose another base"
        )
    return read != made


@dataclass(frozen=True)
class Denoiser:
    """A UNet with classifier-free guidance (Ho and Salimans, 2022) at some levels and without at the others.

    `unconditional` is the empty prompt's embedding, (1, L, D).
    """

    unet: UNet2DConditionModel
    unconditional: torch.Tensor
    guidance: float
    guided: tuple[float, float]
    schedule: Schedule

    def predict(self, x: torch.Tensor, condition: torch.Tensor | None, text: torch.Tensor, step: int) -> torch.Tensor:
        """What the UNet predicts (ε or v) of every row at a level, float32."""
        seen = x if condition is None else torch.cat([x, condition], dim=1)
        if not self.guides(step):
            return self._run(seen, text, step)
        both = torch.cat([self.unconditional.expand_as(text), text])
        without, prompted = self._run(torch.cat([seen, seen]), both, step).chunk(2)
        return without + self.guidance * (prompted - without)

    def guides(self, step: int) -> bool:
        """Whether guidance is applied at a level."""
        lowest, highest = self.guided
        return self.guidance != 1 and lowest <= self.schedule.share(step) <= highest

    def _run(self, seen: torch.Tensor, text: torch.Tensor, step: int) -> torch.Tensor:
        weight = next(self.unet.parameters())
        time = torch.tensor(self.schedule.times[step], device=seen.device)

        def forward(seen: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            packed = seen.to(weight.dtype, memory_format=torch.channels_last)
            return self.unet(packed, time, text.to(weight.dtype), return_dict=False)[0].float()

        return _by_rows(forward, _unet_rows(seen), seen, text)


def encode(base: Base, images: NDArray[np.uint8]) -> torch.Tensor:
    """`latents.encode` in batches of one size: an image's latent is the same in any company."""
    return _by_rows(lambda some: latents.encode(base, some.numpy()), _vae_rows(base), torch.tensor(images))


def decode(base: Base, latent: torch.Tensor) -> NDArray[np.uint8]:
    """`latents.decode` in batches of one size: a latent's picture is the same in any company."""
    grey = _by_rows(lambda some: torch.from_numpy(latents.decode(base, some)), _vae_rows(base), latent)
    return grey.numpy()


_PLAIN_ATTENTION_TOKENS = 32**2
_lock = threading.Lock()
_quick: "WeakSet[UNet2DConditionModel]" = WeakSet()
_autoencoders: "WeakKeyDictionary[AutoencoderKL, dict[Precision, AutoencoderKL]]" = WeakKeyDictionary()
_embedded: "WeakKeyDictionary[torch.nn.Module, dict[str, torch.Tensor]]" = WeakKeyDictionary()


def autoencoder(vae: AutoencoderKL, precision: Precision) -> AutoencoderKL:
    """A copy with its channels last, a third faster, and in this precision; one a process.

    In bf16 a decoded picture differs from the one in fp32 by at most 2 grey levels (in 1 pixel of 15,000), and takes
    less than half the time.
    """
    with _lock:
        copies = _autoencoders.setdefault(vae, {})
        if precision not in copies:
            other = copy.deepcopy(vae)
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            torch.nn.Module.to(other, dtype)
            for weight in other.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            copies[precision] = other
        return copies[precision]


def _quicker(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet with attention as plain matrix products, where that is quicker: few tokens, on a CPU, in bf16.

    There the fused kernel takes 16 % of the time for 4 % of the work; this makes the whole UNet a tenth faster.
    """
    weight = next(unet.parameters())
    small = int(unet.config["sample_size"]) ** 2 <= _PLAIN_ATTENTION_TOKENS
    if small and weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
        with _lock:
            if unet not in _quick:
                unet.set_attn_processor(AttnProcessor())
                _quick.add(unet)
    return unet


def _scene(
    base: Base,
    unet: UNet2DConditionModel,
    images: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    holes: NDArray[np.bool_],
    prompts: Sequence[str],
) -> _Scene:
    background = encode(base, images)
    return _Scene(
        background,
        torch.zeros_like(background),
        latents.latent_mask(base, masks).to(background.device),
        _condition(base, images, holes) if reads_condition(unet) else None,
        _embed(base, prompts),
    )


def _condition(base: Base, images: NDArray[np.uint8], holes: NDArray[np.bool_]) -> torch.Tensor:
    def of(some: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        return latents.condition(base, some.numpy(), hole.numpy())

    return _by_rows(of, _vae_rows(base), torch.tensor(images), torch.tensor(holes))


def _noise(seeds: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    # Drawn on the CPU, one generator a sample: neither batch nor device decides what a sample looks like.
    shape = like.shape[1:]
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(like.device)


def _embed(base: Base, prompts: Sequence[str]) -> torch.Tensor:
    """Prompt embeddings (B, L, D); each prompt is embedded once a process."""
    with _lock:
        known = _embedded.setdefault(base.text_encoder, {})
        for prompt in prompts:
            if prompt not in known:
                known[prompt] = latents.embed(base, [prompt])
        return torch.cat([known[prompt] for prompt in prompts])


def _unet_rows(like: torch.Tensor) -> int:
    kind = like.device.type
    return max(1, min(_UNET_ROWS[kind], _UNET_LATENT_PX[kind] // like[0, 0].numel()))


def _vae_rows(base: Base) -> int:
    return _VAE_ROWS[next(base.vae.parameters()).device.type]


def _by_rows(call: Callable[..., torch.Tensor], rows: int, *inputs: torch.Tensor) -> torch.Tensor:
    """`call` on exactly `rows` rows at a time; the last rows are filled up with copies, whose results are dropped."""
    count = len(inputs[0])
    index = torch.arange(math.ceil(count / rows) * rows).clamp(max=count - 1)
    return torch.cat([call(*(some[part.to(some.device)] for some in inputs)) for part in index.split(rows)])[:count]
