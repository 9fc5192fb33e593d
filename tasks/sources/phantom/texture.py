"""Random smooth fields and the curves where they cross zero: lobules, septa, fibres."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
Real = NDArray[np.floating[Any]]


def smooth(rng: np.random.Generator, shape: tuple[int, int], size_px: tuple[float, float]) -> Field:
    """Noise of about zero mean and unit deviation whose features measure `size_px` (down, across).

    A grid of normal numbers, one for each feature, interpolated bicubically at a random offset.
    """
    rows, columns = (int(np.ceil(n / s)) + 4 for n, s in zip(shape, size_px, strict=True))
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    top, left = rng.uniform(1, 2, 2)
    box = (left, top, left + shape[1] / size_px[1], top + shape[0] / size_px[0])
    field = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(field) * np.float32(1.25)


def curve(rng: np.random.Generator, length: int, feature_px: float) -> Field:
    """A smooth line, one value a column, zero mean and unit deviation."""
    return smooth(rng, (1, length), (1, feature_px))[0]


def ridges(field: Real, width_px: float, flat: float = 0.0) -> Field:
    """Lines of about `width_px` where a field crosses zero, 0 to 1.

    `flat` from 0 to 1 fades lines that run steeply: a surface mirrors sound back only where it faces the probe.
    """
    down, across = np.gradient(field)
    slope = np.sqrt(down**2 + across**2) + np.float32(1e-6)
    line = np.exp(-((field / slope / np.float32(width_px)) ** 2))
    facing = (np.abs(down) / slope) ** 2
    return (line * (1 - flat + flat * facing)).astype(np.float32)


def rough(
    rng: np.random.Generator, shape: tuple[int, int], size_px: tuple[float, float], octaves: int, decay: float = 0.6
) -> Field:
    """Noise with features of `size_px` and of its halves, each octave `decay` times as strong as the one before."""
    total = smooth(rng, shape, size_px)
    for octave in range(1, octaves):
        finer = (max(size_px[0] / 2**octave, 1.5), max(size_px[1] / 2**octave, 1.5))
        total += np.float32(decay**octave) * smooth(rng, shape, finer)
    return total
