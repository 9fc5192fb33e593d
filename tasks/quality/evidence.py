"""What scores are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tasks.quality import classifier, detector, segmenter
from tasks.quality.detector import Detection
from tasks.quality.judge import HEALTHY, Advance, Pictures, silent


@dataclass(frozen=True)
class Evidence:
    """Pictures to score one by one, and what they are judged by.

    `scored` are usually the synthetic images; `train` the real ones whose groups trained the generator.
    `classifier` and `segmenter` are weights as their `train` returns them.
    """

    scored: Pictures
    train: Pictures
    classifier: bytes = field(repr=False)
    segmenter: bytes = field(repr=False)
    detector: detector.Params
    seed: int
    advance: Advance = silent

    @cached_property
    def comparable(self) -> Pictures:
        """The real training pictures of the labels that were scored: lesions compare with lesions."""
        return self.train.with_labels(set(self.scored.labels))

    @cached_property
    def detection(self) -> Detection:
        """Out-of-fold detector answers on `comparable` against `scored`; trained once, on first use."""
        return detector.out_of_fold(self.comparable, self.scored, self.detector, self.seed, self.advance)


def classifier_confidence(evidence: Evidence) -> NDArray[np.float32]:
    """Probability, 0..1, that the classifier gives each image's own label."""
    judge = classifier.load(evidence.classifier)
    return judge.confidence(evidence.scored.images, evidence.scored.labels)


def segmenter_dice(evidence: Evidence) -> NDArray[np.float32]:
    """Dice coefficient, 0..1, of what the segmenter draws in each image with its mask."""
    judge = segmenter.load(evidence.segmenter)
    return judge.dice(evidence.scored.images, evidence.scored.masks)


def synthetic_probability(evidence: Evidence) -> NDArray[np.float32]:
    """Probability, 0..1, of being synthetic, from a detector that saw nothing of the image's group."""
    return evidence.detection.synthetic


def is_lesion(labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which of these labels call for a mask."""
    return np.array([label != HEALTHY for label in labels], np.bool_)


@dataclass(frozen=True)
class SetEvidence:
    """Two sets to compare: features (n, d) of one extractor, groups, and what the detector said.

    `floor_detection` is the same detector on two disjoint group halves of the real images: the AUC that no
    difference at all gives. Either detection may be absent; its score then refuses to be a number.

    Raises:
        ValueError: features that are not finite, fewer than two images a side, or shapes that do not fit.
    """

    real: NDArray[np.float64] = field(repr=False)
    synthetic: NDArray[np.float64] = field(repr=False)
    real_groups: Sequence[str] = field(repr=False)
    synthetic_groups: Sequence[str] = field(repr=False)
    extractor: str
    seed: int
    detection: Detection | None = field(default=None, repr=False)
    floor_detection: Detection | None = field(default=None, repr=False)
    resamples: int = 200

    def __post_init__(self) -> None:
        check_features(self.real, self.synthetic)
        found = len(self.real_groups), len(self.synthetic_groups)
        if found != (len(self.real), len(self.synthetic)):
            raise ValueError(f"found {found} groups for {len(self.real)} real and {len(self.synthetic)} synthetic")
        if self.detection is not None:
            judged = len(self.detection.real), len(self.detection.synthetic)
            if judged != found:
                raise ValueError(f"the detector judged {judged} images, features are of {found}")


def check_features(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> None:
    """Refuse what no distance between feature sets can be computed from.

    Raises:
        ValueError: with what was found.
    """
    for name, features in (("real", real), ("synthetic", synthetic)):
        if features.ndim != 2:
            raise ValueError(f"{name} features have shape {features.shape}, expected (images, dimension)")
        if len(features) < 2:
            raise ValueError(f"found {len(features)} {name} images; a set score needs at least 2 on each side")
        broken = ~np.isfinite(features).all(axis=1)
        if broken.any():
            rows = np.flatnonzero(broken)[:5].tolist()
            raise ValueError(f"{broken.sum()} of {len(features)} {name} images have NaN or infinite features: {rows}")
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} dimensions, synthetic {synthetic.shape[1]}: two extractors?"
        )
