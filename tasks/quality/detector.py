"""Real or synthetic? A cross-validated two-sample test (Lopez-Paz and Oquab, arXiv 1610.06545).

Every image is judged by a network that saw neither it nor anything else of its group, so that the network
cannot win by remembering patients. Where lesions are drawn into real scans it looks at a window around the lesion,
because the rest is real anyway; pictures that are drawn whole it sees whole. Other views say where the sides differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from storage.records import Record
from tasks.imaging import Grey, Mask, dilate, letterbox
from tasks.quality.crops import centred_square
from tasks.quality.degradation import damaged
from tasks.quality.judge import Advance, Pictures, silent
from tasks.quality.resampling import bounded_rows, group_halves

if TYPE_CHECKING:
    from torch import Tensor, nn

PX = 64
_BLANK = 60  # grey level of what a view hides: near the mean of breast scans
_MARGIN = 1 / 32  # of the image's side: how far beyond its mask a lesion still shows

View = Literal["window", "full", "lesion", "surroundings"]
"""What a detector sees. window: the square of half the image around the lesion's centre, at 64 px. full: the
whole image, no pixel resampled. lesion, surroundings: the window with all else, or the lesion and its rim, blanked."""


Network = Literal["small", "resnet18", "resnet34", "resnet50", "resnet101"]

_BLOCKS: dict[Network, tuple[str, list[int]]] = {
    "small": ("basic", [1, 1, 1, 1]),
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
}
"""Kind and number of the residual blocks of each stage (He et al., arXiv 1512.03385, table 1)."""
_SMALL_WIDTHS = [12, 24, 32, 48]
_BATCH = 64


class Params(Record):
    """How each fold's detectors are trained."""

    folds: int = Field(default=3, ge=2, le=20, description="folds, by group")
    steps: int = Field(default=150, ge=1, le=100_000, description="optimizer steps of a network and fold")
    batch: int = Field(default=24, ge=2, le=1024, description="images a step, half of them synthetic")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")
    networks: list[Network] = Field(
        default=["small"], min_length=1, description="each is trained on each fold, and their logits are averaged"
    )
    width: int = Field(
        default=16, ge=4, le=64, description="channels of a ResNet's first stage; 64 is the network of the paper"
    )
    view: View | None = Field(
        default=None,
        description="what it looks at: window, full, lesion or surroundings; null: a window around lesions that were "
        "drawn into a background, else the whole picture",
    )
    sample: int = Field(
        default=4000, ge=20, le=10**7, description="images of each side that teach, whole groups; all are judged"
    )

    @field_validator("networks")
    @classmethod
    def _named_once(cls, networks: list[Network]) -> list[Network]:
        if len(set(networks)) < len(networks):
            raise ValueError(f"found {networks}; name each network once")
        return networks

    @property
    def seen(self) -> View:
        """The view, where nobody has said what the pictures are."""
        return self.view or "window"

    def seeing(self, whole: bool) -> "Params":
        """The same with its view settled; `whole`: the pictures were drawn without a background."""
        return self.model_copy(update={"view": self.view or ("full" if whole else "window")})


@dataclass(frozen=True)
class Detection:
    """Out-of-fold probability of being synthetic of every real and every synthetic image, and their folds:
    probabilities of different folds come from different networks.

    `each` has the probabilities of each network alone, real and synthetic, where it is known; `real` and
    `synthetic` are of their mean logit, so that a network that finds nothing does not outvote one that is sure.
    """

    real: NDArray[np.float32] = field(repr=False)
    synthetic: NDArray[np.float32] = field(repr=False)
    real_fold: NDArray[np.intp] = field(repr=False)
    synthetic_fold: NDArray[np.intp] = field(repr=False)
    each: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Jury:
    """The detectors of every fold: `networks[k]` saw nothing of fold k. A fold without any had nothing to learn from,
    and its answer is one half."""

    params: Params
    networks: Mapping[int, "list[nn.Module]"] = field(repr=False)

    def logits(self, pictures: Pictures, fold: NDArray[np.intp]) -> NDArray[np.float32]:
        """Answer of each network that saw nothing of a picture's fold, (networks, pictures); above 0: synthetic."""
        from tasks.quality import fitting

        out = np.zeros((len(self.params.networks), len(pictures)), np.float32)
        if not len(pictures):
            return out
        seen = look(pictures, self.params.seen)
        for k, networks in self.networks.items():
            rows = np.flatnonzero(fold == k)
            for at in range(0, len(rows), _BATCH):
                batch = rows[at : at + _BATCH]
                inputs = with_detail(seen[batch])
                for number, network in enumerate(networks):
                    out[number, batch] = fitting.predict(network, inputs)[:, 0].numpy()
        return out


def out_of_fold(
    real: Pictures,
    synthetic: Pictures,
    params: Params,
    seed: int,
    advance: Advance = silent,
    known: Pictures | None = None,
) -> Detection:
    """Train detectors for each fold and let them judge that fold.

    `known` are more real images, of other groups, that every detector learns from and none judges.

    Raises:
        ValueError: fewer than two groups, or a side with fewer than two images.
    """
    fold = assign_folds([*real.groups, *synthetic.groups], params.folds, seed)
    folds = fold[: len(real)], fold[len(real) :]
    a, b = (bounded_rows(side.groups, params.sample, seed) for side in (real, synthetic))
    jury = convene(real.select(a), synthetic.select(b), (folds[0][a], folds[1][b]), params, seed, advance, known)
    return detection_of(jury.logits(real, folds[0]), jury.logits(synthetic, folds[1]), folds, params)


