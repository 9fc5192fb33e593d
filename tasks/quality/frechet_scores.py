"""Set scores that are Fréchet distances: of the main features, extrapolated, and of radiomic and speckle statistics.

The distance of finite sets is biased upwards, by an amount that depends on the model (Chong and Forsyth, arXiv
1911.07023). So it is never given alone: value and real-vs-real floor are computed at the same N on both sides; below
twice as many images as dimensions there is no absolute number, only the multiple of that floor; and the bias, which
falls as 1/N, is extrapolated away in `fid_infinity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage.records import SetScore
from tasks.quality.evidence import SetEvidence, Space
from tasks.quality.frechet import sensitivity
from tasks.quality.resampling import Comparison, central_interval, comparisons, grouped_margin

_SHRUNK = 1 / np.linspace(1, 2.5, 6)
"""Sizes at which the distance is extrapolated from, as shares of N: equally far apart in 1/N."""

_DRAWS = {64: 50, 256: 20, 1024: 8, 2**63: 4}
"""How many random halves, by the size of the matrices that each decomposes: the cost grows with its cube."""

_OUTLIER = 10.0
"""In spreads: how far a radiomic or speckle statistic counts, so that one odd image does not decide."""

_NO_HALVES = "the real images are of one group, or too few to be halved"

Array = NDArray[np.float64]


def fid(evidence: SetEvidence) -> SetScore:
    """Fréchet distance at N = the smaller of the synthetic images and half the real ones, a side.

    The value is the mean over random halves of the real images, the floor that of each half to the other.
    """
    return _frechet("fid", Space(evidence.real, evidence.synthetic, evidence.extractor), evidence)


def radiomic_frechet(evidence: SetEvidence) -> SetScore:
    """Fréchet distance of radiomic statistics (after Konz et al., arXiv 2412.01496), each in units of its spread
    among the real images."""
    return _scaled_frechet("radiomic_frechet", evidence.radiomic, evidence)


def speckle_frechet(evidence: SetEvidence) -> SetScore:
    """Fréchet distance of speckle statistics, each in units of its spread among the real images."""
    return _scaled_frechet("speckle_frechet", evidence.speckle, evidence)


def fid_infinity(evidence: SetEvidence) -> SetScore:
    """The distance that infinitely many images would have: a line in 1/N through `fid` at six sizes, at 1/N = 0.

    Unlike `fid` it may be below 0, as any unbiased estimate of 0. Its floor is that of real halves, whose true
    distance is 0: where that is missed, the note says so and the value is not to be relied on.
    """
    space = Space(evidence.real, evidence.synthetic, evidence.extractor)
    drawn = _drawn(space, evidence, seed=13)
    if not drawn:
        return _refused("fid_infinity", evidence, space.extractor, _NO_HALVES)
    sizes = sorted({max(2, round(len(drawn[0].here) * share)) for share in _SHRUNK}, reverse=True)
    if len(sizes) < 3:
        reason = f"N = {sizes[0]} a side is too small for a line through several N"
        return _refused("fid_infinity", evidence, space.extractor, reason)
    # The intercept of a least-squares line is a weighted mean of its points.
    weights = np.linalg.pinv(np.stack([np.ones(len(sizes)), 1 / np.array(sizes)], axis=1))[0]
    each = [_distances(space, [draw.first(n) for draw in drawn]) for n in sizes]
    found = _Distances(
        *(np.tensordot(weights, parts, axes=1) for parts in zip(*(vars(one).values() for one in each), strict=True))
    )
    score, floor_margin = _summarised("fid_infinity", space, evidence, found, sizes[0])
    doubts: list[str] = []
    if sizes[0] < 2 * space.real.shape[1]:
        doubts.append(f"N is below twice the {space.real.shape[1]} dimensions, where the bias is not linear in 1/N")
    if floor_margin is not None and score.floor is not None and abs(score.floor) > floor_margin:
        doubts.append("halves of the real images, whose true distance is 0, miss it")
    note = f"line in 1/N from N = {sizes[-1]} to {sizes[0]} a side, {len(drawn)} draws"
    note = f"unreliable: {'; '.join(doubts)}; {note}" if doubts else note
    return score.model_copy(update={"note": note + score.note})


def _scaled_frechet(name: str, space: Space | None, evidence: SetEvidence) -> SetScore:
    if space is None:
        return _refused(name, evidence, "none", "these statistics were not computed")
    spread = _spread(space.real)
    varies = spread > 1e-9 * np.abs(space.real).max(axis=0)  # not what rounding leaves of a constant
    if not varies.any():
        return _refused(name, evidence, space.extractor, "every statistic is constant among the real images")
    middle = np.median(space.real, axis=0)[varies]
    real, synthetic = (
        ((side[:, varies] - middle) / spread[varies]).clip(-_OUTLIER, _OUTLIER)
        for side in (space.real, space.synthetic)
    )
    score = _frechet(name, Space(real, synthetic, space.extractor), evidence)
    constant = int((~varies).sum())
    left_out = f"; left out as constant among the real images: {constant} of {len(varies)}" if constant else ""
    return score.model_copy(update={"note": score.note + left_out})


def _spread(real: Array) -> Array:
    """Spread of every column by its quartiles, as outliers do not move them; else its standard deviation."""
    low, high = np.percentile(real, [25, 75], axis=0)
    return np.where(high > low, (high - low) / 1.349, real.std(axis=0))


def _frechet(name: str, space: Space, evidence: SetEvidence) -> SetScore:
    drawn = _drawn(space, evidence, seed=10)
    if not drawn:
        return _refused(name, evidence, space.extractor, _NO_HALVES)
    n, needed = len(drawn[0].here), 2 * space.real.shape[1]
    found = _distances(space, drawn)
    score, _ = _summarised(name, space, evidence, found, n)
    score = score.model_copy(update={"low": max(0.0, score.low)} if score.low is not None else {})
    score = score.model_copy(update=_over_floor(found, evidence))
    total = f"of {len(space.real)} real and {len(space.synthetic)} synthetic"
    if n < needed:
        note = f"refused: N = {n} a side ({total}), at least {needed} needed (twice the feature dimension); "
        refused = {"value": None, "low": None, "high": None, "note": note + "read it in multiples of its floor"}
        return score.model_copy(update=refused)
    note = f"biased at this N: read it against its floor; mean of {len(drawn)} draws {total}"
    return score.model_copy(update={"note": note + score.note})


@dataclass(frozen=True)
class _Distances:
    """Distances of all draws, real to synthetic and real to real, and what a row's weight does to their means."""

    values: Array = field(repr=False)
    floors: Array = field(repr=False)
    value_moves: Array = field(repr=False)  # real rows, then synthetic ones
    floor_moves: Array = field(repr=False)


