"""Planted failures of single images: real scans of unseen groups, spoiled, before judges trained on the other groups.

BUSI in folds by group. Every image is judged once, by judges that saw nothing of its group. The limit of a score in a
fold is its 5 % quantile over the untouched images of the other folds, which their own judges had not seen either, so
that false alarms are counted on images that set no limit. The last gate is all of these limits at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.image_failures import FAILURES
from benchmarks.planting import Row
from tasks import sources
from tasks.quality import IMAGE_SCORES, LOWER_IS_BETTER, Evidence, classifier, detector, segmenter
from tasks.quality.judge import HEALTHY, Pictures
from tasks.quality.resampling import bounded_rows
from tasks.screening.screen import KEPT, ScreenParams, screen

ALLOWED = 0.05
SCORES = (
    "classifier_confidence",
    "segmenter_dice",
    "lesion_contrast",
    "lesion_presence",
    "lesion_position",
    "intensity_range",
    "speckle_range",
    "defects",
)
"""All that need neither a generator nor other synthetic images."""
ALL = "all of these scores"

Numbers = dict[str, NDArray[np.float64]]
"""By score: one number an image, oriented so that low is bad."""


def rows(data: Path, quick: bool) -> Iterator[Row]:
    """Each failure against the score meant for it, against the score that catches it best, and against all."""
    folds = 2 if quick else 5
    pictures = scans(data)
    fold = detector.assign_folds(pictures.groups, folds, 0)
    clean: list[Numbers] = []
    spoiled: list[list[Numbers]] = []
    for k in range(folds):
        train, test = pictures.select(fold != k), pictures.select(fold == k)
        test = test.select(bounded_rows(test.groups, 40 if quick else len(test), 0))
        evidence = trained(train, test, quick)
        clean.append(numbers(evidence, test))
        healthy = test.with_labels({HEALTHY})
        rngs = [np.random.default_rng([k, number]) for number in range(len(FAILURES))]
        planted = [failure.plant(test, healthy, rng) for failure, rng in zip(FAILURES, rngs, strict=True)]
        spoiled.append([numbers(evidence, pictures) for pictures in planted])
    yield from judged(clean, spoiled)


def scans(data: Path) -> Pictures:
    """BUSI as a build reads it: 128 px, copies and marked scans set aside, grouped."""
    root = next((path.parent for path in sorted((data / "busi").rglob("benign")) if path.is_dir()), data / "busi")
    source = sources.at("busi", root)
    screened = screen(list(sources.read(source)), ScreenParams(), 0, source.dataset)
    kept = [scan for scan in screened if scan.verdict == KEPT and scan.image is not None]
    images = np.stack([scan.image for scan in kept if scan.image is not None])
    blank = np.zeros(images.shape[1:], np.bool_)
    masks = np.stack([blank if scan.mask is None else scan.mask for scan in kept])
    return Pictures(images, masks, [scan.label for scan in kept], [scan.group for scan in kept])


def trained(train: Pictures, test: Pictures, quick: bool) -> Evidence:
    """Judges as a build trains them; a tenth of the groups is held out for the classifier's temperature."""
    held_out = detector.assign_folds(train.groups, 10, 1) == 0
    examples, rest = train.select(~held_out), train.select(held_out)
    fewer = {"steps": 150} if quick else {}
    return Evidence(
        scored=test,
        train=train,
        classifier=classifier.train(examples, rest, classifier.Params(**fewer), 0, view="lesion").weights,
        segmenter=segmenter.train(examples, rest, segmenter.Params(**fewer), 0).weights,
        detector=detector.Params(),
        seed=0,
    )


def numbers(evidence: Evidence, pictures: Pictures) -> Numbers:
    """Every score of the pictures, low is bad; NaN where it does not apply."""
    asked = Evidence(pictures, evidence.train, evidence.classifier, evidence.segmenter, evidence.detector, 0)
    sign = {name: -1.0 if name in LOWER_IS_BETTER else 1.0 for name in SCORES}
    return {name: sign[name] * IMAGE_SCORES[name](asked).astype(np.float64) for name in SCORES}


def judged(clean: Sequence[Numbers], spoiled: Sequence[Sequence[Numbers]]) -> Iterator[Row]:
    """Rows for `clean` images of each fold and, of each fold, the images with each failure."""
    refused: dict[str, NDArray[np.int64]] = {
        gate: np.zeros((len(FAILURES) + 1, 2), np.int64) for gate in (*SCORES, ALL)
    }
    for k, own in enumerate(clean):
        others = [numbers for at, numbers in enumerate(clean) if at != k]
        pooled = {name: np.concatenate([numbers[name] for numbers in others]) for name in SCORES}
        every = {name: limit(pooled[name], ALLOWED) for name in SCORES}
        gates = {name: {name: value} for name, value in every.items()} | {ALL: every}
        for gate, limits in gates.items():
            for place, found in enumerate([own, *spoiled[k]]):
                refused[gate][place] += count(found, limits)
    for place, failure in enumerate(FAILURES, 1):
        caught = {gate: table[place, 0] / max(table[place, 1], 1) for gate, table in refused.items()}
        best = max(SCORES, key=lambda name: caught[name])
        for gate in dict.fromkeys((failure.score, best, ALL)):
            found, planted = refused[gate][place].tolist()
            false, real = refused[gate][0].tolist()
            yield Row(failure.what, gate, planted, found, real, false, _note(gate, refused, place))


def limit(clean: NDArray[np.float64], share: float) -> float:
    """The value below which an image is refused, so that at most `share` of unseen clean ones are: of n clean numbers
    the k-th lowest, k = share × (n + 1) rounded down, as in conformal prediction; none are refused where k is 0.

    >>> limit(np.arange(1.0, 40.0), 0.05), limit(np.arange(1.0, 19.0), 0.05)
    (2.0, -inf)
    """
    known = np.sort(clean[np.isfinite(clean)])
    rank = int(share * (len(known) + 1))
    return float(known[rank - 1]) if rank else -np.inf


def count(found: Mapping[str, NDArray[np.float64]], limits: Mapping[str, float]) -> tuple[int, int]:
    """How many images fall below any limit, and how many any limit applies to."""
    low = np.any([found[name] < value for name, value in limits.items()], axis=0)
    asked = np.any([np.isfinite(found[name]) for name in limits], axis=0)
    return int(low.sum()), int(asked.sum())


def _note(gate: str, refused: Mapping[str, NDArray[np.int64]], place: int) -> str:
    """Of all scores together, which alone catch a fifth or more."""
    if gate != ALL:
        return ""
    alone = {name: refused[name][place, 0] / max(refused[name][place, 1], 1) for name in SCORES}
    return ", ".join(f"{name} {share:.0%}" for name, share in alone.items() if share >= 0.2)
