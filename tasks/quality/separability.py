"""How well can a detector tell synthetic from real? 0.5: not at all; 1: always."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.quality.resampling import Rng, central_interval, group_weights

_NETWORK = "monai-resnet, out of fold"


def area_under_curve(detection: Detection) -> float:
    """Share of (real, synthetic) pairs of the same fold that the detector orders rightly; ties count half.

    Only pairs of one fold, because different folds are judged by different networks.

    Raises:
        ValueError: no fold holds both real and synthetic images.
    """
    if not _shared(detection).any():
        raise ValueError("no fold holds both real and synthetic images; use fewer folds")
    ones = np.ones((1, len(detection.real))), np.ones((1, len(detection.synthetic)))
    return float(weighted_area(detection, *ones)[0])


def detector_auc(evidence: SetEvidence) -> SetScore:
    """AUC of the out-of-fold detector, with a bootstrap interval over groups; the floor is the same detector
    between two disjoint halves of the real images."""
    score = SetScore(
        name="detector_auc",
        value=None,
        low=None,
        high=None,
        n_real=len(evidence.real),
        n_synthetic=len(evidence.synthetic),
        extractor=_NETWORK,
        note="refused: no detector was trained",
    )
    if evidence.detection is None:
        return score
    if not _shared(evidence.detection).any():
        return score.model_copy(update={"note": "refused: no fold holds both real and synthetic images"})
    rng = np.random.default_rng([evidence.seed, 12])
    groups = evidence.real_groups, evidence.synthetic_groups
    value, low, high = area_with_interval(evidence.detection, *groups, evidence.resamples, rng)
    score = score.model_copy(update={"value": value, "low": low, "high": high, "note": "no floor: none was trained"})
    floor = evidence.floor_detection
    if floor is None or not _shared(floor).any():
        return score
    a, b = len(floor.real), len(floor.synthetic)
    # Groups of the halves are not known here: rows are drawn singly, which is as good where groups are small.
    rows = rng.poisson(1, (evidence.resamples, a + b)).astype(np.float64)
    floor_low, floor_high = _interval(floor, rows[:, :a], rows[:, a:])
    update = {"floor": area_under_curve(floor), "floor_low": floor_low, "floor_high": floor_high}
    return score.model_copy(update=update | {"note": f"floor at N = {a} and {b}"})


def area_with_interval(
    detection: Detection, real_groups: Sequence[str], synthetic_groups: Sequence[str], resamples: int, rng: Rng
) -> tuple[float, float, float]:
    """`area_under_curve`, and its central 95 % bootstrap interval over groups."""
    value = area_under_curve(detection)
    n = len(detection.real)
    # One draw for both sides: a group that gave real and synthetic images comes and goes as a whole.
    weights = group_weights([*real_groups, *synthetic_groups], resamples, rng)
    return value, *_interval(detection, weights[:, :n], weights[:, n:])


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
        reached += _shared(permuted).any() and area_under_curve(permuted) >= observed
    return reached / (draws + 1)


def _interval(detection: Detection, real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> tuple[float, float]:
    resampled = weighted_area(detection, real, synthetic)
    return central_interval(resampled[np.isfinite(resampled)])


def _shared(detection: Detection) -> NDArray[np.bool_]:
    """Which (real, synthetic) pairs were judged by the same network."""
    return detection.real_fold[:, None] == detection.synthetic_fold[None]


def weighted_area(
    detection: Detection, real: NDArray[np.float64], synthetic: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`area_under_curve` with every image counted so often, (resamples,); NaN where no pair is left.

    `real` and `synthetic` are counts, (resamples, images).
    """
    shared = _shared(detection).astype(np.float64)
    difference = detection.synthetic[None] - detection.real[:, None]
    right = shared * (0.5 + 0.5 * np.sign(difference))
    pairs = np.einsum("ri,ij,rj->r", real, shared, synthetic, optimize=True)
    won = np.einsum("ri,ij,rj->r", real, right, synthetic, optimize=True)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
