"""The loss in training: what the UNet is shown, what it should predict, and how much each error counts.

Shapes: B batch, C latent channels, h w latent pixels, L tokens, D width of the text encoder.

Sources: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023; Guttenberg, "Diffusion with
Offset Noise", 2023.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from numpy.typing import NDArray

from tasks.synthesis.diffusion.examples import Encoded
from tasks.synthesis.diffusion.trainable import DTYPES, Trainable
from tasks.synthesis.diffusion.training_params import TrainingParams

VALIDATION_LEVELS = 4


@dataclass(frozen=True)
class Draw:
    """What a batch consists of (B,): examples, whether mirrored (0, 1), without caption, times, noise (B, C, h, w)."""

    chosen: NDArray[np.int64]
    mirrored: NDArray[np.int64]
    dropped: NDArray[np.bool_]
    times: torch.Tensor
    noise: torch.Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, rows: slice) -> "Draw":
        """Some of it."""
        return Draw(self.chosen[rows], self.mirrored[rows], self.dropped[rows], self.times[rows], self.noise[rows])


def drawn(examples: Encoded, scheduler: DDPMScheduler, params: TrainingParams, seed: int, step: int) -> Draw:
    """The batch of a step: a function of the seed and the step, and of nothing that came before."""
    first = step * params.batch
    chosen = np.array([_shuffled(seed, index, len(examples)) for index in range(first, first + params.batch)])
    rng = np.random.default_rng([seed, 1, step])
    mirrored = rng.integers(0, 2, params.batch)
    dropped = rng.random(params.batch) < params.caption_dropout
    # Stratified: every batch sees the whole range of noise levels, which steadies the gradient.
    shares = (rng.permutation(params.batch) + rng.random(params.batch)) / params.batch
    times = _times(shares, examples.paired[chosen], scheduler, params)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    shape = (params.batch, *examples.clean.shape[2:])
    noise = torch.randn(shape, generator=generator)
    if params.noise_offset:
        noise = noise + params.noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    return Draw(chosen, mirrored, dropped, times, noise)


def validation_draws(held: Encoded, scheduler: DDPMScheduler, params: TrainingParams, seed: int) -> Iterator[Draw]:
    """A fixed grid of held-out image, noise and time, the same at every validation."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(held), params.batch):
        chosen = np.arange(start, min(len(held), start + params.batch))
        for level in range(VALIDATION_LEVELS):
            shares = np.full(len(chosen), (level + 0.5) / VALIDATION_LEVELS)
            times = _times(shares, held.paired[chosen], scheduler, params)
            noise = torch.randn((len(chosen), *held.clean.shape[2:]), generator=generator)
            yield Draw(chosen, np.zeros_like(chosen), np.zeros(len(chosen), np.bool_), times, noise)


def losses(
    trained: Trainable,
    scheduler: DDPMScheduler,
    examples: Encoded,
    text: torch.Tensor,
    params: TrainingParams,
    draw: Draw,
) -> torch.Tensor:
    """Weighted squared error (B,) of the UNet's prediction.

    `text` (1 + labels, L, D) are the embeddings of the empty prompt and of each label's.
    """
    device, dtype = examples.clean.device, DTYPES[params.precision]
    clean = examples.clean[draw.chosen, draw.mirrored]
    start = examples.start[draw.chosen, draw.mirrored]
    times, noise = draw.times.to(device), draw.noise.to(device)
    noisy = scheduler.add_noise(start, noise, cast(torch.IntTensor, times))
    shown = noisy
    if examples.condition is not None:
        shown = torch.cat([noisy, examples.condition[draw.chosen, draw.mirrored]], dim=1)
    prompt = (1 + examples.label[draw.chosen]).masked_fill(torch.from_numpy(draw.dropped), 0)
    shown = shown.to(dtype, memory_format=torch.channels_last)
    control = None if examples.control is None else examples.control[draw.chosen, draw.mirrored].to(device)
    predicted = trained.predict(shown, times, text[prompt.to(device)].to(dtype), control).float()
    by_velocity = scheduler.config["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(clean, noise, cast(torch.IntTensor, times)) if by_velocity else noise
    paired = examples.paired[draw.chosen]
    if paired.any():
        mended = target_of_pair(scheduler, noisy, clean, times, by_velocity)
        target = torch.where(torch.from_numpy(paired).to(device).view(-1, 1, 1, 1), mended, target)
    weight = 1 + (params.lesion_weight - 1) * examples.hole[draw.chosen, draw.mirrored]
    error = ((predicted - target) ** 2).mean(dim=1, keepdim=True)
    per_sample = (error * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1)
    return per_sample * _snr_weight(scheduler, times, params.snr_gamma, by_velocity)


def target_of_pair(
    scheduler: DDPMScheduler, noisy: torch.Tensor, clean: torch.Tensor, times: torch.Tensor, by_velocity: bool
) -> torch.Tensor:
    """What has to be predicted from a noisy flawed latent so that it stands for the clean one.

    With x = a · start + s · ε, the clean latent that v stands for is a · x - s · v, that of ε (x - s · ε) / a.
    """
    kept = scheduler.alphas_cumprod.to(noisy.device)[times].view(-1, 1, 1, 1)
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    return (signal * noisy - clean) / noise if by_velocity else (noisy - signal * clean) / noise


def _times(
    shares: NDArray[np.float64], paired: NDArray[np.bool_], scheduler: DDPMScheduler, params: TrainingParams
) -> torch.Tensor:
    low, high = params.times_of_pairs
    total = int(scheduler.config["num_train_timesteps"])
    within = np.where(paired, low + shares * (high - low), shares)
    return torch.from_numpy((within * total).astype(np.int64))


def _snr_weight(scheduler: DDPMScheduler, times: torch.Tensor, gamma: float | None, by_velocity: bool) -> torch.Tensor:
    """Min-SNR weights (B,): the loss of x0 weighted by min(snr, gamma), put in terms of what is predicted."""
    if gamma is None:
        return torch.ones(len(times), device=times.device)
    kept = scheduler.alphas_cumprod.to(times.device)[times]
    snr = (kept / (1 - kept)).clamp(min=1e-8)
    return snr.clamp(max=gamma) / (snr + 1 if by_velocity else snr)


def _shuffled(seed: int, index: int, count: int) -> int:
    """The example at `index` of an endless stream in which every epoch is a new permutation."""
    epoch, position = divmod(index, count)
    return int(np.random.default_rng([seed, 0, epoch]).permutation(count)[position])
