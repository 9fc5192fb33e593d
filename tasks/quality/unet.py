"""The segmentation network of the utility study: MONAI's residual U-Net."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.imaging import Grey, Mask
from tasks.quality import downstream
from tasks.quality.judge import Pictures

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAST = 8  # channels before the last, 1 × 1 convolution


class Params(downstream.Params):
    """How the U-Net of every arm is trained; 800 steps at 128 px take about 60 s on one core."""

    channels: list[int] = Field(
        default=[16, 32, 64, 128, 256], min_length=2, max_length=8, description="channels of each level"
    )


def train(
    examples: Pictures,
    params: Params,
    seed: int,
    *,
    first: Pictures | None = None,
    turns: NDArray[np.intp] | None = None,
    augmented: bool = True,
) -> "nn.Module":
    """A network trained on `examples`, after the pictures that come `first`; masks are blank where nothing is drawn.
    Examples of different numbers in `turns` are equally likely in a batch, however few.

    Raises:
        ValueError: no example has a mask.
    """
    import torch
    from torch.nn import functional as F

    from tasks.quality import fitting

    for pictures in (examples, first):
        if pictures is not None and not pictures.masks.any():
            raise ValueError(f"all {len(pictures)} masks are blank; a segmenter needs some to learn from")
    network = fitting.initialise(lambda: _network(params), seed)
    everyone = examples if first is None else first.and_also(examples)
    inputs = fitting.to_tensor(everyone.images, everyone.images.shape[1])
    wanted = fitting.to_mask_tensor(everyone.masks, everyone.masks.shape[1])

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        views, masks = inputs[rows], wanted[rows]
        if augmented:
            views, moved = fitting.augment(views, masks, rng, params.augmentation)
            assert moved is not None
            masks = moved
        views = fitting.normalised(views).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=params.precision == "bf16"):
            logits = network(views)
        logits = logits.float()
        soft = logits.sigmoid()
        total = soft.sum((1, 2, 3)) + masks.sum((1, 2, 3))
        overlap = (2 * (soft * masks).sum((1, 2, 3)) + 1) / (total + 1)
        lesion = (masks.sum((1, 2, 3)) > 0).float()
        missed = ((1 - overlap) * lesion).sum() / lesion.sum().clamp(min=1)
        return missed + F.binary_cross_entropy_with_logits(logits, masks)

    before = len(everyone) - len(examples)
    lessons = [(np.arange(before, len(everyone)), downstream.kinds(turns, len(examples)))]
    if before:
        lessons.insert(0, (np.arange(before), np.zeros(before, np.intp)))
    return downstream.learn(network, loss_of, lessons, params, seed)


def draw(network: "nn.Module", images: Grey) -> Mask:
    """What the network draws in images (n, h, w): where the mean of the picture and its mirror image is above 1/2."""
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
