"""The classification network of the utility study: MONAI's 18-layer residual network, a quarter as wide."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.imaging import Grey
from tasks.quality import downstream
from tasks.quality.judge import Pictures

if TYPE_CHECKING:
    from torch import Tensor, nn


class Params(downstream.Params):
    """How the classifier of every arm is trained."""

    steps: int = Field(default=500, ge=2, le=1_000_000, description="optimizer steps, the same in every arm")
    batch: int = Field(default=16, ge=2, le=1024, description="images a step, every label equally often")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")
    width: int = Field(default=16, ge=4, le=64, description="channels of the first stage; 64 is ResNet-18's own")
    px: int = Field(default=96, ge=32, le=512, description="side of the square it looks at, px")


def train(
    examples: Pictures,
    params: Params,
    seed: int,
    *,
    first: Pictures | None = None,
    turns: NDArray[np.intp] | None = None,
    augmented: bool = True,
) -> "nn.Module":
    """A network that tells the labels of `examples`, in their alphabetical order, after the pictures that come
    `first`, whose labels must be the same. In a batch, labels are equally likely, and so are examples of one label
    with different numbers in `turns`.

    Raises:
        ValueError: fewer than two labels, or others first.
    """
    import torch
    from torch.nn import functional as F

    from tasks.quality import fitting

    labels = sorted(set(examples.labels))
    before = labels if first is None else sorted(set(first.labels))
    if len(labels) < 2 or before != labels:
        raise ValueError(f"the labels to tell apart are {labels}, and {before} first; expected the same two or more")
    network = fitting.initialise(lambda: _network(params, len(labels)), seed)
    everyone = examples if first is None else first.and_also(examples)
    inputs = fitting.to_tensor(everyone.images, params.px)
    wanted = np.array([labels.index(label) for label in everyone.labels])

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        views = inputs[rows]
        if augmented:
            views, _ = fitting.augment(views, None, rng, params.augmentation)
        views = fitting.normalised(views).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=params.precision == "bf16"):
            logits = network(views)
        return F.cross_entropy(logits.float(), torch.from_numpy(wanted[rows]), label_smoothing=0.05)

    start = len(everyone) - len(examples)
    lessons = [np.arange(start), np.arange(start, len(everyone))] if start else [np.arange(len(everyone))]
    classes = [wanted[rows] for rows in lessons]
    classes[-1] = classes[-1] * 2 + downstream.kinds(turns, len(examples))
    return downstream.learn(network, loss_of, list(zip(lessons, classes, strict=True)), params, seed)


def probabilities(network: "nn.Module", images: Grey, params: Params) -> NDArray[np.float32]:
    """Probability of every label, (n, labels), for images (n, h, w): mean of the picture and its mirror image."""
    if not len(images):
        return np.zeros((0, 2), np.float32)
    from tasks.quality import fitting

    inputs = fitting.normalised(fitting.to_tensor(images, params.px))
    both: list[Tensor] = [fitting.predict(network, seen).softmax(1) for seen in (inputs, inputs.flip(-1))]
    return ((both[0] + both[1]) / 2).numpy()


def _network(params: Params, labels: int) -> "nn.Module":
    from monai.networks.nets.resnet import ResNet

    widths = [params.width * 2**stage for stage in range(4)]
    return ResNet(
        "basic", [2, 2, 2, 2], widths, spatial_dims=2, n_input_channels=1, conv1_t_size=5, conv1_t_stride=2,
        num_classes=labels,
    )  # fmt: skip
