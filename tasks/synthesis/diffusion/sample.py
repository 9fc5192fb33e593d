"""Drawing with a latent diffusion model: whole pictures, or holes with the real background blended in at every step.

Tensors carry their shape: B rows, C latent channels, h w latent pixels, L tokens, D text width.

Kernels round differently by batch size, so every network here sees one batch size only, filled up where rows are
missing: what is drawn depends on image, prompt and seed, and on no neighbour, bit for bit.
"""

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.typing import NDArray

from tasks.synthesis.diffusion import adapters, controlnet, latents
from tasks.synthesis.diffusion.adapters import Precision
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.solver import Schedule, Spacing, noise_schedule

Decode = Callable[[Base, torch.Tensor], NDArray[np.uint8]]
"""Pictures of scaled latents (B, C, h, w): a function of `latents`."""
Keep = Callable[[NDArray[np.uint8]], Sequence[int]]
"""Given what every row shows so far, (B, H, W): the rows worth finishing."""

_UNET_LATENT_PX = {"cpu": 16 * 32**2, "cuda": 16 * 64**2}  # that much in one call keeps the device busy
_UNET_ROWS = {"cpu": 16, "cuda": 64}  # and no more rows than this
_VAE_ROWS = {"cpu": 1, "cuda": 8}  # one picture alone fits the cache of a core


@dataclass(frozen=True)
class Control:
    """What holds whole pictures to masks (B, px, px): a ControlNet's file, see `controlnet.pack`.

    `scale` weighs what it adds. `steps` are the shares of the steps, 0 the first and noisiest, between which it acts,
    as diffusers' `control_guidance_start` and `_end`.
    """

    network: bytes
    masks: NDArray[np.bool_]
    scale: float = 1.0
    steps: tuple[float, float] = (0.0, 1.0)


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


@torch.inference_mode()
def pictures(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    guided: tuple[float, float] = (0.0, 1.0),
    spacing: Spacing = "uniform",
    adapter: bytes | None = None,
    precision: Precision = "fp32",
    control: Control | None = None,
    decode: Decode = latents.decode_colour,
) -> NDArray[np.uint8]:
    """Draw whole pictures, one for each prompt and seed, (B, px, px, 3) or what `decode` makes; px = `base.px`.

    With equal levels (`uniform`) and noise this is what diffusers' StableDiffusionPipeline and, with a 9-channel base,
    StableDiffusionInpaintPipeline with a mask that is everything do with DPMSolverMultistepScheduler; with `control`
    their ControlNet forms. The other arguments are those of `inpaint`.
    """
    made = adapters.fused(base, adapter, precision)
    base = replace(base, text_encoder=made.text_encoder, vae=autoencoder(base.vae, precision))
    schedule = noise_schedule(base.scheduler_config, steps, spacing)
    held = None
    if control is not None:
        held = _Held(controlnet.load(control.network, base, precision), control.scale, control.steps)
    unet = Denoiser(_quicker(made.unet), _embed(base, [latents.UNCONDITIONAL]), guidance, guided, schedule, held)
    text = _embed(base, prompts)
    side = base.px // latents.downsampling(base)
    x = _noise(seeds, torch.empty((0, int(made.unet.config["out_channels"]), side, side), device=text.device))
    condition = None
    if reads_condition(made.unet):
        everything = np.ones((1, base.px, base.px), np.bool_)
        condition = _condition(base, everything.astype(np.uint8), everything).expand(len(x), -1, -1, -1)
    shown = None if control is None else torch.from_numpy(control.masks).to(x.device)
    before = None
    for step in range(steps):
        clean = schedule.clean(x, unet.predict(x, condition, text, step, shown), step)
        x, before = schedule.advance(x, clean, before, step), clean
    drawn = _by_rows(lambda some: torch.from_numpy(decode(base, some)), _vae_rows(base), x)
    return drawn.numpy()


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
class _Held:
    """A ControlNet ready to be called, and where it acts; see `Control`."""

    network: ControlNetModel
    scale: float
    steps: tuple[float, float]

    def acts(self, step: int, of: int) -> bool:
        """Whether a step, of so many, is wholly between the first and the last in which it acts."""
        begin, end = self.steps
        return step / of >= begin and (step + 1) / of <= end


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
    held: _Held | None = None

    def predict(
        self,
        x: torch.Tensor,
        condition: torch.Tensor | None,
        text: torch.Tensor,
        step: int,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the UNet predicts (ε or v) of every row at a level, float32; `masks` (B, px, px) for the ControlNet."""
        seen = x if condition is None else torch.cat([x, condition], dim=1)
        if self.held is None or not self.held.acts(step, len(self.schedule.times)):
            masks = None
        if not self.guides(step):
            return self._run(seen, text, step, masks)
        both = torch.cat([self.unconditional.expand_as(text), text])
        twice = None if masks is None else torch.cat([masks, masks])
        without, prompted = self._run(torch.cat([seen, seen]), both, step, twice).chunk(2)
        return without + self.guidance * (prompted - without)

    def guides(self, step: int) -> bool:
        """Whether guidance is applied at a level."""
        lowest, highest = self.guided
        return self.guidance != 1 and lowest <= self.schedule.share(step) <= highest

    def _run(self, seen: torch.Tensor, text: torch.Tensor, step: int, masks: torch.Tensor | None) -> torch.Tensor:
        weight = next(self.unet.parameters())
        time = torch.tensor(self.schedule.times[step], device=seen.device)

        def forward(seen: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            packed = seen.to(weight.dtype, memory_format=torch.channels_last)
            return self.unet(packed, time, text.to(weight.dtype), return_dict=False)[0].float()

        def controlled(seen: torch.Tensor, text: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            assert self.held is not None
            packed = seen.to(weight.dtype, memory_format=torch.channels_last)
            prompted, shown = text.to(weight.dtype), controlnet.shown(masks, weight.dtype)
            added = controlnet.residuals(self.held.network, packed, time, prompted, shown, self.held.scale)
            return self.unet(packed, time, prompted, return_dict=False, **added)[0].float()

        if masks is None:
            return _by_rows(forward, _unet_rows(seen), seen, text)
        return _by_rows(controlled, _unet_rows(seen), seen, text, masks)


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
