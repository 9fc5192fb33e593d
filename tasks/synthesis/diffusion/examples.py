"""What an adapter learns from: real images with the region to learn, cut as inference cuts them, encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask, flip
from tasks.synthesis.diffusion import latents, window
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.cache import EncodedViews, Latents


@dataclass(frozen=True)
class Example:
    """One real image, what of it is to be learned, all (H, W), and the label that names its prompt.

    Args:
        mask: the lesion; None: the whole picture is learned, as for healthy tissue.
        flawed: the same image with something wrong in the hole, such as a seam; the adapter then learns to make
            `image` of it.
        hole: what the model may fill, where that is not the mask and its margin.
    """

    image: Grey
    mask: Mask | None
    label: str
    flawed: Grey | None = None
    hole: Mask | None = None

    def parts(self) -> list[object]:
        """All that it consists of, for a digest."""
        return [self.label, *(part for array in (self.image, self.mask, self.flawed, self.hole) for part in _of(array))]


@dataclass(frozen=True)
class Views:
    """An example as the model sees it, plain and mirrored, all (2, px, px)."""

    images: NDArray[np.uint8]
    holes: NDArray[np.bool_]
    flawed: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Encoded:
    """Examples as the UNet sees them, by example and mirroring (N, 2, ...).

    `clean` is the latent to learn, `start` the one that noise is added to: the same, but for flawed pairs.
    `paired` (N,) says which ones these are. `label` (N,) is the place of an example's label among those given.
    """

    clean: torch.Tensor
    start: torch.Tensor
    hole: torch.Tensor
    condition: torch.Tensor | None
    paired: NDArray[np.bool_]
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.paired)


def views(example: Example, px: int) -> Views:
    """What a model of `px` pixels is shown of an example. Image and hole are cut and mirrored together."""
    region = example.hole if example.hole is not None else example.mask
    if region is not None and not region.any():
        raise ValueError("an example has a blank mask; expected a lesion, or no mask where all of it is to be learned")
    if example.hole is not None:
        view = window.around(example.hole, px)
        hole = window.cut_mask(example.hole, view)
    elif example.mask is not None:
        view = window.around(window.hole(example.mask, px), px)
        hole = window.hole(window.cut_mask(example.mask, view), px)
    else:
        view = window.around(np.ones(example.image.shape, np.bool_), px)
        hole = np.ones((px, px), np.bool_)
    image = window.cut(example.image, view)
    mirrored, mirrored_hole = flip(image, hole)
    assert mirrored_hole is not None
    flawed = None
    if example.flawed is not None:
        part = window.cut(example.flawed, view)
        flawed = np.stack([part, flip(part, None)[0]])
    return Views(np.stack([image, mirrored]), np.stack([hole, mirrored_hole]), flawed)


def encode(base: Base, examples: Sequence[Example], labels: Sequence[str], inpaints: bool, cache: Latents) -> Encoded:
    """Encode everything once, or take it from the cache."""
    encoder = EncodedViews(base, cache)
    seen = [views(example, base.px) for example in examples]
    encoded = [encoder.encode(view.images, view.holes if inpaints else None, view.flawed) for view in seen]
    clean = torch.stack([part.clean for part in encoded])
    flawed = [part.clean if part.flawed is None else part.flawed for part in encoded]
    conditions = [part.condition for part in encoded if part.condition is not None]
    paired = np.array([example.flawed is not None for example in examples])
    return Encoded(
        clean=clean,
        start=torch.stack(flawed) if paired.any() else clean,
        hole=torch.stack([latents.latent_mask(base, view.holes) for view in seen]).to(clean.device),
        condition=torch.stack(conditions) if inpaints else None,
        paired=paired,
        label=torch.tensor([labels.index(example.label) for example in examples]),
    )


def _of(array: Grey | Mask | None) -> list[object]:
    return ["none"] if array is None else [array.shape, array.tobytes()]
