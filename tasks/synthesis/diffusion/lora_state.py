"""The state of a LoRA training run as safetensors bytes, and the adapter that comes out of it."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import safetensors.torch
import torch

Weights = dict[str, torch.nn.Parameter]
Curve = list[tuple[int, float, float | None]]
"""(step, mean training loss since the point before, validation loss or None)."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


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


@dataclass
class State:
    """What changes while training beside weights and moments; all else follows from the seed and the step."""

    step: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=lambda: dict[str, torch.Tensor]())
    best_step: int = 0
    best_loss: float = math.inf
    curve: Curve = field(default_factory=_no_curve)
    running: list[float] = field(default_factory=lambda: list[float]())

    def note(self, weights: Weights, validation: float | None) -> None:
        """Add a point to the curve; keep the weights if they are the best so far, or if nothing can tell."""
        self.curve.append((self.step, sum(self.running) / len(self.running), validation))
        self.running = []
        if validation is None or validation < self.best_loss:
            self.best_loss = math.inf if validation is None else validation
            self.best_step = self.step
            self.best = {name: weight.detach().clone() for name, weight in weights.items()}


def pack(state: State, fingerprint: str, weights: Weights, optimizer: torch.optim.AdamW) -> bytes:
    """Everything a run needs to go on after `state.step`. `fingerprint` names what it was trained on."""
    tensors = {f"best/{name}": weight for name, weight in state.best.items()}
    for name, weight in weights.items():
        tensors[f"weights/{name}"] = weight.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[weight][moment]
    facts = {
        "fingerprint": fingerprint,
        "step": state.step,
        "best_step": state.best_step,
        "best_loss": None if math.isinf(state.best_loss) else state.best_loss,
        "curve": state.curve,
        "running": state.running,
    }
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(stored, {"sonoforge": json.dumps(facts)})


def restore(saved: tuple[int, bytes] | None, fingerprint: str, weights: Weights, optimizer: torch.optim.AdamW) -> State:
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
    for name, weight in weights.items():
        weight.data.copy_(tensors[f"weights/{name}"])
        moments = {moment: tensors[f"{moment}/{name}"].to(weight.device) for moment in _MOMENTS}
        optimizer.state[weight] = {"step": torch.tensor(float(facts["step"])), **moments}
    best = {name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")}
    return State(
        step=facts["step"],
        best=best,
        best_step=facts["best_step"],
        best_loss=math.inf if facts["best_loss"] is None else facts["best_loss"],
        curve=[(int(at), float(train), val) for at, train, val in facts["curve"]],
        running=facts["running"],
    )


def export(best: dict[str, torch.Tensor], scale: float) -> bytes:
    """An adapter's safetensors, for diffusers' `load_lora_weights`.

    `scale`, alpha / rank, is multiplied in: loaders that are told no alpha take it to equal the rank.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in best.items():
        plain = weight.float() * (scale if ".lora_B." in name else 1.0)
        tensors["unet." + name.replace(".default.", ".")] = plain.cpu().contiguous()
    return safetensors.torch.save(tensors, {"format": "pt"})


def digest_of(*parts: object) -> str:
    """sha256 over byte strings and the texts of everything else, in order."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def _facts(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        return json.loads(header["__metadata__"]["sonoforge"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint is torn or none ({error}); remove it to start again") from error
