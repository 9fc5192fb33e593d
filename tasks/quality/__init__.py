"""Judges of images and sets.

An image score is a function from `Evidence` to one number an image; a set score one from `SetEvidence` to a
`SetScore`. To add a score, write `tasks/quality/<name>.py` and a line in the table below. Importing this
needs neither torch nor MONAI: judges load them when they judge.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.contrast import lesion_contrast
from tasks.quality.copies import nearest_similarity
from tasks.quality.evidence import (
    Evidence,
    SetEvidence,
    classifier_confidence,
    segmenter_dice,
    synthetic_probability,
)
from tasks.quality.frechet import fid
from tasks.quality.kernel import kid
from tasks.quality.separability import detector_auc

IMAGE_SCORES: dict[str, Callable[[Evidence], NDArray[np.float32]]] = {
    "classifier_confidence": classifier_confidence,
    "segmenter_dice": segmenter_dice,
    "lesion_contrast": lesion_contrast,
    "synthetic_probability": synthetic_probability,
    "nearest_similarity": nearest_similarity,
}

SET_SCORES: dict[str, Callable[[SetEvidence], SetScore]] = {
    "fid": fid,
    "kid": kid,
    "detector_auc": detector_auc,
}
