"""The segmentation network of the utility study: MONAI's residual U-Net, trained the same way in every arm.

Larger than the judge in `segmenter.py` and independent of it: what judged the synthetic images must not be what
proves that they help.
"""

import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.quality.judge import Advance, Pictures, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAST = 8  # channels before the last, 1 × 1 convolution
_AVERAGED = 0.99  # decay of the weights' moving average: without it, one lucky last step decides an arm


class Params(Record):
    """How the U-Net of every arm is trained."""

    steps: int = Field(
        default=500, ge=1, le=1_000_000, description="optimizer steps, the same in every arm; 500 take about 70 s"
    )
    batch: int = Field(default=16, ge=2, le=1024, description="images a step")
    learning_rate: float = Field(default=5e-3, gt=0, le=1, description="peak learning rate")
    channels: list[int] = Field(
        default=[16, 32, 64, 128, 256], min_length=2, max_length=8, description="channels of each level"
    )
    augmentation: float = Field(
        default=1.5, ge=0, le=4, description="strength of the classical augmentation of every arm; 1 is the judges'"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 is faster where the processor has it, and slower where it has not"
    )


def train(examples: Pictures, params: Params, seed: int, advance: Advance = silent) -> "nn.Module":
    """A network trained on `examples`, whose masks are blank where there is no lesion.

    Raises:
        ValueError: no example has a mask.
    """
    import torch
    from torch.nn import functional as F

    from tasks.quality import fitting

    if not examples.masks.any():
        raise ValueError(f"all {len(examples)} masks are blank; a segmenter needs lesions to learn from")
    network = fitting.initialise(lambda: _network(params), seed)
    averaged = copy.deepcopy(network)
    inputs = fitting.to_tensor(examples.images, examples.images.shape[1])
    wanted = fitting.to_mask_tensor(examples.masks, examples.masks.shape[1])

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        views, masks = fitting.augment(inputs[rows], wanted[rows], rng, params.augmentation)
        assert masks is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=params.precision == "bf16"):
            logits = network(fitting.normalised(views))
        logits = logits.float()
        soft = logits.sigmoid()
        total = soft.sum((1, 2, 3)) + masks.sum((1, 2, 3))
        overlap = (2 * (soft * masks).sum((1, 2, 3)) + 1) / (total + 1)
        lesion = (masks.sum((1, 2, 3)) > 0).float()
        missed = ((1 - overlap) * lesion).sum() / lesion.sum().clamp(min=1)
        return missed + F.binary_cross_entropy_with_logits(logits, masks)

    done = 0

    def moved(steps: int) -> None:
        nonlocal done
        done += steps
        _average(averaged, network, min(_AVERAGED, done / (done + 10)))
        advance(steps)

    rng = np.random.default_rng([seed, 0])
    batches = fitting.balanced_batches(np.zeros(len(examples), np.intp), params.batch, np.random.default_rng([seed, 1]))
    fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, moved)
    return averaged.eval()


def draw(network: "nn.Module", images: Grey) -> Mask:
    """Where the network sees a lesion in images (n, h, w): mean of the picture and its mirror image above 1/2."""
    if not len(images):
        return np.zeros(images.shape, np.bool_)
    from tasks.quality import fitting

    inputs = fitting.normalised(fitting.to_tensor(images, images.shape[1]))
    soft: Tensor = fitting.predict(network, inputs).sigmoid()
    mirrored = fitting.predict(network, inputs.flip(-1)).sigmoid().flip(-1)
    return ((soft + mirrored)[:, 0] > 1).numpy()


def _network(params: Params) -> "nn.Module":
    from monai.networks.nets.unet import UNet
    from torch import nn

    # Batch rather than MONAI's default instance norm: echo level tells lesion from tissue, and instance norm
    # erases it. Its last layer has as many channels as the output: with one, all that was learned went through a
    # single channel, and some seeds drew nothing at all.
    strides = [2] * (len(params.channels) - 1)
    body = UNet(2, 1, _LAST, params.channels, strides, num_res_units=2, norm="batch", act="prelu")
    return nn.Sequential(body, nn.Conv2d(_LAST, 1, 1))


def _average(averaged: "nn.Module", network: "nn.Module", decay: float) -> None:
    import torch

    with torch.no_grad():
        for mean, now in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)
