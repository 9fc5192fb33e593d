"""How well can a detector tell synthetic from real? 0.5: not at all; 1: always."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.quality.resampling import Rng, central_interval, group_weights

_BLIND = 0.75
"""Below this area on images damaged on purpose, a detector that tells nothing apart proves nothing."""
_PERMUTATIONS = 500
_AT_ONCE = 4_000_000
"""Weights held in memory at a time: resamples × images."""


def area_under_curve(detection: Detection) -> float:
    """Share of (real, synthetic) pairs of the same fold that the detector orders rightly; ties count half.

    Only pairs of one fold, because different folds are judged by different networks.

    Raises:
        ValueError: no fold holds both real and synthetic images.
    """
    if not _judged_together(detection):
        raise ValueError("no fold holds both real and synthetic images; use fewer folds")
    ones = np.ones((1, len(detection.real))), np.ones((1, len(detection.synthetic)))
    return float(weighted_area(detection, *ones)[0])


def detector_auc(evidence: SetEvidence) -> SetScore:
    """AUC of the out-of-fold detector, with a bootstrap interval over groups and a permutation p-value.

    The floor is the same detector between two disjoint halves of the real images; the control is what it makes of one
    half after the other was damaged on purpose. An area near one half counts for nothing where the control is low.
    """
    score = SetScore(
        name="detector_auc",
        value=None,
        low=None,
        high=None,
        n_real=len(evidence.real),
        n_synthetic=len(evidence.synthetic),
        extractor="resnet, out of fold",
        note="refused: no detector was trained",
    )
    found = evidence.detection
    if found is None:
        return score
    if not _judged_together(found):
        return score.model_copy(update={"note": "refused: no fold holds both real and synthetic images"})
    rng = np.random.default_rng([evidence.seed, 12])
    groups = evidence.real_groups, evidence.synthetic_groups
    resampled = _resampled(found, *groups, evidence.resamples, rng)
    value, (low, high) = area_under_curve(found), _central(resampled)
    update: dict[str, object] = {"value": value, "low": low, "high": high}
    update["p"] = permutation_p(found, *groups, _PERMUTATIONS, rng)
    update["extractor"] = f"{' + '.join(found.each) or 'resnet'}, out of fold"
    notes: list[str] = []
    if len(found.each) > 1:
        notes.append(", ".join(f"{name} {area:.2f}" for name, area in areas_of_each(found).items()))
    update |= _floor(evidence, value, resampled, rng, notes)
    if evidence.control_detection is not None and _judged_together(evidence.control_detection):
        control = area_under_curve(evidence.control_detection)
        update["control"] = control
        if control < _BLIND:
            notes.append(f"it misses damage made on purpose (AUC {control:.2f}): an area near 0.5 proves little")
    else:
        notes.append("no control: none was trained")
    return score.model_copy(update=update | {"note": "; ".join(notes)})


def _floor(
    evidence: SetEvidence, value: float, resampled: NDArray[np.float64], rng: Rng, notes: list[str]
) -> dict[str, float | None]:
    """Floor and multiples of it, with their intervals; a word on it goes to `notes`."""
    floor = evidence.floor_detection
    if floor is None or not _judged_together(floor):
        notes.append("no floor: none was trained")
        return {}
    a, b = len(floor.real), len(floor.synthetic)
    notes.append(f"floor at N = {a} and {b}")
    # Groups of the halves are not known here: rows are drawn singly, which is as good where groups are small.
    singly = [f"a{row}" for row in range(a)], [f"b{row}" for row in range(b)]
    floors = _resampled(floor, *singly, evidence.resamples, rng)
    area, (low, high) = area_under_curve(floor), _central(floors)
    over_low, over_high = _central(np.divide(resampled, floors, out=np.full(len(floors), np.nan), where=floors > 0))
    over = {"over_floor": value / area, "over_floor_low": over_low, "over_floor_high": over_high} if area > 0 else {}
    return {"floor": area, "floor_low": low, "floor_high": high, **over}


def _central(resampled: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Central 95 % of the finite numbers; None where there are none."""
    finite = resampled[np.isfinite(resampled)]
    return central_interval(finite) if len(finite) else (None, None)


