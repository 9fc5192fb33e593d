"""Precision, recall, density and coverage: is what was made real, and is all that is real made?

Around every image lies a ball that reaches its fifth nearest neighbour of the same set; the balls of a set are where
its kind of image lives. Precision and recall: Kynkäänniemi et al., arXiv 1904.06991; density and coverage, which no
single outlier can inflate: Naeem et al., arXiv 2002.09797. Of all four more is better. They depend on N, so value and
floor are computed at the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.evidence import SetEvidence, check_features, pairwise
from tasks.quality.resampling import (
    Comparison,
    Rng,
    central_interval,
    comparisons,
    group_halves,
    interval_around,
    wilson,
)

NEIGHBOURS = 5
MEASURES = ("precision", "recall", "density", "coverage")
_DRAWS = 50

Array = NDArray[np.float64]


def precision_recall(real: Array, synthetic: Array, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """All four measures of two sets of features (n, d), by name: 0..1, density 0 upwards.

    Raises:
        ValueError: NaN, different dimensions, or a side with no more images than `neighbours`.
    """
    check_features(real, synthetic)
    if min(len(real), len(synthetic)) <= neighbours:
        found = f"found {len(real)} real and {len(synthetic)} synthetic images"
        raise ValueError(f"{found}; neighbourhoods of {neighbours} need at least {neighbours + 1} a side")
    within = _squares(real, real), _squares(synthetic, synthetic)
    return dict(zip(MEASURES, _measured(*within, _squares(real, synthetic), neighbours).tolist(), strict=True))


def precision(evidence: SetEvidence) -> SetScore:
    """Share of the synthetic images that look like some real image: low where the generator makes what is not real."""
    return _score("precision", evidence)


def recall(evidence: SetEvidence) -> SetScore:
    """Share of the real images that look like some synthetic image: low where the generator leaves kinds out."""
    return _score("recall", evidence)


def density(evidence: SetEvidence) -> SetScore:
    """How many real neighbourhoods hold a synthetic image, against how many hold a real one: precision that one real
    outlier cannot inflate; 1 where the sets are alike."""
    return _score("density", evidence)


def coverage(evidence: SetEvidence) -> SetScore:
    """Share of the real neighbourhoods that hold a synthetic image: low where diversity has collapsed."""
    return _score("coverage", evidence)


_SCORES: WeakKeyDictionary[SetEvidence, dict[str, SetScore]] = WeakKeyDictionary()
"""The four share their distances, which are all of the work."""


def _score(name: str, evidence: SetEvidence) -> SetScore:
    if evidence not in _SCORES:
        _SCORES[evidence] = {score.name: score for score in _scores(evidence)}
    return _SCORES[evidence][name]


def _scores(whole: SetEvidence) -> list[SetScore]:
    evidence, chosen = pairwise(whole)
    rng = np.random.default_rng([evidence.seed, 14])
    drawn = comparisons(evidence.real_groups, evidence.synthetic_groups, _DRAWS, rng)
    n = len(drawn[0].here) if drawn else 0
    least = 2 * NEIGHBOURS + 1
    refused = SetScore(
        name="",
        value=None,
        low=None,
        high=None,
        n_real=n,
        n_synthetic=n,
        extractor=evidence.extractor,
        note=f"refused: N = {n} a side, at least {least} needed for neighbourhoods of {NEIGHBOURS}",
    )
    if n < least:
        return [refused.model_copy(update={"name": name}) for name in MEASURES]
    distances = _Distances(
        _squares(evidence.real, evidence.real),
        _squares(evidence.synthetic, evidence.synthetic),
        _squares(evidence.real, evidence.synthetic),
    )
    values, floors = distances.compared(drawn)
    scatter = _scatter(evidence, distances, rng)
    note = f"{NEIGHBOURS} neighbours, mean of {len(drawn)} draws at N = {n} a side{chosen}"
    if scatter is None:
        note += "; no interval: a side has too few images or one group"
    found: list[SetScore] = []
    for k, name in enumerate(MEASURES):
        floor_low, floor_high = central_interval(floors[:, k])
        update = {
            "value": float(values[:, k].mean()),
            "floor": float(floors[:, k].mean()),
            "floor_low": floor_low,
            "floor_high": floor_high,
        }
        if update["floor"] > 0:
            update["over_floor"] = update["value"] / update["floor"]
        if scatter is not None:
            judged = evidence.synthetic_groups if name == "precision" else evidence.real_groups
            most = np.inf if name == "density" else 1.0
            update |= _intervals(update, scatter[0][:, k], scatter[1][:, k], most, len(set(judged)))
        found.append(refused.model_copy(update=update | {"name": name, "note": note}))
    return found


@dataclass(frozen=True)
class _Distances:
    """Squared distances of all pairs of images."""

    within_real: Array = field(repr=False)
    within_made: Array = field(repr=False)
    across: Array = field(repr=False)

    def compared(self, drawn: Sequence[Comparison]) -> tuple[Array, Array]:
        """The measures of every draw, (draws, 4): of real to synthetic, and of real to real images."""
        values, floors = np.zeros((len(drawn), 4)), np.zeros((len(drawn), 4))
        for k, draw in enumerate(drawn):
            here, there, made = draw.here, draw.there, draw.made
            near = self.within_real[np.ix_(here, here)]
            made_near, there_near = self.within_made[np.ix_(made, made)], self.within_real[np.ix_(there, there)]
            values[k] = _measured(near, made_near, self.across[np.ix_(here, made)], NEIGHBOURS)
            floors[k] = _measured(near, there_near, self.within_real[np.ix_(here, there)], NEIGHBOURS)
        return values, floors


def _scatter(evidence: SetEvidence, distances: _Distances, rng: Rng) -> tuple[Array, Array] | None:
    """Values and floors of random halves of both sides, (draws, 4): they scatter as the scores of the whole err.

    The delete-half jackknife: half of the images have twice the variance, and one half of that is common to all
    halves of a whole. Sampling with replacement would not do here: a copy is its own nearest neighbour.
    """
    real = group_halves(evidence.real_groups, len(evidence.synthetic), 2 * _DRAWS, rng)
    made = group_halves(evidence.synthetic_groups, len(evidence.real), 2 * _DRAWS, rng)
    if not real or not made:
        return None
    size = min(len(real[0][0]), len(made[0][0]))
    if size <= NEIGHBOURS:
        return None
    pairs = zip(real, made, strict=True)
    return distances.compared([Comparison(a, c, b).first(size) for (a, c), (b, _) in pairs])


def _intervals(score: dict[str, float], values: Array, floors: Array, most: float, groups: int) -> dict[str, float]:
    """Of the value, and of its multiple of the floor. A rate that is the same in every half has Wilson's of its groups:
    that all of few were found does not mean that all will be."""
    low, high = interval_around(score["value"], values)
    if low == high and most == 1:
        low, high = wilson(round(score["value"] * groups), groups)
    found = {"low": max(0.0, low), "high": min(most, high)}
    if "over_floor" in score and (floors > 0).all():
        low, high = interval_around(score["over_floor"], values / floors)
        least, greatest = found["low"] / score["floor"], found["high"] / score["floor"]
        found |= {"over_floor_low": max(0.0, min(low, least)), "over_floor_high": max(high, greatest)}
    return found


def _squares(a: Array, b: Array) -> Array:
    """Squared distances of all rows of `a` to all of `b`; what rounding leaves of equal rows is 0."""
    middle = a.mean(axis=0)
    a, b = a - middle, b - middle
    own_a, own_b = (a**2).sum(axis=1), (b**2).sum(axis=1)
    squares = -2 * a @ b.T
    squares += own_a[:, None]
    squares += own_b
    squares[squares < 32 * np.finfo(np.float64).eps * max(own_a.max(), own_b.max())] = 0
    return squares


def _measured(within_real: Array, within_made: Array, across: Array, neighbours: int) -> Array:
    """The four measures from squared distances. An image is its own nearest, so the k-th neighbour stands at k."""
    radius_real = np.partition(within_real, neighbours, axis=1)[:, neighbours]
    radius_made = np.partition(within_made, neighbours, axis=1)[:, neighbours]
    in_real = across <= radius_real[:, None]
    return np.array(
        [
            in_real.any(axis=0).mean(),
            (across <= radius_made).any(axis=1).mean(),
            in_real.sum(axis=0).mean() / neighbours,
            in_real.any(axis=1).mean(),
        ]
    )