def _drawn(space: Space, evidence: SetEvidence, seed: int) -> list[Comparison]:
    """As many draws as their cost, which grows with the cube of the smaller of N and dimension, allows."""
    size = min(len(space.real) // 2, len(space.synthetic), space.real.shape[1])
    draws = next(draws for most, draws in _DRAWS.items() if size <= most)
    rng = np.random.default_rng([evidence.seed, seed])
    return comparisons(evidence.real_groups, evidence.synthetic_groups, draws, rng)


def _distances(space: Space, drawn: Sequence[Comparison]) -> _Distances:
    total = len(space.real) + len(space.synthetic)
    found = _Distances(np.zeros(len(drawn)), np.zeros(len(drawn)), np.zeros(total), np.zeros(total))
    for k, draw in enumerate(drawn):
        here = space.real[draw.here]
        found.values[k], real, synthetic = sensitivity(here, space.synthetic[draw.made])
        found.value_moves[draw.here] += real / len(drawn)
        found.value_moves[len(space.real) + draw.made] += synthetic / len(drawn)
        found.floors[k], one, other = sensitivity(here, space.real[draw.there])
        found.floor_moves[draw.here] += one / len(drawn)
        found.floor_moves[draw.there] += other / len(drawn)
    return found


def _summarised(
    name: str, space: Space, evidence: SetEvidence, found: _Distances, n: int
) -> tuple[SetScore, float | None]:
    """Value, floor, and the multiple with their intervals; and the margin of the mean floor."""
    value, floor = float(found.values.mean()), float(found.floors.mean())
    margin = _margin(found.value_moves, evidence)
    floor_low, floor_high = central_interval(found.floors)
    score = SetScore(
        name=name,
        value=value,
        low=None if margin is None else value - margin,
        high=None if margin is None else value + margin,
        floor=floor,
        floor_low=floor_low,
        floor_high=floor_high,
        n_real=n,
        n_synthetic=n,
        extractor=space.extractor,
        note="; no interval: one side is of one group" if margin is None else "",
    )
    return score, _margin(found.floor_moves, evidence)


def _over_floor(found: _Distances, evidence: SetEvidence) -> dict[str, float]:
    """The multiple of the floor; its interval is that of its logarithm, because a multiple cannot be negative."""
    value, floor = float(found.values.mean()), float(found.floors.mean())
    if min(value, floor) <= 0:
        return {}
    margin = _margin(found.value_moves / value - found.floor_moves / floor, evidence)
    ends = {} if margin is None else {"low": value / floor * np.exp(-margin), "high": value / floor * np.exp(margin)}
    return {"over_floor": value / floor} | {f"over_floor_{end}": float(at) for end, at in ends.items()}


def _refused(name: str, evidence: SetEvidence, extractor: str, reason: str) -> SetScore:
    return SetScore(
        name=name,
        value=None,
        low=None,
        high=None,
        n_real=len(evidence.real),
        n_synthetic=len(evidence.synthetic),
        extractor=extractor,
        note=f"refused: {reason}",
    )


def _margin(moves: Array, evidence: SetEvidence) -> float | None:
    n = len(evidence.real)
    return grouped_margin([(moves[:n], evidence.real_groups), (moves[n:], evidence.synthetic_groups)])