def areas_of_each(detection: Detection) -> dict[str, float]:
    """`area_under_curve` of every network of the detection alone, by its name."""
    return {
        name: area_under_curve(replace(detection, real=real, synthetic=synthetic, each={}))
        for name, (real, synthetic) in detection.each.items()
    }


def area_with_interval(
    detection: Detection, real_groups: Sequence[str], synthetic_groups: Sequence[str], resamples: int, rng: Rng
) -> tuple[float, float, float]:
    """`area_under_curve`, and its central 95 % bootstrap interval over groups."""
    resampled = _resampled(detection, real_groups, synthetic_groups, resamples, rng)
    return area_under_curve(detection), *central_interval(resampled[np.isfinite(resampled)])


def permutation_p(
    detection: Detection, real_groups: Sequence[str], synthetic_groups: Sequence[str], draws: int, rng: Rng
) -> float:
    """Share of relabellings that reach the observed area: small where the two sides differ, 0..1.

    The answers stay as they are and whole groups change sides, each within its fold; a group found on both sides in
    one fold counts once for each. One-sided; the observed labelling counts as one draw.
    """
    n = len(detection.real)
    answers = np.concatenate([detection.real, detection.synthetic])
    fold = np.concatenate([detection.real_fold, detection.synthetic_fold])
    side = np.repeat([0, 1], [n, len(detection.synthetic)])
    names = [f"{s}/{f}/{g}" for s, f, g in zip(side, fold, [*real_groups, *synthetic_groups], strict=True)]
    _, first, member = np.unique(names, return_index=True, return_inverse=True)
    observed, reached = area_under_curve(detection), 1
    for _ in range(draws):
        drawn = side[first]
        for k in np.unique(fold):
            own = np.flatnonzero(fold[first] == k)
            drawn[own] = rng.permutation(drawn[own])
        now = drawn[member]
        a, b = now == 0, now == 1
        permuted = Detection(answers[a], answers[b], fold[a], fold[b])
        reached += _judged_together(permuted) and area_under_curve(permuted) >= observed
    return reached / (draws + 1)


def weighted_area(
    detection: Detection, real: NDArray[np.float64], synthetic: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`area_under_curve` with every image counted so often, (resamples,); NaN where no pair is left.

    `real` and `synthetic` are counts, (resamples, images). The cost is that of a sort, not of all pairs.
    """
    won, pairs = np.zeros(len(real)), np.zeros(len(real))
    for k in np.intersect1d(detection.real_fold, detection.synthetic_fold):
        a, b = np.flatnonzero(detection.real_fold == k), np.flatnonzero(detection.synthetic_fold == k)
        a = a[np.argsort(detection.real[a], kind="stable")]
        below = np.concatenate([np.zeros((len(real), 1)), np.cumsum(real[:, a], axis=1)], axis=1)
        lower, higher = (np.searchsorted(detection.real[a], detection.synthetic[b], side) for side in ("left", "right"))
        won += (synthetic[:, b] * (below[:, lower] + below[:, higher])).sum(1) / 2
        pairs += below[:, -1] * synthetic[:, b].sum(1)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _resampled(
    detection: Detection, real_groups: Sequence[str], synthetic_groups: Sequence[str], resamples: int, rng: Rng
) -> NDArray[np.float64]:
    """`area_under_curve` of bootstrap samples of whole groups; NaN where a sample holds no pair of one fold."""
    n, groups = len(detection.real), [*real_groups, *synthetic_groups]
    step = max(1, _AT_ONCE // len(groups))
    areas: list[NDArray[np.float64]] = []
    for at in range(0, resamples, step):
        # One draw for both sides: a group that gave real and synthetic images comes and goes as a whole.
        weights = group_weights(groups, min(step, resamples - at), rng)
        areas.append(weighted_area(detection, weights[:, :n], weights[:, n:]))
    return np.concatenate(areas)


def _judged_together(detection: Detection) -> bool:
    """Whether any network judged both real and synthetic images."""
    return bool(np.intersect1d(detection.real_fold, detection.synthetic_fold).size)
