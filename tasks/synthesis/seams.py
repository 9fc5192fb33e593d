"""Seams: what goes wrong at the border of a lesion that was put into a picture, made on purpose and measured.

A pair is a real picture with its lesion, and the same picture with the border spoiled the way that pasting
and inpainting spoil it. A model that learns to turn the second into the first repairs seams; Wen et al., JMI
2026, do so with pairs compared by hand, here the pairs and the ring in which they differ come from geometry.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.synthesis import posterior
from tasks.synthesis.diffusion.lora import Example, LoraParams
from tasks.synthesis.tissue import outside_picture

Levels = NDArray[np.floating]

RING = 0.04
"""Half the width of the ring of a seam, as a share of the image's side: about 5 pixels of 128."""

_FLATTENED = 0.4  # share of the pairs whose shading behind the lesion is taken away as well
_SMALLEST_FLATTENED = 4  # grey levels; less is no shading
_SEEN = 4  # ring widths around a lesion that decide what is made of its border
_TEXTURES = ("kept", "smoothed", "noisy")
_EDGES = ("kept", "hard", "blurred")


class Params(LoraParams):
    """How the adapter that repairs seams is trained."""

    flaws_per_scan: int = Field(
        default=4, ge=1, le=64, description="Differently spoiled copies of every training scan that it learns from"
    )


def pairs(scans: Sequence[Example], flaws_per_scan: int, seed: int) -> list[Example]:
    """`flaws_per_scan` seam pairs of every scan with a lesion, told by their seed and the scan's place alone."""
    made: list[Example] = []
    for number, scan in enumerate(scans):
        assert scan.mask is not None
        for copy in range(flaws_per_scan):
            spoiled, where = flawed(scan.image, scan.mask, np.random.default_rng([seed, number, copy]))
            made.append(Example(scan.image, scan.mask, scan.label, flawed=spoiled, hole=where))
    return made


def ring(mask: Mask, width_px: float) -> Mask:
    """Pixels within `width_px` of the edge of a lesion, on both of its sides.

    >>> lesion = np.zeros((1, 9), bool); lesion[:, 4:] = True
    >>> ring(lesion, 2).astype(int)
    array([[0, 0, 1, 1, 1, 1, 0, 0, 0]])
    """
    return np.asarray(np.abs(signed_distance(mask)) < width_px)


def signed_distance(mask: Mask) -> NDArray[np.float32]:
    """Distance of pixel centres to the edge of a mask in pixels: negative inside, never 0."""
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    return np.where(mask, 0.5 - np.asarray(inside), np.asarray(outside) - 0.5).astype(np.float32)


def flawed(image: Grey, mask: Mask, rng: np.random.Generator) -> tuple[Grey, Mask]:
    """A picture whose lesion looks put in, and where it differs from `image`, as a seam's ring.

    Spoiled are, each by chance and amount: where the edge lies, how sharp it is, the texture and the grey level
    of the lesion's side of it; and the shading behind the lesion. Every flaw fades out within the ring, so
    that pixels outside it stay as they are.

    Args:
        image: real scan, (H, W).
        mask: its lesion, (H, W), not blank.
    """
    width_px = RING * image.shape[0]
    part = _around(mask, round(_SEEN * width_px))
    distance = signed_distance(mask)
    where = np.asarray(np.abs(distance) < width_px)
    near = np.where(where, np.cos(np.pi / 2 * distance / width_px) ** 2, 0)  # 1 at the edge, 0 at the ring's rims
    levels = image.astype(np.float32)
    levels[part] = _spoiled(levels[part], distance[part], near[part], width_px, rng)
    removed = _shading(image, mask, rng)
    where |= np.abs(removed) > 1
    spoiled = posterior.shaded(np.clip(np.rint(levels), 0, 255).astype(np.uint8), -removed)
    return np.where(where, spoiled, image), where


def edge_profile(image: Grey, mask: Mask, reach_px: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How steep and how bright a picture is by distance to the edge of a mask.

    Returns:
        Mean absolute derivative across the edge in grey levels per pixel, and mean grey level, both by
        signed distance: (2 * reach_px,), from -reach_px .. -reach_px + 1 inside the mask to reach_px - 1 ..
        reach_px outside. NaN where the mask has no such pixel.
    """
    distance = signed_distance(mask)
    across = _gradient(ndimage.gaussian_filter(distance, 1.0))
    across /= np.maximum(np.hypot(*across), 1e-6)
    levels = image.astype(np.float64)
    steep = np.abs((_gradient(levels) * across).sum(axis=0))
    place = np.floor(distance).astype(np.int64) + reach_px
    seen = (place >= 0) & (place < 2 * reach_px)
    count = np.bincount(place[seen], minlength=2 * reach_px)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place[seen], weights=of[seen], minlength=2 * reach_px) / count for of in (steep, levels)]
    return means[0], means[1]


def _around(mask: Mask, px: int) -> tuple[slice, slice]:
    """The bounding box of a mask and `px` pixels around it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, int(rows[0]) - px), int(rows[-1]) + 1 + px),
        slice(max(0, int(columns[0]) - px), int(columns[-1]) + 1 + px),
    )


