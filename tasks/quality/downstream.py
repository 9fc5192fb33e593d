"""How the networks of the utility study are trained: the same way, and for as many steps, in every arm.

They are larger than the judges and independent of them: what judged the synthetic images must not be what proves that
they help.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record

if TYPE_CHECKING:
    from torch import nn

_AVERAGED = 0.99  # decay of the weights' moving average: without it, one lucky last step decides an arm

Rng = np.random.Generator


class Params(Record):
    """How a downstream network is trained."""

    steps: int = Field(default=800, ge=2, le=1_000_000, description="optimizer steps, the same in every arm")
    batch: int = Field(default=8, ge=2, le=1024, description="images a step")
    learning_rate: float = Field(default=5e-3, gt=0, le=1, description="peak learning rate")
    pretraining: float = Field(
        default=0.5, gt=0, lt=1, description="share of the steps spent on synthetic images, in arms that pre-train"
    )
    finetuning: float = Field(
        default=0.5, gt=0, le=1, description="peak learning rate on the real images after that, as a share of the first"
    )
    augmentation: float = Field(
        default=1.5, ge=0, le=4, description="strength of the classical augmentation; 1 is that of the judges"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 is faster where the processor has it, and slower where it has not"
    )


def learn(
    network: "nn.Module",
    loss_of: Callable[[NDArray[np.intp], Rng], Any],
    lessons: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    params: Params,
    seed: int,
) -> "nn.Module":
    """The moving average of the network's weights after one lesson, or after one and then the other.

    Args:
        loss_of: loss of a batch, from its row numbers.
        lessons: row numbers to learn from and the class of each; classes are equally likely in a batch.
    """
    import torch

    from tasks.quality import fitting

    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    averaged = copy.deepcopy(network)
    steps, rates = [params.steps], [params.learning_rate]
    if len(lessons) == 2:
        first = min(params.steps - 1, max(1, round(params.pretraining * params.steps)))
        steps, rates = [first, params.steps - first], [params.learning_rate, params.finetuning * params.learning_rate]
    rng, picked = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    for (rows, classes), count, rate in zip(lessons, steps, rates, strict=True):
        done = 0

        def moved(more: int) -> None:
            nonlocal done
            done += more
            _average(averaged, network, min(_AVERAGED, done / (done + 10)))  # a new lesson forgets the old average

        batches = (rows[at] for at in fitting.balanced_batches(classes, params.batch, picked))
        fitting.fit(network, loss_of, batches, count, rate, rng, moved)
    return averaged.eval()


def kinds(turns: NDArray[np.intp] | None, count: int) -> NDArray[np.intp]:
    """Which kind each of `count` images is of: all of one, unless `turns` says."""
    return np.zeros(count, np.intp) if turns is None else turns


def _average(averaged: "nn.Module", network: "nn.Module", decay: float) -> None:
    import torch

    with torch.no_grad():
        for mean, now in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)
