"""The training that adapters and ControlNets share: something beside frozen networks learns to denoise examples.

Everything that never changes (latents, inpainting conditions, prompt embeddings) is computed once. Every
random number is a function of the seed and the step, so a run that was killed continues exactly where its
last checkpoint stood.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from tasks.synthesis.diffusion import cache, examples, latents, lora_state, objective, sample, solver
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.examples import Example
from tasks.synthesis.diffusion.team import share, split, team
from tasks.synthesis.diffusion.trainable import Trainable
from tasks.synthesis.diffusion.training_params import TrainingParams, eight_bit_adamw

Advance = Callable[[int], None]
"""Gets the images of each step: `params.steps * params.batch` in all."""
Sampled = Callable[[int, Mapping[str, torch.Tensor]], None]
"""Gets a step and the weights after it, to draw samples with."""


@dataclass(frozen=True)
class Run:
    """What stays the same throughout a run. `text` are the embeddings of the prompts, None where these are trained;
    `fingerprint` names everything that decides what is learned."""

    base: Base
    params: TrainingParams
    seed: int
    trained: Trainable
    scheduler: DDPMScheduler
    learned: examples.Encoded
    held: examples.Encoded | None
    prompts: list[str]
    text: torch.Tensor | None
    fingerprint: str


def prepared(
    base: Base,
    trained: Trainable,
    learned: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: TrainingParams,
    seed: int,
    kept: cache.Latents,
    fingerprint: str,
) -> Run:
    """Encode all examples; of those held out, as many as `params` validates with."""
    held = validated(held_out, params)
    words = sorted({example.words for example in (*learned, *held)})
    prompts = [latents.UNCONDITIONAL, *(latents.prompt(organ, label, attributes) for label, *attributes in words)]
    inpaints = sample.reads_condition(trained.unet)
    adapted = replace(base, text_encoder=trained.text_encoder)
    return Run(
        base=base,
        params=params,
        seed=seed,
        trained=trained,
        scheduler=solver.training_schedule(base.scheduler_config),
        learned=examples.encode(base, learned, words, inpaints, kept),
        held=examples.encode(base, held, words, inpaints, kept) if held else None,
        prompts=prompts,
        text=None if trained.trains_text else cache.embed(adapted, prompts, kept),
        fingerprint=fingerprint,
    )


def validated(held_out: Sequence[Example], params: TrainingParams) -> list[Example]:
    """The held-out examples that validations use: all, or evenly spaced ones."""
    return list(held_out)[:: max(1, math.ceil(len(held_out) / params.validation_examples))]


def fingerprint(
    learned: Sequence[Example], held_out: Sequence[Example], params: TrainingParams, *others: object
) -> str:
    """Names everything that decides what a run learns; how often it saves or draws samples does not."""
    decisive = params.model_dump_json(exclude={"checkpoint_every", "sample_every"})
    pixels = [part for example in learned for part in example.parts()]
    unseen = [part for example in held_out for part in example.parts()]
    return lora_state.digest_of(*others, decisive, *pixels, "held out", *unseen)


def fit(
    run: Run, checkpoints: lora_state.Checkpoints, advance: Advance, sampled: Sampled | None = None
) -> lora_state.State:
    """Train; the weights with the lowest validation loss are the state's best.

    Several processes started by accelerate share the work (see `team`); only the first one saves.

    Raises:
        ValueError: the checkpoint belongs to another run.
    """
    params, weights = run.params, run.trained.weights
    kind = eight_bit_adamw() if params.optimizer == "adamw8bit" else torch.optim.AdamW
    optimizer = kind(weights.values(), lr=_rate(run, 0), weight_decay=params.weight_decay)
    scaler = torch.amp.GradScaler(run.base.unet.device.type, enabled=params.precision == "fp16")
    state = lora_state.restore(checkpoints.latest(), run.fingerprint, weights, optimizer, scaler)
    team().wait()
    if params.ema is not None and not state.average:
        state.average = {name: weight.detach().clone() for name, weight in weights.items()}
    advance(state.step * params.batch)

    while state.step < params.steps:
        state.running.append(_take_step(run, optimizer, scaler, state.step))
        state.step += 1
        _average(state, weights, params.ema)
        last = state.step == params.steps
        if last or state.step % params.validate_every == 0:
            with _replaced(weights, state.average):
                state.note(weights, _validation_loss(run))
        if sampled and params.sample_every and state.step % params.sample_every == 0 and team().leads:
            sampled(state.step, state.average or weights)
        if team().leads and (last or state.step % params.checkpoint_every == 0):
            checkpoints.save(state.step, lora_state.pack(state, run.fingerprint, weights, optimizer, scaler))
        advance(params.batch)
    return state


def _take_step(run: Run, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int) -> float:
    """One step of the optimizer, from gradients of the whole batch; the mean loss."""
    params, weights = run.params, run.trained.weights
    for group in optimizer.param_groups:
        group["lr"] = _rate(run, step)
    draw = objective.drawn(run.learned, run.scheduler, params, run.seed, step)
    total = torch.zeros(())
    for rows in split(share(len(draw), team()), params.accumulate):
        loss = _losses(run, run.learned, draw.part(rows)).sum() / len(draw)
        scaler.scale(loss).backward()
        total += loss.detach().cpu()
    team().sum_gradients(weights)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(weights.values(), params.gradient_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return float(team().sum(total))


@torch.no_grad()
def _validation_loss(run: Run) -> float | None:
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


def _losses(run: Run, encoded: examples.Encoded, draw: objective.Draw) -> torch.Tensor:
    text = run.text
    if text is None:
        text = latents.hidden_states(run.base.tokenizer, run.trained.text_encoder, run.prompts)
    return objective.losses(run.trained, run.scheduler, encoded, text, run.params, draw)


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


def _rate(run: Run, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    params, peak = run.params, run.params.rate(max(run.base.unet.config["block_out_channels"]))
    if step < params.warmup:
        return peak * (step + 1) / params.warmup
    progress = (step - params.warmup) / max(1, params.steps - params.warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
