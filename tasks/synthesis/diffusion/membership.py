"""What an adapter remembers of single pictures: how much better than its base it tells their noise from them.

A picture that was learned by heart is denoised better than its like. The gap to the untouched base takes out how hard
the picture is in itself (Carlini et al., "Membership Inference Attacks From First Principles", 2022; the loss as the
attack on diffusion models: Matsumoto et al., 2023).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.synthesis.diffusion import controlnet, latents, objective, sample, solver
from tasks.synthesis.diffusion import examples as views
from tasks.synthesis.diffusion.adapters import fused
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.cache import Forgetful
from tasks.synthesis.diffusion.examples import Example
from tasks.synthesis.diffusion.lora_params import LoraParams
from tasks.synthesis.diffusion.trainable import Trainable


@torch.no_grad()
def gains(
    base: Base,
    adapter: bytes,
    examples: Sequence[Example],
    organ: str,
    levels: int,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
    held: bytes | None = None,
) -> NDArray[np.float32]:
    """Logarithm of the base's loss over the adapter's for every example, (n,); the larger, the better it is known.

    `held`, the ControlNet that was trained with the adapter, is attacked with it: it is shown each example's `control`.
    Both losses are means over `levels` noise levels, evenly spaced, with the same noise for every example: a fixed grid
    of `seed`, so that examples differ by themselves alone. `advance` counts examples.
    """
    words = sorted({example.words for example in examples})
    params = LoraParams(snr_gamma=None)
    scheduler = solver.training_schedule(base.scheduler_config)
    networks = [fused(base, weights) for weights in (None, adapter)]
    beside = [None, None if held is None else controlnet.load(held, base)]
    trained = [
        Trainable(network.unet, network.text_encoder, {}, {}, other)
        for network, other in zip(networks, beside, strict=True)
    ]
    prompts = [latents.UNCONDITIONAL, *(latents.prompt(organ, label, attributes) for label, *attributes in words)]
    texts = [latents.hidden_states(base.tokenizer, network.text_encoder, prompts) for network in networks]
    inpaints = sample.reads_condition(base.unet)
    total = int(scheduler.config["num_train_timesteps"])
    times = ((torch.arange(levels) + 0.5) / levels * total).long()
    found: list[float] = []
    for example in examples:  # one at a time: a batch would take the memory of all its noise levels
        encoded = views.encode(base, [example], words, inpaints, Forgetful())
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((levels, *encoded.clean.shape[2:]), generator=generator)
        none = np.zeros(levels, np.int64)
        draw = objective.Draw(none, none, np.zeros(levels, np.bool_), times, noise)
        plain, adapted = (
            float(objective.losses(network, scheduler, encoded, text, params, draw).double().mean())
            for network, text in zip(trained, texts, strict=True)
        )
        found.append(float(np.log(max(plain, 1e-12) / max(adapted, 1e-12))))
        advance(1)
    return np.array(found, np.float32)
