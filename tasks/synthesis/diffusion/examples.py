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
        attributes: words of its prompt beside organ and label.
        joint: image and mask are learned whole, as one picture (`latents.joint`).
        control: what a ControlNet is shown of the picture, which is learned whole: `mask` is then None.
    """

    image: Grey
    mask: Mask | None
    label: str
    flawed: Grey | None = None
    hole: Mask | None = None
    attributes: tuple[str, ...] = ()
    joint: bool = False
    control: Mask | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """Label and attributes: what tells its prompt from those of others."""
        return (self.label, *self.attributes)

    def parts(self) -> list[object]:
        """All that it consists of, for a digest."""
        arrays = [
            part for array in (self.image, self.mask, self.flawed, self.hole, self.control) for part in _of(array)
        ]
        return [*self.words, *(["joint"] if self.joint else []), *arrays]


@dataclass(frozen=True)
class Views:
    """An example as the model sees it, plain and mirrored, all (2, px, px); images of joint ones (2, px, px, 3)."""

    images: NDArray[np.uint8]
    holes: NDArray[np.bool_]
    flawed: NDArray[np.uint8] | None
    controls: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Encoded:
    """Examples as the UNet sees them, by example and mirroring (N, 2, ...).

    `clean` is the latent to learn, `start` the one that noise is added to: the same, but for flawed pairs. `hole` is
    where errors count for more.
    `paired` (N,) says which ones these are. `label` (N,) is the place of an example's words among those given.
    `control` (N, 2, px, px) is what a ControlNet is shown.
    """

    clean: torch.Tensor
    start: torch.Tensor
    hole: torch.Tensor
    condition: torch.Tensor | None
    paired: NDArray[np.bool_]
    label: torch.Tensor
    control: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.paired)


def views(example: Example, px: int) -> Views:
    """What a model of `px` pixels is shown of an example. Image and hole are cut and mirrored together."""
    if example.joint:
        return _joint_views(example, px)
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
    mirrored, mirrored_hole = _mirrored(image, hole)
    flawed = None
    if example.flawed is not None:
        part = window.cut(example.flawed, view)
        flawed = np.stack([part, flip(part, None)[0]])
    controls = None
    if example.control is not None:
        part = window.cut_mask(example.control, view)
        controls = np.stack([part, part[:, ::-1]])
    return Views(np.stack([image, mirrored]), np.stack([hole, mirrored_hole]), flawed, controls)


def _joint_views(example: Example, px: int) -> Views:
    if example.mask is None or not example.mask.any():
        raise ValueError("an example to learn with its mask has none, or a blank one; expected a scan with a mask")
    everything = np.ones((px, px), np.bool_)
    view = window.Window(0, 0, example.image.shape[0], px)
    image, mask = window.cut(example.image, view), window.cut_mask(example.mask, view)
    pairs = [latents.joint(image, mask), latents.joint(*_mirrored(image, mask))]
    return Views(np.stack(pairs), np.stack([everything, everything]), None)


def _mirrored(image: Grey, mask: Mask) -> tuple[Grey, Mask]:
    mirrored, moved = flip(image, mask)
    assert moved is not None
    return mirrored, moved


def encode(
    base: Base, examples: Sequence[Example], words: Sequence[tuple[str, ...]], inpaints: bool, cache: Latents
) -> Encoded:
    """Encode everything once, or take it from the cache; `words` are those of all examples, once each."""
    encoder = EncodedViews(base, cache)
    seen = [views(example, base.px) for example in examples]
    encoded = [encoder.encode(view.images, view.holes if inpaints else None, view.flawed) for view in seen]
    clean = torch.stack([part.clean for part in encoded])
    flawed = [part.clean if part.flawed is None else part.flawed for part in encoded]
    conditions = [part.condition for part in encoded if part.condition is not None]
    controls = [torch.from_numpy(view.controls) for view in seen if view.controls is not None]
    paired = np.array([example.flawed is not None for example in examples])
    return Encoded(
        clean=clean,
        start=torch.stack(flawed) if paired.any() else clean,
        hole=torch.stack([latents.latent_mask(base, _counting(view)) for view in seen]).to(clean.device),
        condition=torch.stack(conditions) if inpaints else None,
        paired=paired,
        label=torch.tensor([words.index(example.words) for example in examples]),
        control=torch.stack(controls) if controls else None,
    )


def _counting(view: Views) -> NDArray[np.bool_]:
    """Where an error counts for more: what is filled or, in a picture drawn whole, what its mask asks for."""
    if view.controls is None:
        return view.holes
    return np.stack([window.hole(mask, mask.shape[0]) for mask in view.controls])


def _of(array: Grey | Mask | None) -> list[object]:
    return ["none"] if array is None else [array.shape, array.tobytes()]
