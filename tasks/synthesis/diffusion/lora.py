"""Fine-tuning with LoRA (Hu et al., 2021): low-rank matrices beside the UNet's attention learn one class.

Everything that never changes (latents, inpainting conditions, prompt embeddings) is computed once. Every
random number is a function of the seed and the step, so a run that was killed continues exactly where its
last checkpoint stood.

Min-SNR weighting: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from peft import LoraConfig
from pydantic import Field, model_validator

from storage.records import Record
from tasks.imaging import Grey, Mask, flip
from tasks.synthesis.diffusion import latents, lora_state, sample, window
from tasks.synthesis.diffusion.base import Base

TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "transformer": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
}

_ENCODED_TOGETHER = 8


class LoraParams(Record):
    """How adapters are trained."""

    rank: int = Field(default=8, ge=1, le=256, description="Rank of the low-rank matrices; 4 to 16 suit SD 1.5")
    alpha: int = Field(default=8, ge=1, le=512, description="Weight of the adapter is alpha / rank")
    targets: Literal["attention", "transformer"] = Field(
        default="attention", description="What gets a LoRA: attention alone, or the whole transformer blocks"
    )
    steps: int = Field(default=1000, ge=1, le=1_000_000, description="Optimizer steps")
    batch: int = Field(default=8, ge=1, le=1024, description="Images per step")
    learning_rate: float = Field(
        default=1e-4, gt=0, le=1, description="Peak rate of AdamW: 1e-4 for SD 1.5, about 2e-3 for the embedded base"
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Weight decay of AdamW")
    warmup: int = Field(default=50, ge=0, description="Steps until the peak rate; a cosine to zero follows")
    snr_gamma: float | None = Field(default=5.0, gt=0, description="Min-SNR gamma; null: all noise levels alike")
    caption_dropout: float = Field(
        default=0.1, ge=0, le=1, description="Share of captions dropped, which classifier-free guidance needs"
    )
    lesion_weight: float = Field(
        default=4.0, ge=1, le=100, description="Weight of the loss inside the lesion's hole, against 1 elsewhere"
    )
    gradient_clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient")
    precision: sample.Precision = Field(default="fp32", description="bf16 is faster where the processor has it")
    validate_every: int = Field(default=100, ge=1, description="Steps between two validations on held-out groups")
    validation_examples: int = Field(default=32, ge=1, description="Held-out images a validation uses at most")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between two checkpoints")

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "LoraParams":
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} of {self.steps} steps; expected fewer than steps")
        return self


@dataclass(frozen=True)
class Example:
    """One real image with its lesion, both (H, W), and the label that names its prompt."""

    image: Grey
    mask: Mask
    label: str


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: safetensors that diffusers' `load_lora_weights` takes, and how it came about.

    `curve` holds (step, mean training loss since the point before, validation loss or None).
    """

    weights: bytes
    curve: lora_state.Curve
    best_step: int


@dataclass(frozen=True)
class _Cache:
    """By example and mirroring (N, 2, ...): clean latent, hole at latent resolution, inpainting condition.

    `prompts` are embeddings (P, L, D), the first unconditional; `prompt` says which one an example has, (N,).
    """

    clean: torch.Tensor
    hole: torch.Tensor
    condition: torch.Tensor | None
    prompts: torch.Tensor
    prompt: torch.Tensor


