"""Adapters merged into a copy of the base, so that sampling runs plain forward calls."""

import copy
import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel

from tasks.synthesis.diffusion import adapter_files
from tasks.synthesis.diffusion.adapter_files import Change
from tasks.synthesis.diffusion.base import Base

Precision = Literal["fp32", "bf16"]

_KEPT = 8
_fused: "OrderedDict[tuple[str, str, str], Fused]" = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Fused:
    """The networks of a base with an adapter merged in; the text encoder is the base's own where the adapter
    leaves it alone."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel


def fused(base: Base, adapter: bytes | None, precision: Precision = "fp32") -> Fused:
    """Networks of their own with the adapter's weights merged in: plain forward calls, safe in many threads.

    One copy per adapter and precision is kept per process, so shards that run side by side share it.

    Args:
        adapter: safetensors written here, by diffusers or by peft (see `adapter_files.read`).

    Raises:
        ValueError: it is no LoRA adapter, or one for another architecture.
    """
    if adapter is None and precision == "fp32":
        return Fused(base.unet, base.text_encoder)
    name = "" if adapter is None else hashlib.sha256(adapter).hexdigest()
    key = (base.digest, name, precision)
    with _lock:  # a second thread waits for the first one's copy instead of making its own
        if key not in _fused:
            _fused[key] = _fuse(base, adapter, precision)
            while len(_fused) > _KEPT:
                _fused.popitem(last=False)
        _fused.move_to_end(key)
        return _fused[key]


def merged(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, magnitude: torch.Tensor | None = None
) -> torch.Tensor:
    """The weight that LoRA (Hu et al., 2021) puts in the place of a frozen one, or DoRA where `magnitude` is given.

    Args:
        weight: of a linear layer (out, in) or of a convolution (out, in, k, k).
        down: "A", (rank, in) or (rank, in, k, k).
        up: "B", (out, rank) or (out, rank, 1, 1).
        magnitude: one number an output. Its direction's own length counts as constant in the gradient, as in
            section 4.3 of Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024.
    """
    change = (up.flatten(1) @ down.flatten(1)).view_as(weight)
    moved = torch.add(weight, change, alpha=scale)
    if magnitude is None:
        return moved
    length = torch.linalg.vector_norm(moved.detach().flatten(1), dim=1)
    return moved * (magnitude.flatten() / length).view(-1, *[1] * (weight.ndim - 1))


def _fuse(base: Base, adapter: bytes | None, precision: Precision) -> Fused:
    unet, text_encoder = copy.deepcopy(base.unet), base.text_encoder
    changes = adapter_files.read(adapter) if adapter is not None else {}
    if any(name.startswith(adapter_files.TEXT_ENCODER) for name in changes):
        text_encoder = copy.deepcopy(base.text_encoder)
    for name, change in changes.items():
        _merge(adapter_files.module_of(unet, text_encoder, name), name, change)
    unet.requires_grad_(False).eval()
    if precision == "bf16":
        torch.nn.Module.to(unet, torch.bfloat16)  # diffusers wraps `to` in a way that hides its type
    for weight in unet.parameters():  # an eighth faster in fp32 on a CPU, and what tensor cores want
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return Fused(unet, text_encoder)


@torch.no_grad()
def _merge(module: torch.nn.Module, name: str, change: Change) -> None:
    weight = module.weight
    assert isinstance(weight, torch.nn.Parameter)
    down, up = (part.to(weight.device, torch.float32) for part in (change.down, change.up))
    fits = (down.flatten(1).shape[1], up.shape[0]) == (weight[0].numel(), weight.shape[0])
    if not fits or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"the adapter's matrices for {name} are {tuple(change.down.shape)} and {tuple(change.up.shape)}, the "
            f"base's weight is {tuple(weight.shape)}; expected an adapter trained for this base"
        )
    magnitude = None if change.magnitude is None else change.magnitude.to(weight.device, torch.float32)
    weight.copy_(merged(weight.float(), down, up, change.scale, magnitude))
