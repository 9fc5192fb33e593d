"""Fine-tuning with LoRA (Hu et al., 2021): low-rank matrices beside the UNet's weights learn what is shown.

How training goes, see `training`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.synthesis.diffusion import adapter_files, cache, examples, latents, lora_state, sample, trainable, training
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.examples import Example
from tasks.synthesis.diffusion.lora_params import TARGETS, LoraParams

__all__ = ["TARGETS", "Adapter", "Example", "LoraParams", "Preview", "train"]

Preview = Callable[[int, NDArray[np.uint8]], None]
"""Gets a step and samples drawn after it, (N, H, W): the same holes and seeds every time."""

PREVIEWED = 8
PREVIEW_STEPS, PREVIEW_GUIDANCE = 20, 2.0


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: safetensors that diffusers' `load_lora_weights` takes, and how it came about.

    `curve` holds (step, mean training loss since the point before, validation loss or None).
    """

    weights: bytes
    curve: lora_state.Curve
    best_step: int


def train(
    base: Base,
    learned: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: LoraParams,
    seed: int,
    checkpoints: lora_state.Checkpoints,
    advance: training.Advance,
    kept: cache.Latents | None = None,
    preview: Preview | None = None,
) -> Adapter:
    """Train an adapter on `learned`; the checkpoint with the lowest loss on `held_out` wins.

    Args:
        kept: latents and prompt embeddings of earlier runs; None: nothing is kept.
        preview: gets samples every `params.sample_every` steps.

    Raises:
        ValueError: nothing to learn from, this machine cannot do what `params` ask for, or the checkpoint belongs
            to another base, set of examples, seed or parameters.
    """
    if not learned:
        raise ValueError("no examples to train on; expected an image with a lesion in the training split")
    params.check_machine()
    trained = trainable.with_lora(base, params, seed)
    decisive = training.fingerprint(learned, held_out, params, base.digest, organ, seed)
    storage = cache.Forgetful() if kept is None else kept
    run = training.prepared(base, trained, learned, held_out, organ, params, seed, storage, decisive)
    previewed = _previewed(training.validated(held_out, params) or learned)

    def sampled(step: int, weights: Mapping[str, torch.Tensor]) -> None:
        if preview is not None:
            preview(step, _samples(base, adapter_files.write(weights, trained.scales), previewed, organ, params))

    state = training.fit(run, checkpoints, advance, sampled)
    return Adapter(adapter_files.write(state.best, trained.scales), state.curve, state.best_step)


def _previewed(shown: Sequence[Example]) -> Sequence[Example]:
    return shown[:: max(1, len(shown) // PREVIEWED)][:PREVIEWED]


def _samples(
    base: Base, adapter: bytes, chosen: Sequence[Example], organ: str, params: LoraParams
) -> NDArray[np.uint8]:
    """What the adapter makes of some examples, drawn as a dataset's samples are."""
    prompts = [latents.prompt(organ, example.label, example.attributes) for example in chosen]
    seeds = list(range(len(chosen)))
    precision = "fp32" if params.precision == "fp32" else "bf16"
    if chosen[0].joint:
        drawn = sample.pictures(
            base,
            prompts,
            seeds,
            steps=PREVIEW_STEPS,
            guidance=PREVIEW_GUIDANCE,
            adapter=adapter,
            precision=precision,
            decode=latents.decode_joint,
        )
        return np.concatenate([drawn[..., 0], drawn[..., 1]], axis=1)
    seen = [examples.views(example, base.px) for example in chosen]
    return sample.inpaint(
        base,
        np.stack([(view.images if view.flawed is None else view.flawed)[0] for view in seen]),
        np.stack([view.holes[0] for view in seen]),
        prompts,
        seeds,
        steps=PREVIEW_STEPS,
        guidance=PREVIEW_GUIDANCE,
        strength=1.0 if seen[0].flawed is None else params.pair_times[1],
        adapter=adapter,
        precision=precision,
    )
