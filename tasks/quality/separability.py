"""How well can a detector tell synthetic from real? 0.5: not at all; 1: always."""

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.detector import Detection
from tasks.quality.evidence import SetEvidence
from tasks.quality.resampling import central_interval, group_weights

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
    return float(_weighted(detection, *ones)[0])


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
    n = len(evidence.real)
    # One draw for both sides: a group that gave real and synthetic images comes and goes as a whole.
    weights = group_weights([*evidence.real_groups, *evidence.synthetic_groups], evidence.resamples, rng)
    low, high = _interval(evidence.detection, weights[:, :n], weights[:, n:])
    value = area_under_curve(evidence.detection)
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


def _interval(detection: Detection, real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> tuple[float, float]:
    resampled = _weighted(detection, real, synthetic)
    return central_interval(resampled[np.isfinite(resampled)])


def _shared(detection: Detection) -> NDArray[np.bool_]:
    """Which (real, synthetic) pairs were judged by the same network."""
    return detection.real_fold[:, None] == detection.synthetic_fold[None]


def _weighted(detection: Detection, real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area with every image counted `weights` times, (resamples,)."""
    shared = _shared(detection).astype(np.float64)
    difference = detection.synthetic[None] - detection.real[:, None]
    right = shared * (0.5 + 0.5 * np.sign(difference))
    pairs = np.einsum("ri,ij,rj->r", real, shared, synthetic, optimize=True)
    won = np.einsum("ri,ij,rj->r", real, right, synthetic, optimize=True)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
