"""Fine-tuning with LoRA (Hu et al., 2021): low-rank matrices beside the UNet's weights learn one class.

Everything that never changes (latents, inpainting conditions, prompt embeddings) is computed once. Every
random number is a function of the seed and the step, so a run that was killed continues exactly where its
last checkpoint stood.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from numpy.typing import NDArray

from tasks.synthesis.diffusion import adapter_files, cache, examples, latents, lora_state, objective, sample, trainable
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.examples import Example
from tasks.synthesis.diffusion.lora_params import TARGETS, LoraParams, eight_bit_adamw
from tasks.synthesis.diffusion.team import share, split, team

__all__ = ["TARGETS", "Adapter", "Example", "LoraParams", "Preview", "train"]

Preview = Callable[[int, NDArray[np.uint8]], None]
"""Gets a step and samples drawn after it, (N, H, W): the same holes and seeds every time."""

_PREVIEWED = 8
_PREVIEW_STEPS, _PREVIEW_GUIDANCE = 20, 2.0


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: safetensors that diffusers' `load_lora_weights` takes, and how it came about.

    `curve` holds (step, mean training loss since the point before, validation loss or None).
    """

    weights: bytes
    curve: lora_state.Curve
    best_step: int


@dataclass(frozen=True)
class _Run:
    """What stays the same throughout a run. `text` are the embeddings of the prompts, None where these are trained."""

    base: Base
    params: LoraParams
    seed: int
    trained: trainable.Trainable
    scheduler: DDPMScheduler
    learned: examples.Encoded
    held: examples.Encoded | None
    prompts: list[str]
    text: torch.Tensor | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def train(
    base: Base,
    learned: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: LoraParams,
    seed: int,
    checkpoints: lora_state.Checkpoints,
    advance: Callable[[int], None],
    kept: cache.Latents | None = None,
    preview: Preview | None = None,
) -> Adapter:
    """Train an adapter on `learned`; the checkpoint with the lowest loss on `held_out` wins.

    Several processes started by accelerate share the work (see `team`); only the first one saves.

    Args:
        advance: gets the images of each step: `params.steps * params.batch` in all.
        kept: latents and prompt embeddings of earlier runs; None: nothing is kept.
        preview: gets samples every `params.sample_every` steps.

    Raises:
        ValueError: nothing to learn from, this machine cannot do what `params` ask for, or the checkpoint belongs
            to another base, set of examples, seed or parameters.
    """
    if not learned:
        raise ValueError("no examples to train on; expected an image with a lesion in the training split")
    params.check_machine()
    fingerprint = _fingerprint(base, learned, held_out, organ, params, seed)
    held = list(held_out)[:: max(1, math.ceil(len(held_out) / params.validation_examples))]
    run = _prepared(base, learned, held, organ, params, seed, cache.Forgetful() if kept is None else kept)
    weights = run.trained.weights
    state = lora_state.restore(checkpoints.latest(), fingerprint, weights, run.optimizer, run.scaler)
    team().wait()
    if params.ema is not None and not state.average:
        state.average = {name: weight.detach().clone() for name, weight in weights.items()}
    advance(state.step * params.batch)

    while state.step < params.steps:
        state.running.append(_take_step(run, state.step))
        state.step += 1
        _average(state, weights, params.ema)
        last = state.step == params.steps
        if last or state.step % params.validate_every == 0:
            with _replaced(weights, state.average):
                state.note(weights, _validation_loss(run))
        if preview and params.sample_every and state.step % params.sample_every == 0 and team().leads:
            preview(state.step, _samples(run, state.average or weights, held or list(learned), organ))
        if team().leads and (last or state.step % params.checkpoint_every == 0):
            checkpoints.save(state.step, lora_state.pack(state, fingerprint, weights, run.optimizer, run.scaler))
        advance(params.batch)
    return Adapter(adapter_files.write(state.best, run.trained.scales), state.curve, state.best_step)


def _fingerprint(
    base: Base,
    learned: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: LoraParams,
    seed: int,
) -> str:
    """Names everything that decides what a run learns; how often it saves or draws samples does not."""
    decisive = params.model_dump_json(exclude={"checkpoint_every", "sample_every"})
    pixels = [part for example in learned for part in example.parts()]
    unseen = [part for example in held_out for part in example.parts()]
    return lora_state.digest_of(base.digest, organ, decisive, seed, *pixels, "held out", *unseen)


