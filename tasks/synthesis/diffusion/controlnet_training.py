"""Training of a ControlNet on pictures and their masks, beside a UNet that stays as it is.

How training goes, see `training`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from numpy.typing import NDArray

from tasks.synthesis.diffusion import adapters, cache, controlnet, examples, latents, lora_state, sample, training
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.controlnet_params import ControlNetParams
from tasks.synthesis.diffusion.examples import Example
from tasks.synthesis.diffusion.lora import PREVIEW_GUIDANCE, PREVIEW_STEPS, PREVIEWED, Preview
from tasks.synthesis.diffusion.trainable import DTYPES, ExactAttention, Trainable


@dataclass(frozen=True)
class ControlNet:
    """A trained ControlNet: its file (see `controlnet.pack`), and how it came about, as `lora.Adapter` says."""

    weights: bytes
    curve: lora_state.Curve
    best_step: int


def train(
    base: Base,
    adapter: bytes | None,
    start: ControlNetModel | None,
    learned: Sequence[Example],
    held_out: Sequence[Example],
    organ: str,
    params: ControlNetParams,
    seed: int,
    checkpoints: lora_state.Checkpoints,
    advance: training.Advance,
    kept: cache.Latents | None = None,
    preview: Preview | None = None,
) -> ControlNet:
    """Train a ControlNet on examples with `control`; the checkpoint with the lowest loss on `held_out` wins.

    Args:
        adapter: LoRA weights (safetensors) that it will be used with: merged into the UNet, which learns nothing.
        start: what it goes on from; None: a copy of that UNet's encoder.

    Raises:
        ValueError: as `lora.train`, or an example has no `control`.
    """
    if not learned or any(example.control is None for example in (*learned, *held_out)):
        found = f"{len(learned)} training pictures" if not learned else "a picture without a mask"
        raise ValueError(f"a ControlNet learns from pictures and their masks; found {found}")
    params.check_machine()
    fused = adapters.fused(base, adapter)
    network = controlnet.fresh(base, fused.unet, seed) if start is None else copy.deepcopy(start)
    trained = _trainable(fused, network, params)
    began = cache.digest(network)
    decisive = training.fingerprint(learned, held_out, params, base.digest, adapter, began, organ, seed)
    storage = cache.Forgetful() if kept is None else kept
    run = training.prepared(base, trained, learned, held_out, organ, params, seed, storage, decisive)
    shown = (training.validated(held_out, params) or learned)[:PREVIEWED]

    def sampled(step: int, weights: Mapping[str, torch.Tensor]) -> None:
        if preview is not None:
            preview(step, _samples(base, adapter, _packed(network, weights), shown, organ, params))

    state = training.fit(run, checkpoints, advance, sampled)
    return ControlNet(_packed(network, state.best), state.curve, state.best_step)


def _trainable(fused: adapters.Fused, network: ControlNetModel, params: ControlNetParams) -> Trainable:
    unet = copy.deepcopy(fused.unet)
    torch.nn.Module.to(unet, DTYPES[params.precision])  # diffusers wraps `to` in a way that hides its type
    torch.nn.Module.to(network.requires_grad_(True), unet.device)
    for part in (unet, network):
        if params.precision == "bf16" and unet.device.type == "cpu":
            part.set_attn_processor(ExactAttention())  # pyright: ignore[reportArgumentType]
        torch.nn.Module.train(part)  # only gradient checkpointing reads this: there is no dropout
        if params.gradient_checkpointing:
            part.enable_gradient_checkpointing()
        for weight in part.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return Trainable(unet, fused.text_encoder, dict(network.named_parameters()), {}, network)


def _packed(network: ControlNetModel, weights: Mapping[str, torch.Tensor]) -> bytes:
    """The file of a ControlNet like `network` with other weights."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            weight.copy_(weights[name])
    return controlnet.pack(other)


def _samples(
    base: Base, adapter: bytes | None, network: bytes, chosen: Sequence[Example], organ: str, params: ControlNetParams
) -> NDArray[np.uint8]:
    """What is drawn with the masks of some examples."""
    masks = [view.controls[0] for view in (examples.views(e, base.px) for e in chosen) if view.controls is not None]
    return sample.pictures(
        base,
        [latents.prompt(organ, example.label, example.attributes) for example in chosen],
        list(range(len(chosen))),
        steps=PREVIEW_STEPS,
        guidance=PREVIEW_GUIDANCE,
        adapter=adapter,
        precision="fp32" if params.precision == "fp32" else "bf16",
        control=sample.Control(network, np.stack(masks)),
        decode=latents.decode,
    )
