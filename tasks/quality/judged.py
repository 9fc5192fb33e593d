"""What image scores are computed from, and the scores that judges give."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey
from tasks.quality import classifier, critic, detector, segmenter
from tasks.quality.detector import Detection
from tasks.quality.judge import HEALTHY, Advance, Pictures, silent


@dataclass(frozen=True)
class Evidence:
    """Pictures to score one by one, and what they are judged by.

    `scored` are usually the synthetic images; `train` the real ones whose groups trained the generator.
    `classifier`, `segmenter` and `critic` are weights as their `train` returns them; `classifier` and `critic` are None
    where none was trained. `backgrounds` are the images that lesions were drawn into, row by row of `scored`, where
    they are known.

    Raises:
        ValueError: backgrounds of another shape than the scored images.
    """

    scored: Pictures
    train: Pictures
    classifier: bytes | None = field(repr=False)
    segmenter: bytes = field(repr=False)
    detector: detector.Params
    seed: int
    critic: bytes | None = field(default=None, repr=False)
    backgrounds: Grey | None = field(default=None, repr=False)
    advance: Advance = silent

    def __post_init__(self) -> None:
        if self.backgrounds is not None and self.backgrounds.shape != self.scored.images.shape:
            found, expected = self.backgrounds.shape, self.scored.images.shape
            raise ValueError(f"found backgrounds of shape {found} for images of shape {expected}")

    @cached_property
    def comparable(self) -> Pictures:
        """The real training pictures of the labels that were scored: lesions compare with lesions."""
        return self.train.with_labels(set(self.scored.labels))

    @cached_property
    def detection(self) -> Detection:
        """Out-of-fold detector answers on `comparable` against `scored`; trained once, on first use."""
        return detector.out_of_fold(self.comparable, self.scored, self.detector, self.seed, self.advance)

    @cached_property
    def drawn(self) -> NDArray[np.float32]:
        """The segmenter's probability of lesion at every pixel of the scored images."""
        return segmenter.load(self.segmenter).probabilities(self.scored.images)


def classifier_confidence(evidence: Evidence) -> NDArray[np.float32]:
    """Calibrated probability, 0..1, that the classifier gives each image's own label. NaN without a classifier."""
    if evidence.classifier is None:
        return np.full(len(evidence.scored), np.nan, np.float32)
    return classifier.load(evidence.classifier).confidence(evidence.scored)


def segmenter_dice(evidence: Evidence) -> NDArray[np.float32]:
    """Dice coefficient, 0..1, of what the segmenter draws in each image with its mask."""
    return segmenter.dice(evidence.drawn > 0.5, evidence.scored.masks)


def critic_realism(evidence: Evidence) -> NDArray[np.float32]:
    """Probability, 0..1, that each lesion is real, by the critic that also picks candidates. NaN where there is no
    lesion or no critic."""
    pictures = evidence.scored
    out = np.full(len(pictures), np.nan, np.float32)
    rows = np.flatnonzero(pictures.masks.any(axis=(1, 2)))
    if evidence.critic is not None and len(rows):
        out[rows] = critic.load(evidence.critic).realism(pictures.images[rows], pictures.masks[rows])
    return out


def synthetic_probability(evidence: Evidence) -> NDArray[np.float32]:
    """Probability, 0..1, of being synthetic, from a detector that saw nothing of the image's group."""
    return evidence.detection.synthetic


def is_lesion(labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which of these labels call for a mask."""
    return np.array([label != HEALTHY for label in labels], np.bool_)
