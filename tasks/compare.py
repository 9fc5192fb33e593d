"""Compare: every set score of one set of pictures against another, without a build.

Both sides are read picture by picture, fitted into squares of one size, and at most `most` of each are kept, in whole
groups chosen by a digest of the group's name: the same pictures in any order give the same scores, and memory does not
grow with the sets.
"""

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import Field

from storage.records import Record, SetScore
from tasks import track
from tasks.imaging import Grey, Mask, letterbox
from tasks.picture_sets import PictureSet, open_set
from tasks.quality import SET_SCORES, classifier, detector
from tasks.quality.classifier import Params as ClassifierParams
from tasks.quality.detector import Params as DetectorParams
from tasks.quality.evidence import ClassAnswers, SetEvidence, Space
from tasks.quality.extractors import Extractor, ExtractorParams, load, radiomics, speckle
from tasks.quality.judge import HEALTHY, Pictures
from tasks.quality.resampling import GroupSample

_MASKED = 0.9  # share of pictures with a lesion that must have a mask on both sides, or masks are not looked at
_FOLDS = 3


class CompareParams(Record):
    """How two sets are compared."""

    px: int = Field(default=128, ge=32, le=1024, description="side of the square that every picture is fitted into")
    most: int = Field(default=4000, ge=20, le=10**6, description="pictures a side, whole groups, that scores see")
    same_labels: bool = Field(
        default=True, description="leave out real pictures of labels that no synthetic one has, where all have one"
    )
    extractor: ExtractorParams = Field(default=ExtractorParams(), description="features of FID, KID and the like")
    detector: DetectorParams | None = Field(
        default=DetectorParams(), description="real or synthetic, out of fold; null: not trained"
    )
    classifier: ClassifierParams | None = Field(
        default=ClassifierParams(), description="label, trained on real pictures out of fold; null: not trained"
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1)


class BadFile(Record):
    """A file or row that gave no picture, and why."""

    file: str
    reason: str


class Side(Record):
    """One of the two sets: what was found, and how much of it the scores see."""

    described: str
    read: int
    compared: int
    groups: int | None  # patients or exams among those compared; None where none is known
    masks: int  # of those compared, with a lesion drawn
    labels: dict[str, int]
    unreadable: list[BadFile]


class Comparison(Record):
    """Scores of a synthetic set against a real one. `notes` say what a reader must know of all of them."""

    real: Side
    synthetic: Side
    extractor: str
    px: int
    seed: int
    notes: list[str]
    scores: list[SetScore]


def compare(
    real: str,
    synthetic: str,
    store: str = "./store",
    params: CompareParams | None = None,
    extractor: Extractor | None = None,
) -> Comparison:
    """Every set score of the pictures that `synthetic` names against those that `real` names.

    Args:
        real: a folder, file or version, as `picture_sets.open_set` takes it.
        synthetic: another.
        store: where versions are looked for.
        params: the defaults where left out.
        extractor: instead of the one of `params`: of any torch module, say.

    Raises:
        ValueError: a set is not there, holds no picture, or leaves fewer than two to compare.
    """
    params = params or CompareParams()
    extractor = extractor or load(params.extractor)
    opened = open_set(real, store), open_set(synthetic, store)
    made = _gathered(opened[1], "synthetic", params, None)
    wanted = set(made.labels) if params.same_labels and None not in made.labels else None
    shown = _gathered(opened[0], "real", params, wanted)
    for side, found in (("real", shown), ("synthetic", made)):
        if len(found.files) < 2:
            of = f" with labels {', '.join(sorted(map(str, wanted)))}" if side == "real" and wanted else ""
            raise ValueError(f"found {len(found.files)} {side} pictures{of} in {found.described}, at least 2 needed")
    notes = _notes(shown, made, params)
    scores = _scores(shown, made, extractor, params)
    return Comparison(
        real=_side(shown, opened[0]),
        synthetic=_side(made, opened[1]),
        extractor=extractor.identity,
        px=params.px,
        seed=params.seed,
        notes=notes,
        scores=scores,
    )