def train(
    base: Base,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: LoraParams,
    seed: int,
    checkpoints: lora_state.Checkpoints,
    advance: Callable[[int], None],
) -> Adapter:
    """Train an adapter on `examples`; the checkpoint with the lowest loss on `held_out` wins.

    `advance` gets the images of each step: `params.steps * params.batch` in all. A checkpoint of another
    base, set of examples, seed or parameters is refused.
    """
    if not examples:
        raise ValueError("no examples to train on; expected an image with a lesion in the training split")
    fingerprint = _fingerprint(base, examples, held_out, organ, params, seed)
    unet, trained = _with_lora(base, params, seed)
    optimizer = torch.optim.AdamW(trained.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    state = lora_state.restore(checkpoints.latest(), fingerprint, trained, optimizer)
    advance(state.step * params.batch)
    scheduler = sample.training_schedule(base.scheduler_config)
    cache = _fill(base, unet, examples, organ)
    held = list(held_out)[:: max(1, math.ceil(len(held_out) / params.validation_examples))]
    held_cache = _fill(base, unet, held, organ) if held else None

    while state.step < params.steps:
        for group in optimizer.param_groups:
            group["lr"] = _rate(params, state.step)
        loss = _training_loss(unet, scheduler, cache, params, seed, state.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), params.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        state.running.append(float(loss.detach()))
        last = state.step == params.steps
        if last or state.step % params.validate_every == 0:
            state.note(trained, _validation_loss(unet, scheduler, held_cache, params, seed))
        if last or state.step % params.checkpoint_every == 0:
            checkpoints.save(state.step, lora_state.pack(state, fingerprint, trained, optimizer))
        advance(params.batch)
    weights = lora_state.export(state.best, params.alpha / params.rank)
    return Adapter(weights, state.curve, state.best_step)


def _fingerprint(
    base: Base,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: LoraParams,
    seed: int,
) -> str:
    """Names everything that decides what a run learns; how often it saves does not."""
    decisive = params.model_dump_json(exclude={"checkpoint_every"})
    pixels = [
        part
        for example in (*examples, None, *held_out)
        for part in (
            (example.image.shape, example.image.tobytes(), example.mask.tobytes(), example.label)
            if example
            else ("held out",)
        )
    ]
    return lora_state.digest_of(base.digest, organ, decisive, seed, *pixels)


def _with_lora(base: Base, params: LoraParams, seed: int) -> tuple[UNet2DConditionModel, dict[str, torch.nn.Parameter]]:
    """A copy of the UNet with fresh LoRA matrices, and these by name. The base itself is not touched."""
    unet = copy.deepcopy(base.unet)
    unet.requires_grad_(False)
    if params.precision == "bf16":
        torch.nn.Module.to(unet, torch.bfloat16)  # diffusers wraps `to` in a way that hides its type
    unet.add_adapter(LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=TARGETS[params.targets]))
    trained = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    generator = torch.Generator().manual_seed(seed)
    for name, weight in trained.items():  # peft drew from the process-wide generator, which threads share
        start = torch.zeros(weight.shape)
        if ".lora_A." in name:
            start = torch.randn(weight.shape, generator=generator) / params.rank
        weight.data = start.to(weight.device)
    return unet, trained


@torch.no_grad()
def _fill(base: Base, unet: UNet2DConditionModel, examples: Sequence[Example], organ: str) -> _Cache:
    """Encode everything once, each pair also mirrored. Image and mask are cut and mirrored together."""
    inpaints = sample.reads_condition(unet)
    clean: list[torch.Tensor] = []
    holes: list[torch.Tensor] = []
    conditions: list[torch.Tensor] = []
    for start in range(0, len(examples), _ENCODED_TOGETHER):
        pairs = [views(example, base.px) for example in examples[start : start + _ENCODED_TOGETHER]]
        images, masks = (np.concatenate(part) for part in zip(*pairs, strict=True))
        clean.append(latents.encode(base, images))
        holes.append(latents.latent_mask(base, masks))
        if inpaints:
            conditions.append(latents.condition(base, images, masks))
    labels = sorted({example.label for example in examples})
    prompts = [latents.UNCONDITIONAL, *(latents.prompt(organ, label) for label in labels)]
    return _Cache(
        clean=torch.cat(clean).unflatten(0, (-1, 2)),
        hole=torch.cat(holes).unflatten(0, (-1, 2)),
        condition=torch.cat(conditions).unflatten(0, (-1, 2)) if inpaints else None,
        prompts=latents.embed(base, prompts),
        prompt=torch.tensor([1 + labels.index(example.label) for example in examples]),
    )


def views(example: Example, px: int) -> tuple[np.ndarray, np.ndarray]:
    """What a model of `px` pixels is shown of an example, plain and mirrored: images, holes (2, px, px)."""
    if not example.mask.any():
        raise ValueError("an example has a blank mask; expected a lesion: leave healthy images out")
    view = window.around(window.hole(example.mask, px), px)
    image, hole = window.cut(example.image, view), window.hole(window.cut_mask(example.mask, view), px)
    mirrored, mirrored_hole = flip(image, hole)
    assert mirrored_hole is not None
    return np.stack([image, mirrored]), np.stack([hole, mirrored_hole])


