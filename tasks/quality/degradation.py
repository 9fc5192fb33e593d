"""Known damage to an image, by kind and severity.

Three uses: the feature extractor learns to tell how damaged an image is, so that distances on its features
move when pictures get worse; the critic learns from damaged lesions what not to pick; tests plant damage and
ask the scores to find it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.quality.judge import Pictures

Rng = np.random.Generator


def blur(image: Grey, severity: float, rng: Rng) -> Grey:
    """Gaussian blur, up to σ = 2.5 % of the image's height: speckle melts."""
    return _grey(ndimage.gaussian_filter(image.astype(np.float32), 0.025 * severity * image.shape[0]))


def noise(image: Grey, severity: float, rng: Rng) -> Grey:
    """White Gaussian noise, up to σ = 40 levels: grain that no transducer makes."""
    return _grey(image + rng.normal(0, 40 * severity, image.shape))


def blocks(image: Grey, severity: float, rng: Rng) -> Grey:
    """Blend towards 4 × 4 blocks: what a weak decoder leaves behind."""
    height, width = image.shape
    coarse = image[: height // 4 * 4, : width // 4 * 4].reshape(height // 4, 4, width // 4, 4).mean((1, 3))
    coarse = np.kron(coarse, np.ones((4, 4)))
    coarse = np.pad(coarse, ((0, height - coarse.shape[0]), (0, width - coarse.shape[1])), mode="edge")
    return _grey(image + severity * (coarse - image))


def flatten(image: Grey, severity: float, rng: Rng) -> Grey:
    """Contrast around the mean lost, up to 80 %."""
    mean = image.mean()
    return _grey(mean + (image - mean) * (1 - 0.8 * severity))


def brighten(image: Grey, severity: float, rng: Rng) -> Grey:
    """Grey levels raised by a power, up to 1/3."""
    return _grey(255 * (image / 255.0) ** (1 / (1 + 2 * severity)))


DEGRADATIONS: dict[str, Callable[[Grey, float, Rng], Grey]] = {
    "blur": blur,
    "noise": noise,
    "blocks": blocks,
    "flatten": flatten,
    "brighten": brighten,
}


def degrade(image: Grey, severities: NDArray[np.float32], rng: Rng) -> Grey:
    """Apply every kind of `DEGRADATIONS`, in its order, at its severity (0: untouched, 1: the worst)."""
    for kind, severity in zip(DEGRADATIONS.values(), severities, strict=True):
        if severity > 0:
            image = kind(image, float(severity), rng)
    return image


def degrade_inside(image: Grey, mask: Mask, severities: NDArray[np.float32], rng: Rng) -> Grey:
    """The same, only where `mask` is True, fading over the last 2 pixels inside its edge."""
    soft = np.clip(np.asarray(ndimage.distance_transform_edt(mask)) / 3.0, 0, 1)
    return _grey(image + soft * (degrade(image, severities, rng).astype(np.float32) - image))


def damaged(pictures: Pictures, seed: int, whole: bool = False) -> Pictures:
    """Two kinds of visible damage inside every lesion, all over where a mask is blank or pictures are seen `whole`:
    what any detector worth its name must find."""
    images = pictures.images.copy()
    for row, (image, mask) in enumerate(zip(pictures.images, pictures.masks, strict=True)):
        rng = np.random.default_rng([seed, 5, row])
        severities = np.zeros(len(DEGRADATIONS), np.float32)
        severities[rng.choice(len(DEGRADATIONS), 2, replace=False)] = rng.uniform(0.5, 1, 2)
        inside = mask.any() and not whole
        images[row] = degrade_inside(image, mask, severities, rng) if inside else degrade(image, severities, rng)
    return Pictures(images, pictures.masks, pictures.labels, pictures.groups)


def draw_severities(rng: Rng) -> NDArray[np.float32]:
    """Severities of a random picture: a third untouched, else one or two kinds."""
    severities = np.zeros(len(DEGRADATIONS), np.float32)
    if rng.random() > 1 / 3:
        chosen = rng.choice(len(DEGRADATIONS), size=rng.integers(1, 3), replace=False)
        severities[chosen] = rng.random(len(chosen))
    return severities


def _grey(image: NDArray[np.floating]) -> Grey:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