@dataclass(frozen=True, eq=False)
class _Gathered:
    """The pictures of one side that are compared, in order of their files."""

    described: str
    read: int
    other_labels: Counter[str]
    files: list[str]
    images: Grey
    masks: Mask
    labels: list[str | None]
    groups: list[str]
    grouped: bool

    @property
    def pictures(self) -> Pictures:
        """As judges take them; no label is a label too."""
        return Pictures(self.images, self.masks, [label or "" for label in self.labels], self.groups)

    @property
    def masked(self) -> float:
        """Share of the pictures not called healthy whose lesion is drawn."""
        lesion = np.array([label != HEALTHY for label in self.labels], np.bool_)
        return float(self.masks[lesion].any(axis=(1, 2)).mean()) if lesion.any() else 0.0


class _Row(NamedTuple):
    file: str
    image: Grey
    mask: Mask
    label: str | None


def _gathered(opened: PictureSet, side: str, params: CompareParams, wanted: Collection[str | None] | None) -> _Gathered:
    """Read a set; of labels that are not wanted nothing is kept."""
    sample, read, grouped = GroupSample[_Row](params.most, params.seed), 0, False
    other: Counter[str] = Counter()
    step = f"read {side}"
    with track.track(step, opened.count, "pictures"):
        for picture in opened.pictures():
            read += 1
            track.advance(step, 1)
            if wanted is not None and picture.label is not None and picture.label not in wanted:
                other[picture.label] += 1
                continue
            grouped |= picture.group is not None
            # A file without a group is one of its own, and no file of the other side is meant by the same name.
            group = picture.group if picture.group is not None else f"{side} {picture.file}"
            fitted = letterbox(picture.image, picture.mask, params.px)
            mask = np.zeros(fitted.image.shape, np.bool_) if fitted.mask is None else fitted.mask
            sample.add(group, _Row(picture.file, fitted.image, mask, picture.label))
    kept = sorted(sample.rows(), key=lambda pair: pair[1].file)
    shape = (len(kept), params.px, params.px)
    images, masks = np.zeros(shape, np.uint8), np.zeros(shape, np.bool_)
    for number, (_, row) in enumerate(kept):
        images[number], masks[number] = row.image, row.mask
    files, labels = [row.file for _, row in kept], [row.label for _, row in kept]
    return _Gathered(opened.describe, read, other, files, images, masks, labels, [group for group, _ in kept], grouped)


def _scores(real: _Gathered, synthetic: _Gathered, extractor: Extractor, params: CompareParams) -> list[SetScore]:
    lesions = _both_masked(real, synthetic)
    textures = (radiomics.WITH_LESION, speckle.WITH_LESION) if lesions else (radiomics.WHOLE, speckle.WHOLE)
    radiomic, grain = (_space(texture, real, synthetic) for texture in textures)
    found, floor, control = _detections(real, synthetic, params, lesions)
    evidence = SetEvidence(
        extractor.features(real.images, real.masks),
        extractor.features(synthetic.images, synthetic.masks),
        real.groups,
        synthetic.groups,
        extractor.identity,
        params.seed,
        radiomic=radiomic,
        speckle=grain,
        answers=_answers(real, synthetic, params, lesions),
        detection=found,
        floor_detection=floor,
        control_detection=control,
    )
    return [score(evidence) for score in SET_SCORES.values()]


def _space(extractor: Extractor, real: _Gathered, synthetic: _Gathered) -> Space:
    here, there = (extractor.features(side.images, side.masks) for side in (real, synthetic))
    return Space(here, there, extractor.identity)


def _detections(
    real: _Gathered, synthetic: _Gathered, params: CompareParams, lesions: bool
) -> tuple[detector.Detection | None, detector.Detection | None, detector.Detection | None]:
    """Out-of-fold answers on the two sides; on two halves of the real one; and on a half against a damaged half."""
    asked = params.detector
    if asked is None:
        return None, None, None
    if not lesions and asked.view != "full":
        asked = asked.model_copy(update={"view": "full"})
    sides = real.pictures, synthetic.pictures
    step = "train detectors"
    with track.track(step, 3 * asked.folds * asked.steps * len(asked.networks), "steps"):
        advance = lambda steps: track.advance(step, steps)  # noqa: E731
        found = detector.out_of_fold(*sides, asked, params.seed, advance)
        known = detector.baselines(sides[0], len(sides[1]), asked, params.seed, advance)
    return (found, None, None) if known is None else (found, known.floor, known.control)


