"""Real or synthetic? A cross-validated two-sample test (Lopez-Paz and Oquab, arXiv 1610.06545).

Every image is judged by a network that saw neither it nor anything else of its group, so that the network
cannot win by remembering patients. It usually looks at a window around the lesion, because in the staged route the
rest is a real scan anyway; other views say where the two sides differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey, Mask, dilate, letterbox
from tasks.quality.crops import centred_square
from tasks.quality.judge import Advance, Pictures, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

PX = 64
_BLANK = 60  # grey level of what a view hides: near the mean of breast scans
_MARGIN = 1 / 32  # of the image's side: how far beyond its mask a lesion still shows

View = Literal["window", "full", "lesion", "surroundings"]
"""What a detector sees. window: the square of half the image around the lesion's centre, at 64 px. full: the
whole image, no pixel resampled. lesion, surroundings: the window with all else, or the lesion and its rim, blanked."""


class Params(Record):
    """How each fold's detector is trained."""

    folds: int = Field(default=3, ge=2, le=20, description="folds, by group")
    steps: int = Field(default=150, ge=1, le=100_000, description="optimizer steps a fold")
    batch: int = Field(default=24, ge=2, le=1024, description="images a step, half of them synthetic")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")
    network: Literal["small", "resnet18"] = Field(
        default="small", description="small: 4 blocks; resnet18: 8 blocks, its channels as `width` says"
    )
    width: int = Field(
        default=16, ge=4, le=64, description="channels of resnet18's first stage; 64 is the network of the paper"
    )
    view: View = Field(default="window", description="what it looks at: window, full, lesion or surroundings")


@dataclass(frozen=True)
class Detection:
    """Out-of-fold probability of being synthetic of every real and every synthetic image, and their folds:
    probabilities of different folds come from different networks."""

    real: NDArray[np.float32] = field(repr=False)
    synthetic: NDArray[np.float32] = field(repr=False)
    real_fold: NDArray[np.intp] = field(repr=False)
    synthetic_fold: NDArray[np.intp] = field(repr=False)


def out_of_fold(
    real: Pictures,
    synthetic: Pictures,
    params: Params,
    seed: int,
    advance: Advance = silent,
    known: Pictures | None = None,
) -> Detection:
    """Train one detector a fold and let it judge that fold.

    `known` are more real images, of other groups, that every detector learns from and none judges.

    Raises:
        ValueError: fewer than two groups, or a side with fewer than two images.
    """
    if min(len(real), len(synthetic)) < 2:
        raise ValueError(f"found {len(real)} real and {len(synthetic)} synthetic images, expected at least 2 each")
    groups = [*real.groups, *synthetic.groups]
    fold = assign_folds(groups, params.folds, seed)
    from tasks.quality import fitting

    n, extra = len(real), 0 if known is None else len(known)
    sides = [real, synthetic] if known is None or not extra else [real, synthetic, known]
    inputs = fitting.concatenate([_inputs(side, params.view) for side in sides])
    target = np.repeat([0, 1, 0], [n, len(synthetic), extra])
    fold_of = np.concatenate([fold, np.full(extra, -1, np.intp)])  # -1: never judged
    answers = np.full(len(target), 0.5, np.float32)
    for k in np.unique(fold):
        seen, judged = np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)
        if len(np.unique(target[seen])) == 2:  # else nothing to learn: one half is as good an answer as any
            network = _fitted(inputs[seen], target[seen], params, seed + 1000 * int(k), advance)
            answers[judged] = fitting.predict(network, inputs[judged]).sigmoid()[:, 0].numpy()
    return Detection(answers[:n], answers[n : len(fold)], fold[:n], fold[n:])


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


def look(pictures: Pictures, view: View) -> Grey:
    """What a detector sees of every picture, (n, px, px)."""
    match view:
        case "window":
            return windows(pictures.images, pictures.masks)
        case "full":
            return pictures.images
        case "lesion" | "surroundings":
            margin = round(_MARGIN * pictures.images.shape[1])
            grown = np.stack([dilate(mask, margin) for mask in pictures.masks])
            hidden = grown if view == "surroundings" else ~grown
            return windows(np.where(hidden, np.uint8(_BLANK), pictures.images), pictures.masks)
        case _:
            assert_never(view)


def windows(images: Grey, masks: Mask) -> Grey:
    """The square of half the image's side (64 px at least) around the lesion's centre, at 64 px: at the usual
    128 px no pixel is resampled, so that the finest traces of a decoder survive."""
    windows = np.zeros((len(images), PX, PX), np.uint8)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        limit = min(image.shape)
        side = min(limit, max(PX, limit // 2))
        top, left = centred_square(mask, side)
        windows[row] = letterbox(image[top : top + side, left : left + side], None, PX).image
    return windows


def _inputs(pictures: Pictures, view: View) -> "Tensor":
    return with_detail(look(pictures, view))


def with_detail(seen: Grey) -> "Tensor":
    """Grey levels (n, px, px), and what a 5 × 5 mean leaves of them (speckle, grain, blocks), as two channels."""
    from torch.nn import functional as F

    from tasks.quality import fitting

    levels = fitting.to_tensor(seen, seen.shape[1])
    smooth = F.avg_pool2d(F.pad(levels, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    return fitting.concatenate([fitting.normalised(levels), 8 * (levels - smooth)], dim=1)


def _fitted(inputs: "Tensor", target: NDArray[np.intp], params: Params, seed: int, advance: Advance) -> "nn.Module":
    from torch import from_numpy
    from torch.nn import functional as F

    from tasks.quality import fitting

    network = fitting.initialise(lambda: _network(params), seed)
    px = inputs.shape[-1]
    cut = px * 3 // 4
    wanted = from_numpy(target.astype(np.float32)).unsqueeze(1)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        # Cut and mirrored only: resampling would blur away the traces that tell real from synthetic.
        top, left = rng.integers(0, px - cut + 1, 2)
        views = inputs[rows][..., top : top + cut, left : left + cut]
        views = views.flip(-1) if rng.random() < 0.5 else views
        return F.binary_cross_entropy_with_logits(network(views), 0.9 * wanted[rows] + 0.05)

    batches = fitting.balanced_batches(target, params.batch, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    return network


def _network(params: Params) -> "nn.Module":
    from monai.networks.nets.resnet import ResNet

    deep = params.network == "resnet18"
    # The stem halves whole images, as ResNet does, and keeps every pixel of the small windows.
    halved = params.view == "full"
    return ResNet(
        "basic",
        [2, 2, 2, 2] if deep else [1, 1, 1, 1],
        [params.width * 2**stage for stage in range(4)] if deep else [12, 24, 32, 48],
        spatial_dims=2,
        n_input_channels=2,
        conv1_t_size=7 if halved else 3,
        conv1_t_stride=2 if halved else 1,
        num_classes=1,
    )
