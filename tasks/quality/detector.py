"""Real or synthetic? A cross-validated two-sample test (Lopez-Paz and Oquab, arXiv 1610.06545).

Every image is judged by a network that saw neither it nor anything else of its group, so that the network
cannot win by remembering patients. It sees the surroundings of the lesion: in the staged route, the rest is a
real scan anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey, letterbox
from tasks.quality.crops import centred_square
from tasks.quality.judge import Advance, Pictures, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

PX = 64
_CUT = 48


class Params(Record):
    """How each fold's detector is trained."""

    folds: int = Field(default=3, ge=2, le=20, description="folds, by group")
    steps: int = Field(default=150, ge=1, le=100_000, description="optimizer steps a fold")
    batch: int = Field(default=24, ge=2, le=1024, description="images a step, half of them synthetic")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")


@dataclass(frozen=True)
class Detection:
    """Out-of-fold probability of being synthetic of every real and every synthetic image, and their folds:
    probabilities of different folds come from different networks."""

    real: NDArray[np.float32] = field(repr=False)
    synthetic: NDArray[np.float32] = field(repr=False)
    real_fold: NDArray[np.intp] = field(repr=False)
    synthetic_fold: NDArray[np.intp] = field(repr=False)


def out_of_fold(real: Pictures, synthetic: Pictures, params: Params, seed: int, advance: Advance = silent) -> Detection:
    """Train one detector a fold and let it judge that fold.

    Raises:
        ValueError: fewer than two groups, or a side with fewer than two images.
    """
    if min(len(real), len(synthetic)) < 2:
        raise ValueError(f"found {len(real)} real and {len(synthetic)} synthetic images, expected at least 2 each")
    groups = [*real.groups, *synthetic.groups]
    fold = assign_folds(groups, params.folds, seed)
    from tasks.quality import fitting

    inputs = fitting.concatenate([_inputs(real), _inputs(synthetic)])
    target = np.repeat([0, 1], [len(real), len(synthetic)])
    answers = np.full(len(target), 0.5, np.float32)
    for k in np.unique(fold):
        seen, judged = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(np.unique(target[seen])) == 2:  # else nothing to learn: one half is as good an answer as any
            network = _fitted(inputs[seen], target[seen], params, seed + 1000 * int(k), advance)
            answers[judged] = fitting.predict(network, inputs[judged]).sigmoid()[:, 0].numpy()
    n = len(real)
    return Detection(answers[:n], answers[n:], fold[:n], fold[n:])


def assign_folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.intp]:
    """Fold of every row: whole groups, largest first, each to the fold that holds least."""
    names, member, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"all {len(groups)} images are of one group; out-of-fold answers need at least two")
    shuffled = np.random.default_rng([seed, 2]).permutation(len(names))
    held = np.zeros(min(folds, len(names)), np.intp)
    fold_of = np.zeros(len(names), np.intp)
    for name in sorted(shuffled, key=lambda name: -sizes[name]):  # stable: ties stay shuffled
        fold_of[name] = held.argmin()
        held[fold_of[name]] += sizes[name]
    return fold_of[member]


def _windows(pictures: Pictures) -> Grey:
    """The square of half the image's side (64 px at least) around the lesion's centre, at 64 px: at the usual
    128 px no pixel is resampled, so that the finest traces of a decoder survive."""
    windows = np.zeros((len(pictures), PX, PX), np.uint8)
    for row, (image, mask) in enumerate(zip(pictures.images, pictures.masks, strict=True)):
        limit = min(image.shape)
        side = min(limit, max(PX, limit // 2))
        top, left = centred_square(mask, side)
        windows[row] = letterbox(image[top : top + side, left : left + side], None, PX).image
    return windows


def _inputs(pictures: Pictures) -> "Tensor":
    """Grey levels, and what a 5 × 5 mean leaves of them (speckle, grain, blocks), as two channels."""
    from torch.nn import functional as F

    from tasks.quality import fitting

    levels = fitting.to_tensor(_windows(pictures), PX)
    smooth = F.avg_pool2d(F.pad(levels, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    return fitting.concatenate([fitting.normalised(levels), 8 * (levels - smooth)], dim=1)


def _fitted(inputs: "Tensor", target: NDArray[np.intp], params: Params, seed: int, advance: Advance) -> "nn.Module":
    from torch import from_numpy
    from torch.nn import functional as F

    from tasks.quality import fitting

    network = fitting.initialise(_network, seed)
    wanted = from_numpy(target.astype(np.float32)).unsqueeze(1)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        # Cut and mirrored only: resampling would blur away the traces that tell real from synthetic.
        top, left = rng.integers(0, PX - _CUT + 1, 2)
        views = inputs[rows][..., top : top + _CUT, left : left + _CUT]
        views = views.flip(-1) if rng.random() < 0.5 else views
        return F.binary_cross_entropy_with_logits(network(views), 0.9 * wanted[rows] + 0.05)

    batches = fitting.balanced_batches(target, params.batch, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    return network


def _network() -> "nn.Module":
    from monai.networks.nets.resnet import ResNet

    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [12, 24, 32, 48],
        spatial_dims=2,
        n_input_channels=2,
        conv1_t_size=3,
        conv1_t_stride=1,
        num_classes=1,
    )