def _training_loss(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    cache: _Cache,
    params: LoraParams,
    seed: int,
    step: int,
) -> torch.Tensor:
    count = len(cache.prompt)
    first = step * params.batch
    chosen = [_shuffled(seed, index, count) for index in range(first, first + params.batch)]
    rng = np.random.default_rng([seed, 1, step])
    mirrored = rng.integers(0, 2, params.batch).tolist()
    dropped = rng.random(params.batch) < params.caption_dropout
    steps_total = int(scheduler.config["num_train_timesteps"])
    # Stratified: every batch sees the whole range of noise levels, which steadies the gradient.
    shares = (rng.permutation(params.batch) + rng.random(params.batch)) / params.batch
    times = torch.from_numpy((shares * steps_total).astype(np.int64))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    noise = torch.randn((params.batch, *cache.clean.shape[2:]), generator=generator)
    return _loss(unet, scheduler, cache, params, chosen, mirrored, dropped, times, noise).mean()


@torch.no_grad()
def _validation_loss(
    unet: UNet2DConditionModel, scheduler: DDPMScheduler, held: _Cache | None, params: LoraParams, seed: int
) -> float | None:
    """Mean loss over a fixed grid of held-out image, noise and time; None where nothing is held out."""
    if held is None:
        return None
    count, levels = len(held.prompt), 4
    steps_total = int(scheduler.config["num_train_timesteps"])
    generator = torch.Generator().manual_seed(seed)
    losses: list[torch.Tensor] = []
    for start in range(0, count, params.batch):
        chosen = list(range(start, min(count, start + params.batch)))
        for level in range(levels):
            times = torch.full((len(chosen),), int((level + 0.5) / levels * steps_total))
            noise = torch.randn((len(chosen), *held.clean.shape[2:]), generator=generator)
            kept = np.zeros(len(chosen), np.bool_)
            mirrored = [0] * len(chosen)
            losses.append(_loss(unet, scheduler, held, params, chosen, mirrored, kept, times, noise))
    return float(torch.cat(losses).mean())


def _loss(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    cache: _Cache,
    params: LoraParams,
    chosen: list[int],
    mirrored: list[int],
    dropped: np.ndarray,
    times: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Weighted squared error (B,) of the UNet's prediction."""
    clean = cache.clean[chosen, mirrored]
    device = clean.device
    times, noise = times.to(device), noise.to(device)
    noisy = scheduler.add_noise(clean, noise, cast(torch.IntTensor, times))
    text = cache.prompts[cache.prompt[chosen].masked_fill(torch.from_numpy(dropped), 0)]
    if cache.condition is not None:
        noisy = torch.cat([noisy, cache.condition[chosen, mirrored]], dim=1)
    half = params.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        predicted = unet(noisy, times, text, return_dict=False)[0].float()
    by_velocity = scheduler.config["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(clean, noise, cast(torch.IntTensor, times)) if by_velocity else noise
    hole = cache.hole[chosen, mirrored].to(device)
    weight = 1 + (params.lesion_weight - 1) * hole
    error = ((predicted - target) ** 2).mean(dim=1, keepdim=True)
    per_sample = (error * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1)
    return per_sample * _snr_weight(scheduler, times, params.snr_gamma, by_velocity)


def _snr_weight(scheduler: DDPMScheduler, times: torch.Tensor, gamma: float | None, by_velocity: bool) -> torch.Tensor:
    """Min-SNR weights (B,): the loss of x0 weighted by min(snr, gamma), put in terms of what is predicted."""
    if gamma is None:
        return torch.ones(len(times), device=times.device)
    kept = scheduler.alphas_cumprod.to(times.device)[times]
    snr = (kept / (1 - kept)).clamp(min=1e-8)
    return snr.clamp(max=gamma) / (snr + 1 if by_velocity else snr)


def _rate(params: LoraParams, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < params.warmup:
        return params.learning_rate * (step + 1) / params.warmup
    progress = (step - params.warmup) / max(1, params.steps - params.warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _shuffled(seed: int, index: int, count: int) -> int:
    """The example at `index` of an endless stream in which every epoch is a new permutation."""
    epoch, position = divmod(index, count)
    return int(np.random.default_rng([seed, 0, epoch]).permutation(count)[position])
