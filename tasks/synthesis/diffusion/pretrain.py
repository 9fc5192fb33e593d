"""Pretraining of the embedded base: an inpainting UNet and its text encoder, on latents of simulated pictures.

One example in two fills the hole around a lesion, so that the lesion grows to the very mask; the others fill holes
in healthy tissue with healthy tissue, so that the prompt counts, and draw whole pictures from the prompt alone.
v-prediction (Salimans & Ho 2022), min-SNR weights (Hang et al. 2023), an exponential average of the weights.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storage.records import Record
from tasks.imaging import dilate
from tasks.synthesis.diffusion import checkpoint, latents, vocabulary
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.checkpoint import moved
from tasks.synthesis.diffusion.lora_state import Checkpoints

FILL_LESION, FILL_HEALTHY, WHOLE, AROUND = range(4)
"""What an example teaches: a lesion in its hole, tissue in a hole, a whole picture, a lesion and its surroundings."""


class UNetParams(Record):
    """How the UNet and the text encoder are built and trained."""

    channels: tuple[int, int, int] = Field(default=(64, 96, 160), description="Channels at the three resolutions.")
    layers: int = Field(default=1, ge=1, le=4, description="Residual blocks a resolution.")
    text_width: int = Field(default=128, ge=16, le=1024, description="Width of the text encoder.")
    text_length: int = Field(default=32, ge=8, le=77, description="Tokens a prompt is padded or cut to.")
    steps: int = Field(default=2400, ge=1, le=10_000_000, description="Training steps.")
    batch: int = Field(default=16, ge=1, le=4096, description="Examples a step.")
    learning_rate: float = Field(default=5e-4, gt=0, le=0.1, description="Peak rate of AdamW, cosine to a twentieth.")
    warmup: int = Field(default=150, ge=0, description="Steps until the peak rate.")
    snr_gamma: float = Field(default=5.0, gt=0, description="Cut of the min-SNR weights.")
    caption_dropout: float = Field(default=0.1, ge=0, le=1, description="Share of prompts replaced by the empty one.")
    lesion_weight: float = Field(default=2.5, ge=0, description="Loss weight inside lesions.")
    hole_weight: float = Field(default=1.5, ge=0, description="Loss weight in the rest of the hole.")
    outside_weight: float = Field(default=0.4, ge=0, description="Loss weight outside the hole.")
    shares: tuple[float, float, float, float] = Field(
        default=(0.52, 0.2, 0.18, 0.1), description="Shares of examples: lesion, healthy, whole picture, surroundings."
    )
    ema: float = Field(default=0.999, ge=0, lt=1, description="Decay of the averaged weights.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between saved states.")


@dataclass(frozen=True)
class Corpus:
    """Pictures to learn from: uint8 (N, H, W), their masks (all False where nothing is outlined), what they show."""

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: Sequence[str]
    organs: Sequence[str]


@dataclass(frozen=True)
class Examples:
    """Encoded corpus: one latent a picture, and for each example what the UNet is conditioned on.

    `latent` (M, C, h, w). For each of N examples: `picture` the row of `latent` that it shows, `condition`
    (N, 1+C, h, w) its mask and masked latent, `weight` (N, 1, h, w) its loss weights, `prompt` a row of `prompts`,
    `teaches` one of the four purposes.
    """

    latent: torch.Tensor
    picture: torch.Tensor
    condition: torch.Tensor
    weight: torch.Tensor
    prompt: torch.Tensor
    teaches: torch.Tensor
    prompts: list[str]


def build(
    params: UNetParams, latent_channels: int, latent_px: int
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Untrained networks in diffusers' layout: a 9-channel inpainting UNet where latents have 4 channels."""
    tokenizer = vocabulary.build(params.text_length)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=params.text_width,
            intermediate_size=2 * params.text_width,
            projection_dim=params.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=params.text_length,
            bos_token_id=cast(int, tokenizer.convert_tokens_to_ids(vocabulary.START)),
            eos_token_id=cast(int, tokenizer.convert_tokens_to_ids(vocabulary.END)),
            pad_token_id=cast(int, tokenizer.convert_tokens_to_ids(vocabulary.END)),
        )
    )
    crossed = "CrossAttn{}Block2D"
    unet = UNet2DConditionModel(
        sample_size=latent_px,
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        block_out_channels=params.channels,
        layers_per_block=params.layers,
        down_block_types=("DownBlock2D", crossed.format("Down"), crossed.format("Down")),
        up_block_types=(crossed.format("Up"), crossed.format("Up"), "UpBlock2D"),
        cross_attention_dim=params.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return unet, text, tokenizer


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion, predicting velocity."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def untrained(vae: AutoencoderKL, params: UNetParams, px: int, seed: int) -> Base:
    """A base around a trained autoencoder whose UNet knows nothing yet."""
    torch.manual_seed(seed)
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    unet, text, tokenizer = build(params, int(vae.config["latent_channels"]), px // factor)
    config = dict(scheduler().config)
    return Base(vae, unet, text, tokenizer, config, digest="untrained", px=px, path=Path())


def prepare(base: Base, corpus: Corpus, params: UNetParams, seed: int, advance: Callable[[int], None]) -> Examples:
    """Encode a corpus and the holes cut into it. `advance` counts pictures."""
    prompts = sorted({latents.prompt(o, label) for o, label in zip(corpus.organs, corpus.labels, strict=True)})
    healthy = {organ: latents.prompt(organ, "normal") for organ in set(corpus.organs)}
    prompts = [latents.UNCONDITIONAL, *sorted({*prompts, *healthy.values()})]
    everywhere = np.ones((1, *corpus.images.shape[1:]), np.bool_)
    blank = latents.condition(base, corpus.images[:1], everywhere)[0]  # the same for every picture
    latent: list[torch.Tensor] = []
    rows: list[tuple[int, torch.Tensor, torch.Tensor, str, int]] = []
    for start in range(0, len(corpus.images), 16):
        part = slice(start, min(start + 16, len(corpus.images)))
        latent.append(latents.encode(base, corpus.images[part]))
        cut = [found for index in range(part.start, part.stop) for found in _cuts(corpus, index, healthy, seed)]
        masks = np.stack([hole for _, hole, _, _ in cut])
        conditions = latents.condition(base, corpus.images[[index for index, *_ in cut]], masks)
        lesions = np.stack([_lesion(corpus, index) for index, *_ in cut])
        weights = _weights(base, conditions[:, :1], lesions, params)
        for (index, _, text, teaches), condition, weight in zip(cut, conditions, weights, strict=True):
            rows.append((index, condition, weight, text, teaches))
        for index in range(part.start, part.stop):
            rows.append((index, blank, torch.ones_like(blank[:1]), _own(corpus, index), WHOLE))
        advance(part.stop - part.start)
    return Examples(
        latent=torch.cat(latent),
        picture=torch.tensor([row[0] for row in rows]),
        condition=torch.stack([row[1] for row in rows]),
        weight=torch.stack([row[2] for row in rows]),
        prompt=torch.tensor([prompts.index(row[3]) for row in rows]),
        teaches=torch.tensor([row[4] for row in rows]),
        prompts=prompts,
    )


def _own(corpus: Corpus, index: int) -> str:
    return latents.prompt(corpus.organs[index], corpus.labels[index])


def _lesion(corpus: Corpus, index: int) -> NDArray[np.bool_]:
    return corpus.masks[index] if corpus.labels[index] not in ("normal", "head") else np.zeros_like(corpus.masks[index])


def _cuts(
    corpus: Corpus, index: int, healthy: dict[str, str], seed: int
) -> list[tuple[int, NDArray[np.bool_], str, int]]:
    """The holes cut into one picture: (picture, hole, prompt, purpose)."""
    rng = np.random.default_rng([seed, 13, index])
    image, organ, label = corpus.images[index], corpus.organs[index], corpus.labels[index]
    own, lesion = _own(corpus, index), _lesion(corpus, index)
    found: list[tuple[int, NDArray[np.bool_], str, int]] = []
    if lesion.any():
        hole = dilate(lesion, latents.HOLE_MARGIN_PX)
        found.append((index, hole, own, FILL_LESION))
        if index % 3 == 0:
            found.append((index, _surroundings(lesion, rng), own, AROUND))
    for _ in range(2 if label == "normal" else 0 if lesion.any() and index % 2 else 1):
        blob = _blob(image.shape[0], rng) & ~dilate(lesion, 6)
        if blob.any():
            found.append((index, blob, own if label == "head" else healthy[organ], FILL_HEALTHY))
    return found


def _blob(px: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random hole like a lesion's: an ellipse with a wandering outline."""
    rows, columns = np.mgrid[0:px, 0:px] / px
    noise = ndimage.gaussian_filter(rng.standard_normal((px, px)), 5)
    a, b = rng.uniform(0.05, 0.22), rng.uniform(0.05, 0.16)
    x, y = rng.uniform(0.15, 0.85), rng.uniform(0.2, 0.75)
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 + 0.25 * noise / noise.std() < 1


def _surroundings(lesion: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A lesion, a ring around it and the zone below that its shadow or enhancement reaches."""
    ring = dilate(lesion, int(rng.integers(5, 13)))
    reach = int(rng.uniform(0.1, 0.6) * len(lesion))
    below = np.maximum.accumulate(lesion, axis=0)
    below[min(len(lesion), int(np.nonzero(lesion.any(1))[0].max()) + reach) :] = False
    return ring | below


def _weights(base: Base, holes: torch.Tensor, lesions: NDArray[np.bool_], params: UNetParams) -> torch.Tensor:
    factor = latents.downsampling(base)
    inside = nn.functional.avg_pool2d(torch.from_numpy(lesions.astype(np.float32))[:, None], factor).to(holes.device)
    weight = params.outside_weight + (params.hole_weight - params.outside_weight) * holes
    return weight + (params.lesion_weight - params.hole_weight) * inside * holes


def train(
    base: Base,
    examples: Examples,
    held_out: Examples,
    params: UNetParams,
    seed: int,
    checkpoints: Checkpoints,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[Base, list[dict[str, float]]]:
    """Train UNet and text encoder, or go on from the last checkpoint: the base of averaged weights, and its losses."""
    unet = cast(UNet2DConditionModel, moved(copy.deepcopy(base.unet), device)).train().requires_grad_(True)
    text = cast(CLIPTextModel, moved(copy.deepcopy(base.text_encoder), device)).train().requires_grad_(True)
    average_unet, average_text = copy.deepcopy(unet).eval(), copy.deepcopy(text).eval()
    optimizer = torch.optim.AdamW(
        [*unet.parameters(), *text.parameters()], params.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    parts = {"unet": unet, "text": text, "average_unet": average_unet, "average_text": average_text}
    done, stored = checkpoint.load(checkpoints, parts, {"adam": optimizer})
    curve: list[dict[str, float]] = json.loads(stored or "[]")
    tokens = _tokens(base.tokenizer, examples.prompts).to(device)
    pools = [(examples.teaches == purpose).nonzero()[:, 0].numpy() for purpose in range(4)]
    signal = scheduler().alphas_cumprod.to(device)
    total = 0.0
    for step in range(done, params.steps):
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _schedule(step, params)
        loss = _loss(unet, text, tokens, _batch(examples, pools, params, seed, step), signal, params, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*unet.parameters(), *text.parameters()], 1.0)
        optimizer.step()
        decay = min(params.ema, (1 + step) / (10 + step))
        _blend(average_unet, unet, decay)
        _blend(average_text, text, decay)
        total += float(loss.detach())
        advance(1)
        if (step + 1) % params.checkpoint_every == 0 or step + 1 == params.steps:
            held = _held_out_loss(average_unet, average_text, tokens, held_out, signal, params, seed, device)
            seen = step % params.checkpoint_every + 1
            curve.append({"step": step + 1, "train": round(total / seen, 5), "held_out": round(held, 5)})
            total = 0.0
            checkpoints.save(step + 1, checkpoint.pack(step + 1, parts, {"adam": optimizer}, json.dumps(curve)))
    trained = replace(base, unet=average_unet.requires_grad_(False), text_encoder=average_text.requires_grad_(False))
    return trained, curve


@dataclass(frozen=True)
class _Batch:
    clean: torch.Tensor
    condition: torch.Tensor
    weight: torch.Tensor
    prompt: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor


def _batch(examples: Examples, pools: list[NDArray[np.int64]], params: UNetParams, seed: int, step: int) -> _Batch:
    rng = np.random.default_rng([seed, 17, step])
    shares = np.array([share if len(pool) else 0.0 for share, pool in zip(params.shares, pools, strict=True)])
    purposes = rng.choice(4, params.batch, p=shares / shares.sum())
    picked = torch.from_numpy(np.array([rng.choice(pools[purpose]) for purpose in purposes]))
    dropped = torch.from_numpy(rng.random(params.batch) < params.caption_dropout)
    # Stratified: every batch sees the whole range of noise levels.
    time = (rng.permutation(params.batch) + rng.random(params.batch)) / params.batch * 1000
    noise = rng.standard_normal((params.batch, *examples.latent.shape[1:]), dtype=np.float32)
    return _Batch(
        clean=examples.latent[examples.picture[picked]],
        condition=examples.condition[picked],
        weight=examples.weight[picked],
        prompt=torch.where(dropped, 0, examples.prompt[picked]),
        noise=torch.from_numpy(noise),
        time=torch.from_numpy(time).long().clamp(0, 999),
    )


def _loss(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokens: torch.Tensor,
    batch: _Batch,
    signal: torch.Tensor,
    params: UNetParams,
    device: torch.device,
) -> torch.Tensor:
    """Weighted squared error of the predicted velocity, one scalar."""
    clean, noise, time = batch.clean.to(device), batch.noise.to(device), batch.time.to(device)
    a = signal[time].sqrt()[:, None, None, None]
    s = (1 - signal[time]).sqrt()[:, None, None, None]
    seen = torch.cat([a * clean + s * noise, batch.condition.to(device)], 1)
    with torch.autocast(device.type, torch.bfloat16):
        words = text(tokens)[0][batch.prompt.to(device)]
        found = unet(seen.contiguous(memory_format=torch.channels_last), time, words, return_dict=False)[0]
    error = (found.float() - (a * noise - s * clean)) ** 2 * batch.weight.to(device)
    snr = signal[time] / (1 - signal[time])
    level = torch.minimum(snr, torch.full_like(snr, params.snr_gamma)) / (snr + 1)
    normal = batch.weight.to(device).mean((1, 2, 3))
    return (error.mean((1, 2, 3)) / normal * level).mean()


@torch.no_grad()
def _held_out_loss(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokens: torch.Tensor,
    held_out: Examples,
    signal: torch.Tensor,
    params: UNetParams,
    seed: int,
    device: torch.device,
) -> float:
    """The training loss on four fixed batches of pictures never trained on, with fixed noise."""
    pools = [(held_out.teaches == purpose).nonzero()[:, 0].numpy() for purpose in range(4)]
    losses = [
        float(_loss(unet, text, tokens, _batch(held_out, pools, params, seed + 1, part), signal, params, device))
        for part in range(4)
    ]
    return float(np.mean(losses))


def _tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    padded = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    return cast(torch.Tensor, padded["input_ids"])


def _schedule(step: int, params: UNetParams) -> float:
    warm = min(1.0, (step + 1) / max(1, params.warmup))
    return warm * (0.05 + 0.475 * (1 + np.cos(np.pi * step / params.steps)))


@torch.no_grad()
def _blend(average: nn.Module, current: nn.Module, decay: float) -> None:
    for mean, value in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def export(base: Base, folder: Path) -> None:
    """Write a base as diffusers' StableDiffusionInpaintPipeline would: fp16 safetensors and configurations."""
    parts: dict[str, Any] = {
        "vae": copy.deepcopy(base.vae).half(),
        "text_encoder": copy.deepcopy(base.text_encoder).half(),
        "tokenizer": base.tokenizer,
        "unet": copy.deepcopy(base.unet).half(),
        "scheduler": DDIMScheduler.from_config(base.scheduler_config),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in ("unet", "vae"):  # diffusers notes where a part was read from: a path of this machine
        file = folder / part / "config.json"
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # transformers would load the text encoder as it is stored, diffusers loads its parts in float32: agree.
    file = folder / "text_encoder" / "config.json"
    config = {**json.loads(file.read_text()), "dtype": "float32"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