def _spoiled(levels: Levels, distance: Levels, near: Levels, width_px: float, rng: np.random.Generator) -> Levels:
    """Everything that is wrong at the border itself. `near` says how much, by pixel; lengths are ring widths."""
    inside = distance < 0
    mean = float(levels[inside].mean())
    levels = _displaced(levels, distance, near, width_px, rng)
    levels = _edged(levels, distance, near, width_px, rng)
    lesion_side = near * np.clip(0.5 - distance, 0, 1)
    levels = _textured(levels, lesion_side, width_px, rng)
    gain, offset = float(np.exp(rng.normal(0, 0.2))), float(rng.normal(0, 14))
    return (levels + lesion_side * ((gain - 1) * (levels - mean) + offset)).astype(np.float32)


def _gradient(field: NDArray[np.floating]) -> NDArray[np.float64]:
    """Derivatives down and across, (2, H, W)."""
    return np.asarray([np.gradient(field, axis=axis) for axis in (0, 1)], np.float64)


def _displaced(levels: Levels, distance: Levels, near: Levels, width_px: float, rng: np.random.Generator) -> Levels:
    """Content moved in and out across the edge, by another amount everywhere along it."""
    field = ndimage.gaussian_filter(rng.standard_normal(levels.shape), 2 * width_px)
    shift = field / max(float(field.std()), 1e-9) * rng.uniform(0, 0.35) * width_px
    across = _gradient(ndimage.gaussian_filter(distance, 1.0))
    where = np.asarray(np.indices(levels.shape), np.float64) + across * (shift * near)
    return np.asarray(ndimage.map_coordinates(levels, where, order=1, mode="nearest"), np.float32)


def _edged(levels: Levels, distance: Levels, near: Levels, width_px: float, rng: np.random.Generator) -> Levels:
    """The edge as it is, cut hard, or blurred."""
    how = _EDGES[int(rng.integers(len(_EDGES)))]
    strength = rng.uniform(0.5, 1)
    if how == "kept":
        return levels
    if how == "blurred":
        other = ndimage.gaussian_filter(levels, rng.uniform(0.15, 0.5) * width_px)
    else:  # either side goes on up to the edge as it is further away, with its own speckle
        inside, outside = (_level_away(levels, sign * distance, width_px) for sign in (-1, 1))
        speckle = levels - ndimage.gaussian_filter(levels, 0.3 * width_px)
        other = speckle + np.where(distance < 0, inside, outside)
    return (levels + strength * near * (other - levels)).astype(np.float32)


def _level_away(levels: Levels, away: Levels, width_px: float) -> Levels:
    """Smooth grey level of the side where `away` is positive, read half a ring's width off the edge."""
    own = (away > width_px / 2).astype(np.float32)
    if not own.any():
        own = (away > 0).astype(np.float32)
    weight = ndimage.gaussian_filter(own, width_px) + 1e-6
    return (ndimage.gaussian_filter(levels * own, width_px) / weight).astype(np.float32)


def _textured(levels: Levels, lesion_side: Levels, width_px: float, rng: np.random.Generator) -> Levels:
    """The lesion's side of the edge as it is, smoothed as an autoencoder does, or with strange speckle."""
    how = _TEXTURES[int(rng.integers(len(_TEXTURES)))]
    if how == "kept":
        return levels
    if how == "smoothed":
        other = ndimage.gaussian_filter(levels, rng.uniform(0.14, 0.3) * width_px)
    else:
        grain = ndimage.gaussian_filter(rng.standard_normal(levels.shape), rng.uniform(0.06, 0.24) * width_px)
        other = levels + rng.uniform(4, 16) * grain / max(float(grain.std()), 1e-6)
    return (levels + lesion_side * (other - levels)).astype(np.float32)


def _shading(image: Grey, mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Shadow or enhancement in grey levels, as measured behind this lesion, that a flaw takes away; often none."""
    taken, share = rng.random() < _FLATTENED, rng.uniform(0.5, 1)
    imaged = ~outside_picture(image)
    read = posterior.behind(image, mask, imaged) if taken else None
    if read is None or abs(read.change) < _SMALLEST_FLATTENED:
        return np.zeros(image.shape, np.float32)
    return np.where(imaged, posterior.zone_reaching(mask, imaged, 1.5, share * read.change), 0)
