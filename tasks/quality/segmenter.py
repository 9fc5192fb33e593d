"""Where is the lesion? A small MONAI U-Net: what it draws is compared with the mask a sample claims."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.quality.judge import Advance, Judge, Pictures, silent

if TYPE_CHECKING:
    from torch import nn

PX = 64


class Params(Record):
    """How the segmenter is trained."""

    steps: int = Field(default=400, ge=1, le=100_000, description="optimizer steps; 400 take about 20 s on one core")
    batch: int = Field(default=16, ge=2, le=1024, description="images a step")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")


@dataclass(frozen=True)
class Segmenter:
    """A loaded judge."""

    network: "nn.Module" = field(repr=False)

    def probabilities(self, images: Grey) -> NDArray[np.float32]:
        """Probability (n, h, w) that a pixel of images (n, h, w) is lesion, at the images' own size: the mean over the
        picture and its mirror image."""
        if not len(images):
            return np.zeros(images.shape, np.float32)
        from torch.nn import functional as F

        from tasks.quality import fitting

        inputs = fitting.normalised(fitting.to_tensor(images, PX))
        mirrored = fitting.predict(self.network, inputs.flip(-1)).sigmoid().flip(-1)
        soft = (fitting.predict(self.network, inputs).sigmoid() + mirrored) / 2
        full = F.interpolate(soft, size=images.shape[1:], mode="bilinear", align_corners=False)
        return full[:, 0].numpy()

    def dice(self, images: Grey, masks: Mask) -> NDArray[np.float32]:
        """Dice coefficient, 0..1, of what is drawn in each image with its mask."""
        return dice(self.probabilities(images) > 0.5, masks)


def dice(drawn: Mask, masks: Mask) -> NDArray[np.float32]:
    """Dice coefficient of each pair of masks (n, h, w); 1 where both are blank.

    >>> bool(np.isclose(dice(np.ones((1, 2, 2), bool), np.array([[[True, True], [False, False]]]))[0], 2 / 3))
    True
    """
    both = (drawn & masks).sum((1, 2))
    total = drawn.sum((1, 2)) + masks.sum((1, 2))
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0).astype(np.float32)


def train(examples: Pictures, held_out: Pictures, params: Params, seed: int, advance: Advance = silent) -> Judge:
    """Train on `examples`; the report is measured on `held_out`, whose groups must be others.

    Raises:
        ValueError: no example has a mask.
    """
    from torch.nn import functional as F

    from tasks.quality import fitting

    drawn = examples.masks.any(axis=(1, 2))
    if not drawn.any():
        raise ValueError(f"all {len(examples)} masks are blank; a segmenter needs lesions to learn from")
    network = fitting.initialise(_network, seed)
    inputs, wanted = fitting.to_tensor(examples.images, PX), fitting.to_mask_tensor(examples.masks, PX)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
        views, masks = fitting.augment(inputs[rows], wanted[rows], rng)
        assert masks is not None
        logits = network(fitting.normalised(views))
        soft = logits.sigmoid()
        total = soft.sum((1, 2, 3)) + masks.sum((1, 2, 3))
        overlap = (2 * (soft * masks).sum((1, 2, 3)) + 1) / (total + 1)
        # Healthy images only through cross-entropy: their Dice rewards drawing nothing, anywhere.
        lesion = (masks.sum((1, 2, 3)) > 0).float()
        missed = ((1 - overlap) * lesion).sum() / lesion.sum().clamp(min=1)
        return missed + F.binary_cross_entropy_with_logits(logits, masks)

    everyone = np.zeros(len(examples), np.intp)
    batches = fitting.balanced_batches(everyone, params.batch, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    weights = fitting.dump(network, {"kind": "segmenter"})
    return Judge(weights, measure(load(weights), held_out))


def load(weights: bytes) -> Segmenter:
    """The segmenter of the bytes that `train` made."""
    from tasks.quality import fitting

    network, _ = fitting.restore(weights, "segmenter", lambda config: _network())
    return Segmenter(network)


def measure(segmenter: Segmenter, held_out: Pictures) -> dict[str, float]:
    """Mean and median Dice on images with a lesion, with their number; on healthy ones, the share in which
    under 1 % of the image is drawn."""
    lesion = held_out.masks.any(axis=(1, 2))
    report = {"n_lesions": float(lesion.sum()), "n_healthy": float((~lesion).sum())}
    drawn = segmenter.probabilities(held_out.images) > 0.5
    if lesion.any():
        overlap = dice(drawn[lesion], held_out.masks[lesion])
        report |= {"dice": float(overlap.mean()), "dice_median": float(np.median(overlap))}
    if not lesion.all():
        report["left_blank"] = float((drawn[~lesion].mean((1, 2)) < 0.01).mean())
    return report


def _network() -> "nn.Module":
    from monai.networks.nets.basic_unet import BasicUNet

    # Batch rather than MONAI's default instance norm: echo level tells lesion from tissue, and instance norm
    # erases it.
    return BasicUNet(2, 1, 1, (8, 16, 32, 48, 64, 8), norm="batch", act="relu")
