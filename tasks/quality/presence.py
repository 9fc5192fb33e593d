"""Is there a lesion where the mask says, and nowhere else?

Three questions about one claim. Does anything stand out inside the mask from what is right around it, to the segmenter
or to the eye? Does the segmenter see more there than anywhere else of the same size? And, where the picture that a
lesion was drawn into is known, did it change inside the mask rather than outside? Dice cannot ask them: it is 0 both
where a shy segmenter draws nothing on a real lesion and where there is none.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask
from tasks.quality.contrast import contrast_to_noise, surrounding_ring
from tasks.quality.judged import Evidence, is_lesion

_NEVER = 1e-4
"""Probabilities nearer to 0 or 1 are not told apart."""
_PLAIN = 1.5
"""Contrast-to-noise ratio from which on a lesion is plain to see."""
_BY_EYE = 0.5
"""What contrast counts for beside the segmenter: of masks over healthy breast tissue, 5 in 6 are caught with it, 4 in 7
without."""


def lesion_presence(evidence: Evidence) -> NDArray[np.float32]:
    """How plainly a lesion stands out where the mask says, -1 to 1.75: segmenter's mean probability of lesion inside
    the mask less that in the ring around it, plus half their contrast-to-noise ratio (1.5 at most). NaN where by its
    label there is no lesion; -1 where there should be one but the mask is blank or fills the picture."""
    return _asked(evidence, _against_ring, -1.0)


def lesion_position(evidence: Evidence) -> NDArray[np.float32]:
    """Segmenter's mean log-odds of lesion inside the mask less that of the likeliest place elsewhere of the same size:
    above 0, the lesion is where the mask says. NaN where by its label there is no lesion."""
    return _asked(evidence, _against_elsewhere, float(2 * np.log(_NEVER)))


def lesion_change(evidence: Evidence) -> NDArray[np.float32]:
    """Share, 0..1, of the change that a lesion made to its background that lies inside its mask, by mean change a
    pixel; 0 where nothing changed. NaN where the background is not known or the label calls for no lesion."""
    pictures = evidence.scored
    out = np.full(len(pictures), np.nan, np.float32)
    if evidence.backgrounds is None:
        return out
    for row in np.flatnonzero(is_lesion(pictures.labels)):
        out[row] = concentration(pictures.images[row], evidence.backgrounds[row], pictures.masks[row])
    return out


def concentration(image: Grey, background: Grey, mask: Mask) -> float:
    """Mean absolute change a pixel inside `mask` over the sum of that inside and that outside, 0..1.

    >>> flat = np.full((4, 4), 90, np.uint8)
    >>> lesion = np.eye(4, dtype=bool)
    >>> concentration(np.where(lesion, 30, flat).astype(np.uint8), flat, lesion), concentration(flat, flat, lesion)
    (1.0, 0.0)
    """
    if not mask.any() or mask.all():
        return 0.0
    change = np.abs(image.astype(np.float64) - background)
    inside, outside = float(change[mask].mean()), float(change[~mask].mean())
    return inside / (inside + outside) if inside > 0 else 0.0


def _asked(
    evidence: Evidence, question: Callable[[Grey, NDArray[np.float32], Mask, Mask], float], absent: float
) -> NDArray[np.float32]:
    pictures = evidence.scored
    out = np.full(len(pictures), np.nan, np.float32)
    for row in np.flatnonzero(is_lesion(pictures.labels)):
        image, mask = pictures.images[row], pictures.masks[row]
        ring = surrounding_ring(image, mask)
        out[row] = question(image, evidence.drawn[row], mask, ring) if mask.any() and ring.any() else absent
    return out


def _against_ring(image: Grey, drawn: NDArray[np.float32], mask: Mask, ring: Mask) -> float:
    contrast = contrast_to_noise(image.astype(np.float32), mask, ring)
    return float(drawn[mask].mean() - drawn[ring].mean()) + _BY_EYE * min(contrast, _PLAIN)


def _against_elsewhere(image: Grey, drawn: NDArray[np.float32], mask: Mask, ring: Mask) -> float:
    likely = np.clip(drawn.astype(np.float64), _NEVER, 1 - _NEVER)
    odds = np.log(likely / (1 - likely))
    elsewhere = np.sort(odds[~mask])[-int(mask.sum()) :]
    return float(odds[mask].mean() - elsewhere.mean())
