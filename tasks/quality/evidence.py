"""What set scores are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tasks.quality.detector import Detection
from tasks.quality.resampling import bounded_rows

PAIRWISE = 2048
"""Most images a side of which all pairs are compared: more would not change a score, but cost their square."""


@dataclass(frozen=True)
class Space:
    """The images of both sides as one more extractor sees them: unscaled features (n, d), and its identity.

    Raises:
        ValueError: features that are not finite, fewer than two images a side, or two dimensions.
    """

    real: NDArray[np.float64] = field(repr=False)
    synthetic: NDArray[np.float64] = field(repr=False)
    extractor: str

    def __post_init__(self) -> None:
        check_features(self.real, self.synthetic)


@dataclass(frozen=True)
class ClassAnswers:
    """What a classifier says of the images of both sides: the probability, 0..1, of each of `labels`, (n, labels).

    `real_labels` are the true labels of the real images, which must be of groups that the classifier did not learn
    from: whether its answers mean anything is measured on them. `classifier` is its identity.

    Raises:
        ValueError: rows that are not probabilities, shapes that do not fit, or labels that it does not know.
    """

    real: NDArray[np.float64] = field(repr=False)
    synthetic: NDArray[np.float64] = field(repr=False)
    real_labels: Sequence[str] = field(repr=False)
    labels: Sequence[str]
    classifier: str

    def __post_init__(self) -> None:
        for name, answers in (("real", self.real), ("synthetic", self.synthetic)):
            if answers.ndim != 2 or answers.shape[1] != len(self.labels):
                raise ValueError(f"{name} answers have shape {answers.shape}, expected (images, {len(self.labels)})")
            wrong = ~((answers >= 0).all(axis=1) & (np.abs(answers.sum(axis=1) - 1) < 1e-4))
            if wrong.any():
                rows = np.flatnonzero(wrong)[:5].tolist()
                raise ValueError(f"{wrong.sum()} of {len(answers)} {name} answers are not probabilities: rows {rows}")
        if len(self.real_labels) != len(self.real):
            raise ValueError(f"found {len(self.real_labels)} labels for {len(self.real)} real images")
        unknown = sorted(set(self.real_labels) - set(self.labels))
        if unknown:
            raise ValueError(f"real labels {unknown} are not among the classifier's {list(self.labels)}")


@dataclass(frozen=True, eq=False)
class SetEvidence:
    """Two sets to compare: features (n, d) of one extractor, groups, and what the judges said.

    `floor_detection` is the same detector on two disjoint group halves of the real images: the AUC that no
    difference at all gives; `control_detection` is the same after one half was damaged on purpose. `radiomic`,
    `speckle` and `answers` are of the same images, row by row. What is absent makes its score refuse to be a number.

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
    control_detection: Detection | None = field(default=None, repr=False)
    resamples: int = 200
    radiomic: Space | None = field(default=None, repr=False)
    speckle: Space | None = field(default=None, repr=False)
    answers: ClassAnswers | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_features(self.real, self.synthetic)
        found = len(self.real_groups), len(self.synthetic_groups)
        if found != (len(self.real), len(self.synthetic)):
            raise ValueError(f"found {found} groups for {len(self.real)} real and {len(self.synthetic)} synthetic")
        if self.detection is not None:
            judged = len(self.detection.real), len(self.detection.synthetic)
            if judged != found:
                raise ValueError(f"the detector judged {judged} images, features are of {found}")
        for name, part in (("radiomic", self.radiomic), ("speckle", self.speckle), ("answers", self.answers)):
            if part is not None and (len(part.real), len(part.synthetic)) != found:
                raise ValueError(f"{name} is of {len(part.real)} and {len(part.synthetic)} images, features of {found}")


def pairwise(evidence: SetEvidence, limit: int = PAIRWISE) -> tuple[SetEvidence, str]:
    """The same features of at most `limit` images a side, whole groups drawn at random, and a note that says so."""
    sides = (evidence.real_groups, 1), (evidence.synthetic_groups, 2)
    real, synthetic = (bounded_rows(groups, limit, 2 * evidence.seed + side) for groups, side in sides)
    if (len(real), len(synthetic)) == (len(evidence.real), len(evidence.synthetic)):
        return evidence, ""
    fewer = replace(
        evidence,
        real=evidence.real[real],
        synthetic=evidence.synthetic[synthetic],
        real_groups=[evidence.real_groups[row] for row in real.tolist()],
        synthetic_groups=[evidence.synthetic_groups[row] for row in synthetic.tolist()],
        detection=None,
        radiomic=None,
        speckle=None,
        answers=None,
    )
    counts = f"{len(real)} of {len(evidence.real)} real, {len(synthetic)} of {len(evidence.synthetic)} synthetic"
    return fewer, f"; of {counts} images, drawn as whole groups"


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
