"""Failures of single images, planted into real scans."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.quality.judge import Pictures

Rng = np.random.Generator

_LETTERS = list("ABCDEFGHIKLMNRSTVX0123456789")
_OTHER = {"benign": "malignant", "malignant": "benign"}


@dataclass(frozen=True)
class Failure:
    """What is planted, and the score that is meant to catch it. `plant` spoils pictures; it is handed healthy ones too,
    and its result may have fewer rows."""

    what: str
    score: str
    plant: Callable[[Pictures, Pictures, Rng], Pictures]


def lesions(pictures: Pictures) -> Pictures:
    """Those with a mask."""
    return pictures.select(np.asarray(pictures.masks.any(axis=(1, 2))))


def swapped_labels(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
    """Benign called malignant, and the other way round."""
    pictures = lesions(pictures)
    return replace(pictures, labels=[_OTHER[label] for label in pictures.labels])


def shifted_masks(share: float) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """Masks moved both ways by this share of their size, towards the side on which there is room."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        pictures = lesions(pictures)
        moved = [_moved(mask, share, rng) for mask in pictures.masks]
        out = replace(pictures, masks=np.stack(moved))
        return out.select(np.asarray(out.masks.any(axis=(1, 2))))

    return plant


def missing_lesions(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
    """Mask and label of a lesion over a healthy scan."""
    pictures = lesions(pictures)
    under = rng.integers(len(healthy), size=len(pictures))
    groups = [healthy.groups[row] for row in under.tolist()]
    return Pictures(healthy.images[under], pictures.masks, pictures.labels, groups)


def blurred(sigma: float, *, inside: bool) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """Gaussian blur of the whole picture, or of the lesion alone, fading over 3 pixels."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        pictures = lesions(pictures) if inside else pictures
        images = pictures.images.astype(np.float32)
        smooth = np.asarray(ndimage.gaussian_filter(images, (0, sigma, sigma)))
        return replace(pictures, images=_grey(_faded(images, smooth, pictures.masks) if inside else smooth))

    return plant


def noise_for_speckle(*, inside: bool) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """White noise with the local mean and variance of the speckle that it takes the place of."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        pictures = lesions(pictures) if inside else pictures
        images = pictures.images.astype(np.float32)
        mean = ndimage.uniform_filter(images, (0, 7, 7))
        deviation = np.sqrt(np.maximum(ndimage.uniform_filter(images**2, (0, 7, 7)) - mean**2, 0))
        noisy = mean + deviation * rng.normal(size=images.shape).astype(np.float32)
        noisy = np.where(images.any(axis=1)[:, None] & images.any(axis=2)[:, :, None], noisy, images)  # not padding
        return replace(pictures, images=_grey(np.where(pictures.masks, noisy, images) if inside else noisy))

    return plant


def pasted_squares(side: int) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """A square of another scan with hard edges, both from inside the picture."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        images = pictures.images.copy()
        for row, image in enumerate(pictures.images):
            other = pictures.images[(row + rng.integers(1, len(pictures))) % len(pictures)]
            images[row][_square(image, side, rng)] = other[_square(other, side, rng)]
        return replace(pictures, images=images)

    return plant


def flat_squares(side: int) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """A square of one grey level, black and white included."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        images = pictures.images.copy()
        for image in images:
            image[_square(image, side, rng)] = rng.choice([0, 90, 180, 255])
        return replace(pictures, images=images)

    return plant


def text(size: int) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """A word of four to seven bright letters."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        font, images = ImageFont.load_default(size), pictures.images.copy()
        for row, image in enumerate(pictures.images):
            word = "".join(rng.choice(_LETTERS, rng.integers(4, 8)))
            at = rng.uniform((0.12, 0.12), (0.5, 0.85)) * image.shape[0]
            drawn = Image.fromarray(image)
            ImageDraw.Draw(drawn).text(tuple(at.tolist()), word, fill=int(rng.choice([180, 220, 255])), font=font)
            images[row] = np.asarray(drawn)
        return replace(pictures, images=images)

    return plant


def calipers(arm: int) -> Callable[[Pictures, Pictures, Rng], Pictures]:
    """Two upright crosses one pixel thin."""

    def plant(pictures: Pictures, healthy: Pictures, rng: Rng) -> Pictures:
        images = pictures.images.copy()
        for image in images:
            for _ in range(2):
                y, x = rng.integers(image.shape[0] // 4, image.shape[0] * 3 // 4, 2)
                level = rng.choice([180, 220, 255])
                image[y - arm : y + arm + 1, x] = image[y, x - arm : x + arm + 1] = level
        return replace(pictures, images=images)

    return plant


FAILURES = [
    Failure("labels swapped", "classifier_confidence", swapped_labels),
    Failure("masks shifted by half their size", "lesion_position", shifted_masks(0.5)),
    Failure("masks shifted by their size", "lesion_position", shifted_masks(1)),
    Failure("masks without a lesion", "lesion_presence", missing_lesions),
    Failure("blurred, sigma 1 px", "speckle_range", blurred(1, inside=False)),
    Failure("blurred inside the lesion, sigma 2 px", "speckle_range", blurred(2, inside=True)),
    Failure("noise for speckle", "speckle_range", noise_for_speckle(inside=False)),
    Failure("noise for speckle inside the lesion", "speckle_range", noise_for_speckle(inside=True)),
    Failure("squares of other scans, 24 px", "defects", pasted_squares(24)),
    Failure("squares of one level, 16 px", "defects", flat_squares(16)),
    Failure("text, 10 px", "defects", text(10)),
    Failure("calipers, 7 px", "defects", calipers(3)),
]


def _moved(mask: Mask, share: float, rng: Rng) -> Mask:
    shift: list[int] = []
    for axis in (0, 1):
        covered = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = int(covered[0]), int(covered[-1])
        by = round(share * (last + 1 - first)) * int(rng.choice([-1, 1]))
        shift.append(by if first + by >= 0 and last + by < mask.shape[axis] else -by)
    return np.asarray(ndimage.shift(mask.astype(np.uint8), shift, order=0)) > 0


def _square(image: Grey, side: int, rng: Rng) -> tuple[slice, slice]:
    """A square inside what is not black padding."""
    found: list[slice] = []
    for axis in (1, 0):
        shown = np.flatnonzero((image > 8).any(axis=axis))
        first, last = (int(shown[0]), int(shown[-1])) if len(shown) else (0, len(image) - 1)
        room = max(first + 1, last + 1 - side)
        at = min(int(rng.integers(first, room)), len(image) - side)
        found.append(slice(at, at + side))
    return found[0], found[1]


def _faded(images: NDArray[np.float32], changed: NDArray[np.float32], masks: Mask) -> NDArray[np.float32]:
    soft = np.stack([np.clip(np.asarray(ndimage.distance_transform_edt(mask)) / 3, 0, 1) for mask in masks])
    return images + soft.astype(np.float32) * (changed - images)


def _grey(images: NDArray[np.floating]) -> Grey:
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
