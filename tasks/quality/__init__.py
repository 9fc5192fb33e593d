"""Judges of images and sets.

An image score is a function from `Evidence` to one number an image; a set score one from `SetEvidence` to a
`SetScore`. To add a score, write `tasks/quality/<name>.py` and a line in the table below. Importing this
needs neither torch nor MONAI: judges load them when they judge.
"""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.class_score import classifier_score
from tasks.quality.contrast import lesion_contrast
from tasks.quality.copies import nearest_similarity, picture_similarity
from tasks.quality.defects import defects
from tasks.quality.evidence import SetEvidence
from tasks.quality.frechet_scores import fid, fid_infinity, radiomic_frechet, speckle_frechet
from tasks.quality.judged import (
    Evidence,
    classifier_confidence,
    critic_realism,
    segmenter_dice,
    synthetic_probability,
)
from tasks.quality.kernel import kid
from tasks.quality.neighbours import coverage, density, precision, recall
from tasks.quality.presence import lesion_change, lesion_position, lesion_presence
from tasks.quality.ranges import intensity_range, speckle_range
from tasks.quality.separability import detector_auc

IMAGE_SCORES: dict[str, Callable[[Evidence], NDArray[np.float32]]] = {
    "classifier_confidence": classifier_confidence,
    "segmenter_dice": segmenter_dice,
    "lesion_contrast": lesion_contrast,
    "synthetic_probability": synthetic_probability,
    "nearest_similarity": nearest_similarity,
    "picture_similarity": picture_similarity,
    "critic_realism": critic_realism,
    "lesion_presence": lesion_presence,
    "lesion_position": lesion_position,
    "lesion_change": lesion_change,
    "intensity_range": intensity_range,
    "speckle_range": speckle_range,
    "defects": defects,
}

OF_MASKS = ("segmenter_dice", "lesion_contrast", "nearest_similarity", "lesion_presence", "lesion_position")
"""Image scores that compare a picture with its mask, or look inside it."""

LOWER_IS_BETTER = frozenset(
    {
        "synthetic_probability",
        "nearest_similarity",
        "picture_similarity",
        "intensity_range",
        "speckle_range",
        "defects",
    }
)
"""Image scores whose high values are the bad ones; of all others the low ones are."""

SET_SCORES: dict[str, Callable[[SetEvidence], SetScore]] = {
    "fid": fid,
    "fid_infinity": fid_infinity,
    "kid": kid,
    "precision": precision,
    "recall": recall,
    "density": density,
    "coverage": coverage,
    "radiomic_frechet": radiomic_frechet,
    "speckle_frechet": speckle_frechet,
    "classifier_score": classifier_score,
    "detector_auc": detector_auc,
}

HIGHER_IS_BETTER = frozenset({"precision", "recall", "density", "coverage", "classifier_score"})
"""Set scores of which more is better; of all others less is."""


def unscored(labels: Collection[str], whole: bool, masked: bool = True) -> dict[str, str]:
    """Image and set scores that say nothing about pictures of these labels, and why.

    `whole`: drawn without a background; `masked`: with a mask.
    """
    if whole:
        why = {
            "lesion_change": "pictures are drawn whole: there is no background to compare them with",
            "critic_realism": "pictures are drawn whole: a critic knows lesions that were put into a scan",
        }
    else:
        why = {"picture_similarity": "lesions are drawn into training scans, which every picture then resembles"}
    if not masked:
        why |= dict.fromkeys(OF_MASKS, "pictures are drawn without masks")
    if len(set(labels)) < 2:
        reason = f"all scans are labelled {', '.join(labels) or 'nothing'}: there is no classifier to ask"
        why |= dict.fromkeys(("classifier_confidence", "classifier_score"), reason)
    return why
