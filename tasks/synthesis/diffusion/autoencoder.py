"""The small KL autoencoder: 128 px pictures to 4 x 32 x 32 latents, trained not to wipe speckle out.

Absolute error alone is smallest for the mean of all speckle patterns that a latent could stand for, which is a blur.
Two more terms hold the texture up: the log amplitude of short-time spectra, blind to the phase that four numbers
for sixteen pixels cannot carry, and from half-way on a patch discriminator (Esser et al. 2021, taming transformers,
with its adaptive weight). `decoder.tune` then improves the decoder alone.
"""

import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from storage.records import Record
from tasks.synthesis.diffusion import checkpoint, texture
from tasks.synthesis.diffusion.checkpoint import moved
from tasks.synthesis.diffusion.lora_state import Checkpoints


class AutoencoderParams(Record):
    """How the autoencoder is built and trained."""

    channels: tuple[int, int, int] = Field(
        default=(32, 64, 128), description="Channels at full, half and quarter size."
    )
    latent_channels: int = Field(default=4, ge=2, le=16, description="Latent channels; Stable Diffusion has 4.")
    steps: int = Field(default=1400, ge=1, le=1_000_000, description="Training steps.")
    batch: int = Field(default=16, ge=1, le=512, description="Crops a step.")
    crop: int = Field(default=64, ge=32, le=512, multiple_of=16, description="Side of the training crops, pixels.")
    learning_rate: float = Field(default=6e-4, gt=0, le=0.1, description="Peak rate of AdamW, cosine to a tenth.")
    spectrum: float = Field(default=0.1, ge=0, le=10, description="Weight of the short-time spectrum's log amplitude.")
    adversary: float = Field(default=0.5, ge=0, le=10, description="Weight of the discriminator, in gradient norm.")
    adversary_from: float = Field(default=0.45, ge=0, le=1, description="Share of the steps after which it sets in.")
    kl: float = Field(default=1e-6, ge=0, le=1, description="Weight of the KL term.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between saved states.")


def build(params: AutoencoderParams, px: int) -> AutoencoderKL:
    """An untrained autoencoder in diffusers' layout."""
    config: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": params.channels,
        "layers_per_block": 1,
        "latent_channels": params.latent_channels,
        "norm_num_groups": 8,
        "sample_size": px,
        "mid_block_add_attention": False,  # costs a third of the time at 128 px and changes little
        "scaling_factor": 1.0,
    }
    return AutoencoderKL(**config)


class Critic(nn.Module):
    """Judges patches of about 22 px, real or decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.GroupNorm(8, 64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 96, 3, 1, 1),
            nn.GroupNorm(8, 96),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, 1, 3, 1, 1),
        )

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        """One logit a patch; positive means real."""
        return self.layers(grey)


def train(
    images: NDArray[np.uint8],
    params: AutoencoderParams,
    seed: int,
    checkpoints: Checkpoints,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[AutoencoderKL, list[dict[str, float]]]:
    """Train, or go on from the last checkpoint; the autoencoder with its scaling factor set, and the loss curve."""
    torch.manual_seed(seed)
    vae = cast(AutoencoderKL, moved(build(params, images.shape[1]), device))
    critic = moved(Critic(), device)
    optimizer = torch.optim.AdamW(vae.parameters(), params.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    rival = torch.optim.AdamW(critic.parameters(), 0.5 * params.learning_rate, betas=(0.5, 0.9), weight_decay=1e-4)
    parts, optimizers = {"vae": vae, "critic": critic}, {"vae_adam": optimizer, "critic_adam": rival}
    done, stored = checkpoint.load(checkpoints, parts, optimizers)
    curve: list[dict[str, float]] = json.loads(stored or "[]")
    sums: dict[str, float] = {}
    for step in range(done, params.steps):
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _schedule(step, params)
        drawn = texture.crops(images, params.crop, params.batch, np.random.default_rng([seed, 11, step]))
        real = drawn.to(device).contiguous(memory_format=torch.channels_last)
        adversarial = step >= params.adversary_from * params.steps
        noise = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        losses = _step(vae, critic, optimizer, rival, real, params, adversarial, noise)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value
        advance(1)
        if (step + 1) % params.checkpoint_every == 0 or step + 1 == params.steps:
            seen = (step % params.checkpoint_every) + 1
            curve.append({"step": step + 1, **{name: round(value / seen, 5) for name, value in sums.items()}})
            sums = {}
            checkpoints.save(step + 1, checkpoint.pack(step + 1, parts, optimizers, json.dumps(curve)))
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=_scale(vae, images, device))
    return vae, curve


def _step(
    vae: AutoencoderKL,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    rival: torch.optim.Optimizer,
    real: torch.Tensor,
    params: AutoencoderParams,
    adversarial: bool,
    noise: torch.Generator,
) -> dict[str, float]:
    with torch.autocast(real.device.type, torch.bfloat16):
        posterior = vae.encode(real.expand(-1, 3, -1, -1), return_dict=False)[0]
        latent = posterior.sample(noise)
        decoded = vae.decode(cast(torch.FloatTensor, latent), return_dict=False)[0]
    fake = decoded.float().mean(1, keepdim=True)
    absolute = (fake - real).abs().mean()
    spectrum = texture.spectral_distance(fake, real)
    loss = absolute + params.spectrum * spectrum + params.kl * posterior.kl().mean()
    losses = {"absolute": float(absolute.detach()), "spectrum": float(spectrum.detach())}
    if adversarial:
        with torch.autocast(real.device.type, torch.bfloat16):
            verdict = critic(fake)
        fooled = -verdict.float().mean()
        last = vae.decoder.conv_out.weight
        pull = torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        push = torch.autograd.grad(fooled, last, retain_graph=True)[0].norm()
        loss = loss + params.adversary * (pull / (push + 1e-6)).clamp(0, 10).detach() * fooled
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    if adversarial:
        with torch.autocast(real.device.type, torch.bfloat16):
            on_real, on_fake = critic(real), critic(fake.detach())
        hinge = F.relu(1 - on_real.float()).mean() + F.relu(1 + on_fake.float()).mean()
        rival.zero_grad(set_to_none=True)
        hinge.backward()
        rival.step()
        losses["critic"] = float(hinge.detach())
    return losses


def _schedule(step: int, params: AutoencoderParams) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    return min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + np.cos(np.pi * step / params.steps)))


@torch.no_grad()
def _scale(vae: AutoencoderKL, images: NDArray[np.uint8], device: torch.device) -> float:
    """One over the latents' standard deviation, so that the diffusion model sees unit variance."""
    some = torch.from_numpy(images[:: max(1, len(images) // 128)][:128].astype(np.float32)).to(device) / 127.5 - 1
    latents = [vae.encode(part[:, None].expand(-1, 3, -1, -1), return_dict=False)[0].mode() for part in some.split(16)]
    return round(float(1 / torch.cat(latents).std()), 5)