def _answers(real: _Gathered, synthetic: _Gathered, params: CompareParams, lesions: bool) -> ClassAnswers | None:
    """What classifiers say that saw nothing of the picture's group; None where labels allow none.

    A synthetic picture gets the mean of all, each of which learned from real pictures of other folds.
    """
    labels = sorted({label for label in real.labels if label is not None})
    if params.classifier is None or None in real.labels or len(labels) < 2 or len(set(real.groups)) < _FOLDS:
        return None
    pictures = real.pictures
    fold = detector.assign_folds(real.groups, _FOLDS, params.seed)
    here, there = np.zeros((len(real.files), len(labels))), np.zeros((len(synthetic.files), len(labels)))
    digest, nobody = hashlib.sha256(), pictures.select(np.zeros(len(pictures), np.bool_))
    view: classifier.View = "lesion" if lesions else "image"
    step = "train classifiers"
    with track.track(step, _FOLDS * params.classifier.steps, "steps"):
        for k in range(_FOLDS):
            learned, judged = pictures.select(fold != k), fold == k
            if sorted(set(learned.labels)) != labels:
                return None
            seed = params.seed + 1000 * k
            judge = classifier.train(learned, nobody, params.classifier, seed, lambda n: track.advance(step, n), view)
            digest.update(judge.weights)
            answer = classifier.load(judge.weights).probabilities
            here[judged] = answer(pictures.images[judged], pictures.masks[judged])
            there += answer(synthetic.images, synthetic.masks).astype(np.float64) / _FOLDS
    return ClassAnswers(here, there, pictures.labels, labels, f"classifier, out of fold@{digest.hexdigest()[:12]}")


def _both_masked(real: _Gathered, synthetic: _Gathered) -> bool:
    return min(real.masked, synthetic.masked) >= _MASKED


def _notes(real: _Gathered, synthetic: _Gathered, params: CompareParams) -> list[str]:
    """What was left out or assumed, in sentences."""
    notes: list[str] = []
    if real.other_labels:
        left = ", ".join(f"{count} {label}" for label, count in sorted(real.other_labels.items()))
        notes.append(f"real pictures of labels that the synthetic set lacks are left out: {left}")
    for side, found in (("real", real), ("synthetic", synthetic)):
        wanted = found.read - found.other_labels.total()
        if len(found.files) < wanted:
            notes.append(f"{len(found.files)} of {wanted} {side} pictures are compared: whole groups, drawn at random")
        if not found.grouped:
            notes.append(
                f"the {side} pictures have no patients: each counts as its own group, so intervals are too narrow "
                "where several are of one patient"
            )
    if not _both_masked(real, synthetic):
        notes.append(
            f"lesions are drawn in {real.masked:.0%} of the real and {synthetic.masked:.0%} of the synthetic pictures, "
            f"fewer than {_MASKED:.0%}: texture and detector look at whole pictures"
        )
    shared = len(set(real.groups) & set(synthetic.groups))
    if shared:
        notes.append(f"{shared} groups are on both sides: the real ones among them may have taught the generator")
    return [*notes, f"every picture is fitted into {params.px} × {params.px} px first"]


def _side(found: _Gathered, opened: PictureSet) -> Side:
    labels = Counter(label for label in found.labels if label is not None)
    return Side(
        described=found.described,
        read=found.read,
        compared=len(found.files),
        groups=len(set(found.groups)) if found.grouped else None,
        masks=int(found.masks.any(axis=(1, 2)).sum()),
        labels=dict(sorted(labels.items())),
        unreadable=_bad(opened),
    )


def _bad(opened: PictureSet) -> list[BadFile]:
    return [BadFile(file=file, reason=reason) for file, reason in opened.unreadable]
