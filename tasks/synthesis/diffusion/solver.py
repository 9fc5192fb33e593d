"""The noise levels that a sampler visits, and its steps between them: DPM-Solver++(2M)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from numpy.typing import NDArray

SAMPLER = "DPM-Solver++(2M)"
"""Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022."""

Spacing = Literal["uniform", "karras"]

_KARRAS_RHO = 7.0


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