def _prepared(
    base: Base,
    learned: Sequence[Example],
    held: Sequence[Example],
    organ: str,
    params: LoraParams,
    seed: int,
    kept: cache.Latents,
) -> _Run:
    trained = trainable.with_lora(base, params, seed)
    inpaints = sample.reads_condition(trained.unet)
    labels = sorted({example.label for example in (*learned, *held)})
    prompts = [latents.UNCONDITIONAL, *(latents.prompt(organ, label) for label in labels)]
    kind = eight_bit_adamw() if params.optimizer == "adamw8bit" else torch.optim.AdamW
    return _Run(
        base=base,
        params=params,
        seed=seed,
        trained=trained,
        scheduler=sample.training_schedule(base.scheduler_config),
        learned=examples.encode(base, learned, labels, inpaints, kept),
        held=examples.encode(base, held, labels, inpaints, kept) if held else None,
        prompts=prompts,
        text=None if trained.trains_text else cache.embed(base, prompts, kept),
        optimizer=kind(trained.weights.values(), lr=params.learning_rate, weight_decay=params.weight_decay),
        scaler=torch.amp.GradScaler(base.unet.device.type, enabled=params.precision == "fp16"),
    )


def _take_step(run: _Run, step: int) -> float:
    """One step of the optimizer, from gradients of the whole batch; the mean loss."""
    params, weights = run.params, run.trained.weights
    for group in run.optimizer.param_groups:
        group["lr"] = _rate(params, step)
    draw = objective.drawn(run.learned, run.scheduler, params, run.seed, step)
    total = torch.zeros(())
    for rows in split(share(len(draw), team()), params.accumulate):
        loss = _losses(run, run.learned, draw.part(rows)).sum() / len(draw)
        run.scaler.scale(loss).backward()
        total += loss.detach().cpu()
    team().sum_gradients(weights)
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(weights.values(), params.gradient_clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    return float(team().sum(total))


@torch.no_grad()
def _validation_loss(run: _Run) -> float | None:
    """Mean loss over a fixed grid of held-out image, noise and time; None where nothing is held out."""
    if run.held is None:
        return None
    total, count = torch.zeros((), dtype=torch.float64), 0
    draws = objective.validation_draws(run.held, run.scheduler, run.params, run.seed)
    for number, draw in enumerate(draws):
        count += len(draw)
        if number % team().size == team().rank:
            total += _losses(run, run.held, draw).sum().double().cpu()
    return float(team().sum(total)) / count


def _losses(run: _Run, encoded: examples.Encoded, draw: objective.Draw) -> torch.Tensor:
    text = run.text
    if text is None:
        text = latents.hidden_states(run.base.tokenizer, run.trained.text_encoder, run.prompts)
    return objective.losses(run.trained, run.scheduler, encoded, text, run.params, draw)


def _samples(run: _Run, weights: Mapping[str, torch.Tensor], shown: Sequence[Example], organ: str) -> NDArray[np.uint8]:
    """What the adapter makes of up to `_PREVIEWED` examples, drawn as a dataset's samples are."""
    chosen = shown[:: max(1, len(shown) // _PREVIEWED)][:_PREVIEWED]
    seen = [examples.views(example, run.base.px) for example in chosen]
    return sample.inpaint(
        run.base,
        np.stack([(view.images if view.flawed is None else view.flawed)[0] for view in seen]),
        np.stack([view.holes[0] for view in seen]),
        [latents.prompt(organ, example.label) for example in chosen],
        list(range(len(chosen))),
        steps=_PREVIEW_STEPS,
        guidance=_PREVIEW_GUIDANCE,
        strength=1.0 if seen[0].flawed is None else run.params.pair_times[1],
        adapter=adapter_files.write(weights, run.trained.scales),
        precision="fp32" if run.params.precision == "fp32" else "bf16",
    )


def _average(state: lora_state.State, weights: lora_state.Weights, decay: float | None) -> None:
    """Move the average towards the weights, faster in the beginning, when it has seen little."""
    if decay is not None:
        kept = min(decay, (1 + state.step) / (10 + state.step))
        for name, weight in weights.items():
            state.average[name].lerp_(weight.detach(), 1 - kept)


@contextmanager
def _replaced(weights: lora_state.Weights, others: Mapping[str, torch.Tensor]) -> Generator[None]:
    """Put other values in the place of these weights for a while; empty: leave them."""
    own = {name: weights[name].detach().clone() for name in others}
    for name, other in others.items():
        weights[name].data.copy_(other)
    try:
        yield
    finally:
        for name, weight in own.items():
            weights[name].data.copy_(weight)


def _rate(params: LoraParams, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < params.warmup:
        return params.learning_rate * (step + 1) / params.warmup
    progress = (step - params.warmup) / max(1, params.steps - params.warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
