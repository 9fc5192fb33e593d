"""Several processes that train one adapter: each computes its share of every batch, and gradients are summed.

A process started alone is a team of one and imports nothing. Several are started by accelerate, one a GPU, or by
torchrun where there is none:

    accelerate launch --multi_gpu --num_processes 4 train.py
    torchrun --standalone --nproc_per_node 2 train.py

where `train.py` calls `lora.train` as ever. `LoraParams.batch` is the batch of the whole team, so the number of
processes changes what is learned only by the rounding of sums.
"""

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise

import torch


class Team:
    """This process among those that train together."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this process is the one that saves."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of what all processes hand in."""
        return tensor

    def sum_gradients(self, weights: Mapping[str, torch.nn.Parameter]) -> None:
        """Add up all processes' gradients, as one message."""

    def wait(self) -> None:
        """Go on when all processes are here."""


class _Accelerated(Team):
    """A team that accelerate started."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from accelerate.utils import reduce

        self._state, self._reduce = PartialState(cpu=not torch.cuda.is_available()), reduce
        super().__init__(self._state.process_index, self._state.num_processes)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._reduce(tensor.to(self._state.device), "sum")  # pyright: ignore

    def sum_gradients(self, weights: Mapping[str, torch.nn.Parameter]) -> None:
        gradients = [_gradient(weight) for weight in weights.values()]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        self._state.wait_for_everyone()


@lru_cache(maxsize=1)
def team() -> Team:
    """The team of this process: of one, unless accelerate (or torchrun) started several."""
    return _Accelerated() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Team()


def share(count: int, of: Team) -> slice:
    """The rows of a batch of `count` that a process computes.

    >>> [share(5, Team(rank, 2)) for rank in (0, 1)]
    [slice(0, 3, None), slice(3, 5, None)]
    """
    bounds = _bounds(count, of.size)
    return slice(bounds[of.rank], bounds[of.rank + 1])


def split(rows: slice, parts: int) -> Iterable[slice]:
    """Rows in micro-batches of nearly equal size; empty ones are left out.

    >>> list(split(slice(2, 7), 2))
    [slice(2, 5, None), slice(5, 7, None)]
    """
    bounds = _bounds(rows.stop - rows.start, parts)
    for first, last in pairwise(bounds):
        if last > first:
            yield slice(rows.start + first, rows.start + last)


def _bounds(count: int, parts: int) -> list[int]:
    return [(count * part + parts - 1) // parts for part in range(parts + 1)]


def _gradient(weight: torch.nn.Parameter) -> torch.Tensor:
    if weight.grad is None:  # a process whose share of the batch is empty
        weight.grad = torch.zeros_like(weight)
    return weight.grad
