"""The scanner's own drawings: scales, logos, rulers. They stand at the same place in picture after picture, and two
pictures that share no more than these are no copies."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask

_LOOKED_AT = 12
_WINDOW = 17
_AGREES = 0.8
_FLAT = 1.0
"""Variance, grey levels squared, of a band-passed window below which it shows nothing."""
_SHARE = 0.2
"""Of all pairs of pictures that agree where one drawing is: that of a drawing in less than half of them."""
_MARGIN_PX = 6
_MOST = 0.4
"""Share of a picture that drawings cover at most."""


def interface(pictures: Sequence[Grey]) -> Mask | None:
    """Where pictures of one size (h, w) show the same; None where there are too few of them to say, or they show the
    same nearly everywhere: that is no drawing, they are frames of one scene.

    Up to twelve are compared, evenly spread: neighbours in a list are often frames of one person.
    """
    if len(pictures) < _LOOKED_AT:
        return None
    chosen = [pictures[k] for k in np.linspace(0, len(pictures) - 1, _LOOKED_AT).astype(int).tolist()]
    bands = [band(picture.astype(np.float32)) for picture in chosen]
    power = [_mean(pixels * pixels) for pixels in bands]
    agreeing = np.zeros(chosen[0].shape, np.int64)
    pairs = list(combinations(range(len(chosen)), 2))
    for i, j in pairs:
        seen = np.minimum(power[i], power[j]) > _FLAT
        joint = _mean(bands[i] * bands[j])
        agreeing += seen & (joint > _AGREES * np.sqrt(np.maximum(power[i] * power[j], _FLAT**2)))
    found = agreeing >= _SHARE * len(pairs)
    drawn = np.asarray(ndimage.binary_dilation(found, iterations=_MARGIN_PX), np.bool_)
    return drawn if found.any() and drawn.mean() < _MOST else None


def band(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """What lies between the grain of single pixels and slow shading."""
    fine, coarse = (ndimage.gaussian_filter(pixels, sigma) for sigma in (1.0, 4.0))
    return np.asarray(fine - coarse, np.float32)


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ndimage.uniform_filter(values, _WINDOW, mode="constant"), np.float32)
