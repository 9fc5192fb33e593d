"""Can the lesion be seen? Its grey level against the tissue right around it."""

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask, dilate
from tasks.quality.judged import Evidence, is_lesion


def contrast_to_noise(image: NDArray[np.float32], lesion: Mask, ring: Mask) -> float:
    """Contrast-to-noise ratio of `lesion` against `ring`.

    Args:
        image: log-compressed grey levels, shape (height, width).
        lesion: True inside the lesion.
        ring: True in the tissue that it is compared with.

    Returns:
        |difference of means| over the root of the summed variances: 0 upwards, no unit.

    Raises:
        ValueError: one of the two is blank.

    Source: Patterson and Foster, Ultrasonic Imaging 5 (1983), the CNR of cysts in speckle.
    """
    if not lesion.any() or not ring.any():
        found = f"{int(lesion.sum())} lesion and {int(ring.sum())} ring pixels"
        raise ValueError(f"{found}; both sides must hold pixels")
    inside, outside = image[lesion].astype(np.float64), image[ring].astype(np.float64)
    spread = float(np.hypot(inside.std(), outside.std()))
    difference = abs(float(inside.mean() - outside.mean()))
    return difference / max(spread, 1.0)  # one grey level: what 8 bits can tell


def surrounding_ring(image: Grey, mask: Mask) -> Mask:
    """The ring around a lesion, as wide as half its equivalent radius (2 pixels at least). Black padding is
    left out."""
    width = max(2.0, 0.5 * float(np.sqrt(mask.sum() / np.pi)))
    near = dilate(mask, round(width)) & ~mask
    picture = np.outer((image > 0).any(axis=1), (image > 0).any(axis=0))
    return near & picture


def lesion_contrast(evidence: Evidence) -> NDArray[np.float32]:
    """Contrast-to-noise ratio of every lesion with the ring around it, 0 upwards. NaN where by its label
    there is no lesion to see; 0 where there should be one but the mask is blank or fills the picture."""
    pictures = evidence.scored
    out = np.full(len(pictures), np.nan, np.float32)
    for row in np.flatnonzero(is_lesion(pictures.labels)):
        image, mask = pictures.images[row], pictures.masks[row]
        ring = surrounding_ring(image, mask)
        visible = mask.any() and ring.any()
        out[row] = contrast_to_noise(image.astype(np.float32), mask, ring) if visible else 0.0
    return out
