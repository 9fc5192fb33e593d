"""What lies behind a lesion, measured and made.

Ultrasound darkens behind tissue that attenuates (posterior shadow, typical of malignant lesions) and
brightens behind fluid (posterior enhancement, typical of benign ones; Stavros et al., "Solid breast nodules",
Radiology 1995). Either is read against the tissue beside it at the same depth, and so it is measured here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask

_GAP_PX = 2  # masks are drawn by hand: rows and columns this close to one may still belong to the lesion
_BEHIND = 0.6  # share of the lesion's width, in its middle, behind which its effect is full
_FLANK = 0.4  # width of each flank that it is read against, in lesion widths
_SMALLEST_FLANK_PX = 4
_TEXTURE = 0.02  # what varies within this share of the image's side is texture
_IMAGED = 0.5  # share of a patch that must have been imaged to be read


@dataclass(frozen=True)
class Behind:
    """Mean level behind a lesion less that beside it at the same depth, `change`, and that beside it."""

    change: float
    beside: float


def behind(levels: NDArray[np.generic], mask: Mask, imaged: Mask) -> Behind | None:
    """What `levels` are behind a lesion against beside it; None where the picture leaves no room for either.

    Behind: the middle three fifths of the lesion's width, down to one lesion height below it. Beside: a strip
    on either side, two fifths of its width wide.

    Args:
        levels: grey levels or any other quantity, (H, W).
        mask: the lesion, (H, W), not blank.
        imaged: False where the picture shows no tissue; such pixels are not read.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    first, last, width = int(columns[0]), int(columns[-1]) + 1, int(columns[-1] - columns[0]) + 1
    top = int(rows[-1]) + 1 + _GAP_PX
    bottom = min(mask.shape[0], top + int(rows[-1] - rows[0]) + 1)
    if bottom - top < 2:
        return None
    inset = round((1 - _BEHIND) / 2 * width)
    flank = max(_SMALLEST_FLANK_PX, round(_FLANK * width))
    spans = [
        (first + inset, last - inset),
        (first - _GAP_PX - flank, first - _GAP_PX),
        (last + _GAP_PX, last + _GAP_PX + flank),
    ]
    below, left, right = (_mean(levels[top:bottom], imaged[top:bottom], *span) for span in spans)
    flanks = [mean for mean in (left, right) if mean is not None]
    if below is None or not flanks:
        return None
    beside = float(np.mean(flanks))
    return Behind(below - beside, beside)


def zone(mask: Mask, reach: float, peak: float) -> NDArray[np.float32]:
    """Change, (H, W), that a lesion causes behind itself: below it, soft at the sides, fading with depth.

    Args:
        reach: depth over which the change falls to 1/e, in lesion heights.
        peak: change right behind the middle of the lesion.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    covered = mask.any(axis=0)
    height, width = float(rows[-1] - rows[0] + 1), int(covered.sum())
    lowest = mask.shape[0] - 1 - mask[::-1].argmax(axis=0)
    below = np.arange(mask.shape[0], dtype=np.float32)[:, None] - lowest.astype(np.float32)
    across = ndimage.gaussian_filter1d(covered.astype(np.float32), max(1.0, width / 6))
    profile = np.where(covered, np.clip(2 * across - 1, 0, 1), 0)  # full in the middle, nothing at the sides
    fade = np.where(below > 0, np.exp(-below / (reach * height)), 0)
    soft = ndimage.gaussian_filter(peak * profile * fade, max(1.0, width / 20))
    return np.where(mask, 0, soft).astype(np.float32)


def zone_reaching(mask: Mask, imaged: Mask, reach: float, change: float) -> NDArray[np.float32]:
    """The `zone` that changes what `behind` reads by `change`; all 0 where that reads nothing."""
    unit = zone(mask, reach, 1.0)
    read = behind(unit, mask, imaged)
    if read is None or read.change < 1e-3:
        return np.zeros(mask.shape, np.float32)
    return unit * np.float32(change / read.change)


def shaded(image: Grey, change: NDArray[np.float32]) -> Grey:
    """`image` (H, W) with its local mean changed by `change` grey levels, and its texture with it.

    Behind real lesions the spread of speckle goes with about the square root of the mean: it neither stays as
    it is, as in an ideal logarithmic picture, nor grows with the mean.
    """
    levels = image.astype(np.float32)
    mean = ndimage.gaussian_filter(levels, _TEXTURE * image.shape[0])
    wanted = np.clip(mean + change, 0, 255)
    texture = (levels - mean) * np.sqrt((wanted + 1) / (mean + 1))
    return np.where(change == 0, image, np.clip(np.rint(wanted + texture), 0, 255)).astype(np.uint8)


def _mean(levels: NDArray[np.generic], imaged: Mask, first: int, last: int) -> float | None:
    part = slice(max(0, first), max(0, last))
    seen = imaged[:, part]
    if seen.shape[1] < 2 or seen.mean() < _IMAGED:
        return None
    return float(levels[:, part][seen].mean())
