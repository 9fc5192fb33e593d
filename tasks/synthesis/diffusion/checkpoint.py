"""Training state as one safetensors file: weights, optimizer moments and the step, replaced in one go.

No random state: every step draws from a generator seeded by (seed, step), so a resumed run sees the same numbers.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch

from tasks.synthesis.diffusion.lora_state import Checkpoints

MOMENTS = "moments of "


def pack(
    step: int, parts: Mapping[str, torch.nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], about: str = ""
) -> bytes:
    """The state after `step`; `about` comes back from `restore`."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in parts.items():
        for key, value in module.state_dict().items():
            tensors[f"{name}/{key}"] = value.detach().cpu().contiguous().clone()
    for name, optimizer in optimizers.items():
        for index, moments in dict(optimizer.state_dict()["state"]).items():
            for key, value in moments.items():
                tensors[f"{MOMENTS}{name}/{index}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    return safetensors.torch.save(tensors, {"step": str(step), "about": about})


def load(
    checkpoints: Checkpoints,
    parts: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> tuple[int, str]:
    """Fill modules and optimizers from the state last saved, as `restore` does; (0, "") where there is none."""
    saved = checkpoints.latest()
    return (0, "") if saved is None else restore(saved[1], parts, optimizers)


def restore(
    data: bytes, parts: Mapping[str, torch.nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[int, str]:
    """Fill modules and optimizers from a packed state; the step it was made after, and what it is about."""
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = safetensors.torch.load(data)
    for name, module in parts.items():
        module.load_state_dict({k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{MOMENTS}{name}/"):
                index, moment = key.removeprefix(f"{MOMENTS}{name}/").split("/")
                state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["step"]), about["about"]


class File:
    """Checkpoints in a single file: a reader sees the old state or the new one, whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, step: int, data: bytes) -> None:
        """Keep `data`, which says itself which step it is after, instead of what was kept before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_name(self._path.name + ".writing")
        scratch.write_bytes(data)
        os.replace(scratch, self._path)

    def latest(self) -> tuple[int, bytes] | None:
        """The state last saved, None where there is none."""
        if not self._path.is_file():
            return None
        data = self._path.read_bytes()
        return restore(data, {}, {})[0], data


def moved(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module on a device, convolution weights in the layout that is several times faster on CPUs."""
    return cast(Any, module).to(device=device, memory_format=torch.channels_last)
