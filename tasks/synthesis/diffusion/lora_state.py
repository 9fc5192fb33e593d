"""The state of a LoRA training run as safetensors bytes."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import safetensors.torch
import torch

Weights = Mapping[str, torch.nn.Parameter]
Curve = list[tuple[int, float, float | None]]
"""(step, mean training loss since the point before, validation loss or None)."""


class Checkpoints(Protocol):
    """Where a run keeps its state."""

    def save(self, step: int, data: bytes) -> None:
        """Keep `data` as the state after `step`; earlier ones may go."""
        ...

    def latest(self) -> tuple[int, bytes] | None:
        """The step and state last saved, or None."""
        ...


def _no_curve() -> Curve:
    return []


def _no_tensors() -> dict[str, torch.Tensor]:
    return {}


@dataclass
class State:
    """What changes while training beside weights and moments; all else follows from the seed and the step.

    `average` is the moving average of the weights, empty where none is kept.
    """

    step: int = 0
    average: dict[str, torch.Tensor] = field(default_factory=_no_tensors)
    best: dict[str, torch.Tensor] = field(default_factory=_no_tensors)
    best_step: int = 0
    best_loss: float = math.inf
    curve: Curve = field(default_factory=_no_curve)
    running: list[float] = field(default_factory=lambda: list[float]())

    def note(self, weights: Mapping[str, torch.Tensor], validation: float | None) -> None:
        """Add a point to the curve; keep the weights if they are the best so far, or if nothing can tell."""
        self.curve.append((self.step, sum(self.running) / len(self.running), validation))
        self.running = []
        if validation is None or validation < self.best_loss:
            self.best_loss = math.inf if validation is None else validation
            self.best_step = self.step
            self.best = {name: weight.detach().clone() for name, weight in weights.items()}


def pack(
    state: State, fingerprint: str, weights: Weights, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> bytes:
    """Everything a run needs to go on after `state.step`. `fingerprint` names what it was trained on."""
    tensors = {f"best/{name}": weight for name, weight in state.best.items()}
    tensors |= {f"average/{name}": weight for name, weight in state.average.items()}
    numbers: dict[str, float] = {}
    for name, weight in weights.items():
        tensors[f"weights/{name}"] = weight.detach()
        for moment, value in optimizer.state[weight].items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{moment}/{name}"] = value
            else:
                numbers[f"{moment}/{name}"] = value
    facts = {
        "fingerprint": fingerprint,
        "step": state.step,
        "best_step": state.best_step,
        "best_loss": None if math.isinf(state.best_loss) else state.best_loss,
        "curve": state.curve,
        "running": state.running,
        "optimizer": numbers,
        "scaler": scaler.state_dict(),
    }
    stored = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return safetensors.torch.save(stored, {"sonoforge": json.dumps(facts)})


def restore(
    saved: tuple[int, bytes] | None,
    fingerprint: str,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> State:
    """The state of a run that goes on, weights and moments put back; a fresh one where nothing was saved.

    Raises:
        ValueError: the checkpoint belongs to another run, or is no checkpoint.
    """
    if saved is None:
        return State()
    step, data = saved
    facts = _facts(data)
    if facts["fingerprint"] != fingerprint:
        raise ValueError(
            f"the checkpoint at step {step} belongs to another base, data, seed or parameters "
            f"({str(facts['fingerprint'])[:12]}, expected {fingerprint[:12]}); remove it to start again"
        )
    tensors = safetensors.torch.load(data)
    device = next(iter(weights.values())).device
    for name, weight in weights.items():
        weight.data.copy_(tensors[f"weights/{name}"])
        optimizer.state[weight] = _of_weight(name, tensors, facts["optimizer"], device)
    if facts["scaler"]:
        scaler.load_state_dict(facts["scaler"])
    return State(
        step=facts["step"],
        average={name: tensor.to(device) for name, tensor in _under("average/", tensors).items()},
        best=_under("best/", tensors),
        best_step=facts["best_step"],
        best_loss=math.inf if facts["best_loss"] is None else facts["best_loss"],
        curve=[(int(at), float(train), val) for at, train, val in facts["curve"]],
        running=facts["running"],
    )


def digest_of(*parts: object) -> str:
    """sha256 over byte strings and the texts of everything else, in order."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def _of_weight(
    name: str, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float], device: torch.device
) -> dict[str, Any]:
    """An optimizer's state of one weight. Step counts stay on the CPU, as AdamW keeps them."""
    end = "/" + name
    moments: dict[str, Any] = {key.removesuffix(end): number for key, number in numbers.items() if key.endswith(end)}
    for key, tensor in _under("optimizer/", tensors).items():
        if key.endswith(end):
            moments[key.removesuffix(end)] = tensor if key.startswith("step/") else tensor.to(device)
    return moments


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _facts(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        return json.loads(header["__metadata__"]["sonoforge"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint is torn or none ({error}); remove it to start again") from error
