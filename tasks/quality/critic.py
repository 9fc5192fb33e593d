"""Which candidate looks most like a real lesion? A small MONAI Vision Transformer on lesion squares.

It sees the whole lesion with its mask, so that a fine texture in the wrong place does not win; and the window that
detectors look at, no pixel resampled, with its fine structure apart, so that the dots a decoder leaves do not win
either.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.quality import detector
from tasks.quality.crops import lesion_crops
from tasks.quality.degradation import DEGRADATIONS, degrade_inside
from tasks.quality.judge import Advance, Judge, Pictures, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

PX = detector.PX


class Params(Record):
    """How the critic is trained."""

    steps: int = Field(default=500, ge=1, le=100_000, description="optimizer steps")
    batch: int = Field(default=32, ge=2, le=1024, description="lesions a step, half of them generated")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="peak learning rate")


@dataclass(frozen=True)
class Critic:
    """A loaded judge."""

    network: "nn.Module" = field(repr=False)

    def realism(self, images: Grey, masks: Mask) -> NDArray[np.float32]:
        """Probability, 0..1, that the lesion of each image (n, h, w) is real."""
        if not len(images):
            return np.zeros(0, np.float32)
        from tasks.quality import fitting

        return fitting.predict(self.network, _inputs(images, masks)).sigmoid()[:, 0].numpy()


def imitations(pictures: Pictures, seed: int) -> Pictures:
    """Planted failures, one for each picture: the lesion damaged, or the mask where no lesion is.

    What the critic learns from when no generated lesions exist yet.
    """
    images, masks = pictures.images.copy(), pictures.masks.copy()
    for row, (image, mask) in enumerate(zip(pictures.images, pictures.masks, strict=True)):
        rng = np.random.default_rng([seed, row])
        if rng.random() < 0.4:
            masks[row] = _moved(mask, rng)
        else:
            severities = np.zeros(len(DEGRADATIONS), np.float32)
            severities[rng.choice(len(DEGRADATIONS), 2, replace=False)] = rng.uniform(0.4, 1, 2)
            images[row] = degrade_inside(image, mask, severities, rng)
    return Pictures(images, masks, pictures.labels, pictures.groups)


def train(
    real: Pictures,
    generated: Pictures,
    held_out: tuple[Pictures, Pictures],
    params: Params,
    seed: int,
    advance: Advance = silent,
) -> Judge:
    """Train on real lesions against generated ones (or `imitations`, or both together).

    `held_out` are real and generated lesions of other groups; the report is measured on them. Pictures with
    a blank mask are left out.

    Raises:
        ValueError: a side without lesions.
    """
    from torch import from_numpy
    from torch.nn import functional as F

    from tasks.quality import fitting

    real, generated = _lesions(real), _lesions(generated)
    if not (len(real) and len(generated)):
        raise ValueError(f"found {len(real)} real and {len(generated)} generated lesions, expected some of each")
    network = fitting.initialise(_network, seed)
    inputs = fitting.concatenate([_inputs(side.images, side.masks) for side in (real, generated)])
    target = np.repeat([1, 0], [len(real), len(generated)])
    wanted = from_numpy(target.astype(np.float32)).unsqueeze(1)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        views = inputs[rows]
        views = views.roll(tuple(rng.integers(-3, 4, 2)), (-2, -1))
        views = views.flip(-1) if rng.random() < 0.5 else views
        return F.binary_cross_entropy_with_logits(network(views), 0.95 * wanted[rows] + 0.025)

    batches = fitting.balanced_batches(target, params.batch, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    weights = fitting.dump(network, {"kind": "critic"})
    return Judge(weights, measure(load(weights), *held_out))


def load(weights: bytes) -> Critic:
    """The critic of the bytes that `train` made."""
    from tasks.quality import fitting

    network, _ = fitting.restore(weights, "critic", lambda config: _network())
    return Critic(network)


def measure(critic: Critic, real: Pictures, generated: Pictures) -> dict[str, float]:
    """AUC of real against generated lesions, with their numbers."""
    from sklearn.metrics import roc_auc_score

    real, generated = _lesions(real), _lesions(generated)
    report = {"n_real": float(len(real)), "n_generated": float(len(generated))}
    if len(real) and len(generated):
        answers = [critic.realism(side.images, side.masks) for side in (real, generated)]
        truth = np.repeat([1, 0], [len(real), len(generated)])
        report["auc"] = float(roc_auc_score(truth, np.concatenate(answers)))
    return report


def _lesions(pictures: Pictures) -> Pictures:
    return pictures.select(np.asarray(pictures.masks.any(axis=(1, 2))))


def _moved(mask: Mask, rng: np.random.Generator) -> Mask:
    """The mask shifted, around the edges, by a quarter to three quarters of the image each way."""
    height, width = mask.shape
    down, right = rng.uniform(0.25, 0.75, 2) * (height, width)
    return np.roll(mask, (int(down), int(right)), (0, 1))


def _inputs(images: Grey, masks: Mask) -> "Tensor":
    """Four channels, (n, 4, px, px): the lesion's square and its mask, the detectors' window and its fine structure."""
    from tasks.quality import fitting

    squares, outlines = lesion_crops(images, masks, PX)
    whole = fitting.normalised(fitting.to_tensor(squares, PX))
    close = detector.with_detail(detector.windows(images, masks))
    return fitting.concatenate([whole, fitting.to_mask_tensor(outlines, PX), close], dim=1)


def _network() -> "nn.Module":
    from monai.networks.nets.vit import ViT
    from torch import nn

    class Hybrid(nn.Module):
        """A Vision Transformer on the features of three convolutions (Dosovitskiy et al., arXiv 2010.11929,
        section 3.1): from a few hundred lesions, patches of raw pixels alone teach it no texture."""

        def __init__(self) -> None:
            super().__init__()
            widths = (4, 16, 24, 32)
            self.stem = nn.Sequential(
                *(
                    nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                    for a, b, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
                )
            )
            self.vit = ViT(
                in_channels=widths[-1],
                img_size=(PX // 4, PX // 4),
                patch_size=(2, 2),
                hidden_size=64,
                mlp_dim=128,
                num_layers=2,
                num_heads=4,
                classification=True,
                num_classes=1,
                spatial_dims=2,
                post_activation="none",  # MONAI's default squashes the logit into -1..1
            )

        def forward(self, inputs: "Tensor") -> "Tensor":
            return self.vit(self.stem(inputs))[0]  # MONAI's ViT returns its hidden states too

    return Hybrid()
