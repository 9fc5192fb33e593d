"""Training state in one safetensors file: weights, optimizer moments and the step, replaced in one go.

No random state: every step draws from a generator seeded by (seed, step), so a resumed run sees the same numbers.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save(
    path: Path,
    step: int,
    parts: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    curve: str = "",
) -> None:
    """Write the state; a reader sees the old file or the new one, whole."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in parts.items():
        for key, value in module.state_dict().items():
            tensors[f"{name}/{key}"] = value.detach().contiguous().clone()
    for name, optimizer in optimizers.items():
        for index, moments in dict(optimizer.state_dict()["state"]).items():
            for key, value in moments.items():
                tensors[f"{name}/{index}/{key}"] = torch.as_tensor(value).detach().contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".writing")
    save_file(tensors, scratch, metadata={"step": str(step), "curve": curve})
    os.replace(scratch, path)


def load(
    path: Path, parts: Mapping[str, torch.nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[int, str]:
    """Fill modules and optimizers from a state; the step it was saved after, and the curve. (0, "") without one."""
    if not path.is_file():
        return 0, ""
    with safe_open(path, framework="pt") as stored:
        about = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
    for name, module in parts.items():
        module.load_state_dict({k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}/"):
                _, index, moment = key.split("/")
                state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["step"]), about["curve"]