@dataclass(frozen=True)
class Baselines:
    """What a detector says where the answer is known: of two disjoint halves of the real images, rows `a` and `b`
    that share no group (`floor`), and of half `a` against half `b` damaged on purpose (`control`)."""

    a: NDArray[np.intp] = field(repr=False)
    b: NDArray[np.intp] = field(repr=False)
    floor: Detection
    control: Detection


def baselines(real: Pictures, size: int, params: Params, seed: int, advance: Advance = silent) -> Baselines | None:
    """The same detectors on halves of at most `size` real images; None where the groups allow no halves."""
    halves = group_halves(real.groups, max(2, size), 1, np.random.default_rng([seed, 3]))
    if not halves:
        return None
    a, b = halves[0]
    half, other = real.select(a), real.select(b)
    floor = out_of_fold(half, other, params, seed, advance)
    spoiled = damaged(other, seed, whole=params.seen == "full")
    return Baselines(a, b, floor, out_of_fold(half, spoiled, params, seed, advance))


def detection_of(
    real: NDArray[np.float32],
    synthetic: NDArray[np.float32],
    folds: tuple[NDArray[np.intp], NDArray[np.intp]],
    params: Params,
) -> Detection:
    """The answers of a `Jury` to real and synthetic pictures, each (networks, pictures), as probabilities."""
    answers = zip(params.networks, real, synthetic, strict=True)
    each = {name: (_sigmoid(a), _sigmoid(b)) for name, a, b in answers}
    return Detection(_sigmoid(real.mean(0)), _sigmoid(synthetic.mean(0)), *folds, each)


def convene(
    real: Pictures,
    synthetic: Pictures,
    folds: tuple[NDArray[np.intp], NDArray[np.intp]],
    params: Params,
    seed: int,
    advance: Advance = silent,
    known: Pictures | None = None,
) -> Jury:
    """Train every network of `params` for every fold, on all pictures of the other folds and on `known`.

    Raises:
        ValueError: a side with fewer than two images.
    """
    if min(len(real), len(synthetic)) < 2:
        raise ValueError(f"found {len(real)} real and {len(synthetic)} synthetic images, expected at least 2 each")
    sides = [real, synthetic] if known is None or not len(known) else [real, synthetic, known]
    seen = np.concatenate([look(side, params.seen) for side in sides])
    target = np.repeat([0, 1, 0][: len(sides)], [len(side) for side in sides])
    extra = len(target) - len(folds[0]) - len(folds[1])
    fold_of = np.concatenate([*folds, np.full(extra, -1, np.intp)])  # -1: never judged
    networks: dict[int, list[nn.Module]] = {}
    for k in range(params.folds):
        rows = np.flatnonzero(fold_of != k)
        if len(np.unique(target[rows])) == 2:
            networks[k] = [
                _fitted(seen[rows], target[rows], params, name, seed + 1000 * k + 100_000 * number, advance)
                for number, name in enumerate(params.networks)
            ]
    return Jury(params, networks)


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


def with_detail(seen: Grey) -> "Tensor":
    """Grey levels (n, px, px), and what a 5 × 5 mean leaves of them (speckle, grain, blocks), as two channels."""
    from torch.nn import functional as F

    from tasks.quality import fitting

    levels = fitting.to_tensor(seen, seen.shape[1])
    smooth = F.avg_pool2d(F.pad(levels, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    return fitting.concatenate([fitting.normalised(levels), 8 * (levels - smooth)], dim=1)


def _fitted(
    seen: Grey, target: NDArray[np.intp], params: Params, name: Network, seed: int, advance: Advance
) -> "nn.Module":
    from torch import from_numpy
    from torch.nn import functional as F

    from tasks.quality import fitting

    device = fitting.device()
    network = fitting.initialise(lambda: network_of(params, name), seed).to(device)
    px = seen.shape[-1]
    cut = px * 3 // 4
    wanted = from_numpy(target.astype(np.float32)).unsqueeze(1).to(device)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        # Cut and mirrored only: resampling would blur away the traces that tell real from synthetic.
        top, left = rng.integers(0, px - cut + 1, 2)
        views = with_detail(seen[rows])[..., top : top + cut, left : left + cut]
        views = (views.flip(-1) if rng.random() < 0.5 else views).to(device)
        return F.binary_cross_entropy_with_logits(network(views), 0.9 * wanted[rows] + 0.05)

    batches = fitting.balanced_batches(target, params.batch, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    return network


def network_of(params: Params, name: Network) -> "nn.Module":
    """An untrained network of this name: one logit from grey levels and their fine structure, (n, 2, px, px)."""
    from monai.networks.nets.resnet import ResNet

    block, counts = _BLOCKS[name]
    # The stem halves whole images, as ResNet does, and keeps every pixel of the small windows.
    halved = params.seen == "full"
    return ResNet(
        block,
        counts,
        _SMALL_WIDTHS if name == "small" else [params.width * 2**stage for stage in range(4)],
        spatial_dims=2,
        n_input_channels=2,
        conv1_t_size=7 if halved else 3,
        conv1_t_stride=2 if halved else 1,
        num_classes=1,
    )


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
