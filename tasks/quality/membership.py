"""Can one tell, from how well the adapters denoise a scan, that they were trained on it? 0.5: no; 1: always."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.detector import Detection
from tasks.quality.resampling import Rng, central_interval, group_halves
from tasks.quality.separability import area_under_curve, area_with_interval, permutation_p

FEWEST = 8
"""Scans a side below which the area is not given."""
_RESAMPLES, _FLOORS, _PERMUTATIONS = 1000, 200, 500


@dataclass(frozen=True)
class Side:
    """Scans that were learned, or that were not: what each gains by the adapter of its label (see
    `tasks.synthesis.diffusion.membership`), its group, and its label."""

    gains: NDArray[np.float32] = field(repr=False)
    groups: Sequence[str] = field(repr=False)
    labels: Sequence[str] = field(repr=False)


def membership_auc(members: Side, strangers: Side, seed: int) -> SetScore:
    """Area under the curve of an attack that calls the scans with the largest gains members.

    Only scans of one label are compared, because each label has an adapter of its own. The interval is a bootstrap
    over groups; the floor is the same attack between halves of the strangers; `p` is one-sided. An upper bound on what
    is remembered it is not: a stronger attack may find more.
    """
    n, m = len(members.gains), len(strangers.gains)
    names = sorted({*members.labels, *strangers.labels})
    found = Detection(strangers.gains, members.gains, _folds(strangers, names), _folds(members, names))
    score = SetScore(
        name="membership_auc",
        value=None,
        low=None,
        high=None,
        n_real=m,
        n_synthetic=n,
        extractor="gain in denoising loss, adapter over base",
    )
    if min(n, m) < FEWEST:
        return score.model_copy(
            update={"note": f"refused: {n} members and {m} held-out scans; expected {FEWEST} of each"}
        )
    if not np.intersect1d(found.real_fold, found.synthetic_fold).size:
        return score.model_copy(update={"note": "refused: no label has both members and held-out scans"})
    rng = np.random.default_rng([seed, 14])
    value, low, high = area_with_interval(found, strangers.groups, members.groups, _RESAMPLES, rng)
    p = permutation_p(found, strangers.groups, members.groups, _PERMUTATIONS, rng)
    note = "real: scans held out, synthetic: scans the adapters learned"
    floors = _floors(strangers, found.real_fold, rng)
    update: dict[str, object] = {"value": value, "low": low, "high": high, "p": p, "note": note}
    if len(floors):
        floor, (least, most) = float(floors.mean()), central_interval(floors)
        over = {"over_floor": value / floor, "over_floor_low": low / floor, "over_floor_high": high / floor}
        update |= {"floor": floor, "floor_low": least, "floor_high": most, **over}
    return score.model_copy(update=update)


def _floors(strangers: Side, fold: NDArray[np.intp], rng: Rng) -> NDArray[np.float64]:
    """The area between halves of the strangers, once for each of many ways to halve them; empty where there is none."""
    areas: list[float] = []
    for a, b in group_halves(strangers.groups, len(strangers.gains), _FLOORS, rng):
        half = Detection(strangers.gains[a], strangers.gains[b], fold[a], fold[b])
        if np.intersect1d(half.real_fold, half.synthetic_fold).size:
            areas.append(area_under_curve(half))
    return np.array(areas)


def _folds(side: Side, names: Sequence[str]) -> NDArray[np.intp]:
    """The place of each scan's label among `names`: pairs are formed within a label."""
    return np.array([names.index(label) for label in side.labels], np.intp)
