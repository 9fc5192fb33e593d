"""LoRA training here against the loop of diffusers' text-to-image example: same base, images, steps and objective.

The peer is `examples/text_to_image/train_text_to_image_lora.py` of diffusers, written out: fp32, the autoencoder and
the text encoder run in every step, nothing is cached, peft puts rank-r matrices beside to_q, to_k, to_v and to_out.0,
AdamW, gradient clipping, a cosine after a warm-up, random mirroring, torch's own random numbers. Added for a base that
inpaints: the mask and the latent of the masked image, made as diffusers' inpainting pipeline makes them. Left out:
accelerate, which in one process changes nothing.

Here: bf16, latents and prompts encoded once (inside the measured time), matrices merged into the weights. The
objective is the peer's for both: plain squared error, no caption dropped. Both adapters are scored in float32 by one
fixed grid of held-out images, noises and times.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from rich.console import Console

from benchmarks.ratios import Ratio, main, paired
from tasks.sources import phantom
from tasks.synthesis.diffusion import adapters, cache, examples, latents, lora, objective, sample, solver, trainable
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion.adapter_files import write
from tasks.synthesis.diffusion.base import Base

RANK, RATE, BATCH, ORGAN = 8, 2e-3, 8, "breast"
GOAL = 3.0


@dataclass(frozen=True)
class Trained:
    """An adapter, the seconds it took, and the images it saw."""

    adapter: bytes
    seconds: float
    images: int


class _Nowhere:
    def save(self, step: int, data: bytes) -> None: ...

    def latest(self) -> None:
        return None


def measure(quick: bool) -> list[Ratio]:
    """Train both ways with every seed, one after the other, and compare speed and validation loss."""
    base = bases.load("embedded")
    steps, count, seeds = (10, 16, 3) if quick else (60, 96, 3)
    learned, held = _lesions(base, count, 1), _lesions(base, 8 if quick else 32, 2)
    score = _Score(base, held)
    speeds: list[float] = []
    ours: list[Trained] = []
    theirs: list[Trained] = []
    for seed in range(seeds):
        ours.append(_ours(base, learned, steps, seed))
        theirs.append(_theirs(base, learned, steps, seed))
        speeds.append(theirs[-1].seconds / ours[-1].seconds)
    losses = [score(each.adapter) for each in ours], [score(each.adapter) for each in theirs]
    _explain(base, learned, ours, theirs, losses, score(None))
    differences = [mine / their for mine, their in zip(*losses, strict=True)]
    return [
        paired("LoRA images/s, ours / diffusers' example", GOAL, speeds),
        paired("validation loss of the adapter, ours / diffusers' example (1 is equal)", 1.0, differences),
    ]


def _lesions(base: Base, count: int, seed: int) -> list[lora.Example]:
    made: list[lora.Example] = []
    for patient in range(count):
        drawn = phantom.draw("malignant", seed, patient, 0, base.px)
        assert drawn.mask is not None
        made.append(lora.Example(drawn.image, drawn.mask, "malignant"))
    return made


def _params(steps: int) -> lora.LoraParams:
    return lora.LoraParams(
        rank=RANK,
        alpha=RANK,
        steps=steps,
        batch=BATCH,
        learning_rate=RATE,
        warmup=min(20, steps // 5),
        snr_gamma=None,
        caption_dropout=0,
        lesion_weight=1,
        precision="bf16",
        validate_every=steps,
        checkpoint_every=steps,
    )


def _ours(base: Base, learned: Sequence[lora.Example], steps: int, seed: int) -> Trained:
    begin = time.perf_counter()
    adapter = lora.train(base, learned, [], ORGAN, _params(steps), seed, _Nowhere(), lambda _: None)
    return Trained(adapter.weights, time.perf_counter() - begin, steps * BATCH)


def _theirs(base: Base, learned: Sequence[lora.Example], steps: int, seed: int) -> Trained:
    """The example's loop; names as in the example where it has them."""
    seen = [examples.views(example, base.px) for example in learned]
    begin = time.perf_counter()
    torch.manual_seed(seed)
    unet = copy.deepcopy(base.unet)
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]
    )
    unet.add_adapter(config)
    lora_layers = [weight for weight in unet.parameters() if weight.requires_grad]
    params = _params(steps)
    optimizer = torch.optim.AdamW(lora_layers, lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=params.warmup, num_training_steps=steps)
    noise_scheduler = solver.training_schedule(base.scheduler_config)
    velocity = noise_scheduler.config["prediction_type"] == "v_prediction"
    inpaints = sample.reads_condition(unet)
    prompt = latents.prompt(ORGAN, learned[0].label)
    unet.train()
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:  # a shuffled loader, epoch after epoch
            order += torch.randperm(len(seen)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        flips = torch.randint(2, (BATCH,)).tolist()
        pixel_values = _pixels(np.stack([seen[one].images[way] for one, way in zip(batch, flips, strict=True)]))
        masks = torch.from_numpy(np.stack([seen[one].holes[way] for one, way in zip(batch, flips, strict=True)]))[
            :, None
        ]
        with torch.no_grad():  # the example's networks do not require gradients
            scaling = base.vae.config["scaling_factor"]
            model_input = base.vae.encode(pixel_values).latent_dist.sample() * scaling
            tokens = base.tokenizer(
                [prompt] * BATCH,
                max_length=base.tokenizer.model_max_length,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            )
            encoder_hidden_states = base.text_encoder(tokens.input_ids, return_dict=False)[0]
            if inpaints:
                masked = base.vae.encode(pixel_values.masked_fill(masks, 0)).latent_dist.sample() * scaling
                mask = torch.nn.functional.interpolate(masks.float(), size=masked.shape[-2:])
        noise = torch.randn_like(model_input)
        timesteps = torch.randint(0, noise_scheduler.config["num_train_timesteps"], (BATCH,)).long()
        noisy = noise_scheduler.add_noise(model_input, noise, timesteps)
        target = noise_scheduler.get_velocity(model_input, noise, timesteps) if velocity else noise
        shown = torch.cat([noisy, mask, masked], dim=1) if inpaints else noisy
        model_pred = unet(shown, timesteps, encoder_hidden_states, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(model_pred.float(), target.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora_layers, 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
    weights = {f"unet.{name}": weight for name, weight in get_peft_model_state_dict(unet).items()}
    return Trained(write(weights, {}), time.perf_counter() - begin, steps * BATCH)


def _pixels(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


class _Score:
    """Squared error of a base with an adapter on a fixed grid of held-out image, noise and time."""

    def __init__(self, base: Base, held: Sequence[lora.Example]) -> None:
        self._base, self._params = base, _params(2).model_copy(update={"precision": "fp32", "warmup": 0})
        self._scheduler = solver.training_schedule(base.scheduler_config)
        self._held = examples.encode(base, held, [held[0].words], sample.reads_condition(base.unet), cache.Forgetful())
        self._text = latents.embed(base, [latents.UNCONDITIONAL, latents.prompt(ORGAN, held[0].label)])

    @torch.no_grad()
    def __call__(self, adapter: bytes | None) -> float:
        fused = adapters.fused(self._base, adapter)
        network = trainable.Trainable(fused.unet, fused.text_encoder, {}, {})
        draws = objective.validation_draws(self._held, self._scheduler, self._params, seed=5)
        parts = [
            objective.losses(network, self._scheduler, self._held, self._text, self._params, draw) for draw in draws
        ]
        return float(torch.cat(parts).mean())


def _explain(
    base: Base,
    learned: Sequence[lora.Example],
    ours: Sequence[Trained],
    theirs: Sequence[Trained],
    losses: tuple[Sequence[float], Sequence[float]],
    untrained: float,
) -> None:
    """Print what the ratios are made of, on standard error."""
    console = Console(stderr=True)
    for name, runs, scores in ("ours", ours, losses[0]), ("diffusers' example", theirs, losses[1]):
        speed = mean(run.images / run.seconds for run in runs)
        spread = f"{mean(scores):.4f} ± {stdev(scores):.4f} over {len(scores)} seeds"
        console.print(f"{name}: {speed:.1f} images/s, validation loss {spread}")
    console.print(f"the base alone: validation loss {untrained:.4f}")
    begin = time.perf_counter()
    examples.encode(base, learned, [learned[0].words], sample.reads_condition(base.unet), cache.Forgetful())
    share = (time.perf_counter() - begin) / mean(run.seconds for run in ours)
    console.print(f"of our time {share:.0%} is encoding {len(learned)} images once; the rest is the UNet, both ways")


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
