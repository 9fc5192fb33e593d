"""Which samples stay, and may the set be published? Limits on scores, and a reason for every refusal."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from storage.records import Record, SetScore


class Threshold(Record):
    """Limits on one image score. A sample outside is rejected.

    `min` and `max` are values of the score. `min_real` and `max_real` are quantiles of the same score on
    held-out real images: `max_real: 0.95` on nearest_similarity rejects what resembles a training lesion more
    than 95 % of unseen real lesions do.
    """

    score: str = Field(description="name of an image score")
    min: float | None = Field(default=None, description="lowest value that stays")
    max: float | None = Field(default=None, description="highest value that stays")
    min_real: float | None = Field(default=None, ge=0, le=1, description="lowest, as a held-out real quantile")
    max_real: float | None = Field(default=None, ge=0, le=1, description="highest, as a held-out real quantile")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.min is None and self.max is None and self.min_real is None and self.max_real is None:
            raise ValueError(f"the threshold on {self.score} limits nothing: give min, max, min_real or max_real")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the threshold on {self.score} keeps nothing: min {self.min} is above max {self.max}")
        return self


class Limit(Record):
    """A limit on one set score. `max_over_floor` is in units of the real-vs-real floor."""

    score: str = Field(description="name of a set score")
    max: float | None = Field(default=None, description="highest value of the score")
    max_over_floor: float | None = Field(default=None, gt=0, description="highest value, in multiples of its floor")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.max is None and self.max_over_floor is None:
            raise ValueError(f"the limit on {self.score} limits nothing: give max or max_over_floor")
        return self


class GateParams(Record):
    """What a set must reach to be published."""

    min_kept: int = Field(default=1, ge=0, description="fewest samples a published set may have")
    limits: list[Limit] = Field(default=[], description="limits on set scores")


def check_names(asked: Collection[str], known: Collection[str], kind: str) -> None:
    """Refuse score names that do not exist.

    Raises:
        ValueError: with the nearest names that do.
    """
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
            raise ValueError(f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?")


def resolve(thresholds: Sequence[Threshold], held_out: Mapping[str, NDArray[np.float32]]) -> list[Threshold]:
    """The thresholds with quantiles of held-out real images turned into values; the stricter limit wins.

    Raises:
        ValueError: a quantile is asked of a score that no held-out image has.
    """
    resolved: list[Threshold] = []
    for threshold in thresholds:
        low, high = threshold.min, threshold.max
        if threshold.min_real is not None:
            quantile = _quantile(threshold.score, held_out, threshold.min_real)
            low = quantile if low is None else max(low, quantile)
        if threshold.max_real is not None:
            quantile = _quantile(threshold.score, held_out, threshold.max_real)
            high = quantile if high is None else min(high, quantile)
        # model_copy does not validate: a quantile may cross the given limit. Every row then says so.
        update = {"min": low, "max": high, "min_real": None, "max_real": None}
        resolved.append(threshold.model_copy(update=update))
    return resolved


def judge(
    scores: Mapping[str, NDArray[np.float32]],
    thresholds: Sequence[Threshold],
    held_out: Mapping[str, NDArray[np.float32]] | None = None,
) -> list[list[str]]:
    """Reasons to reject each sample, such as "segmenter_dice 0.41 < 0.50"; an empty list keeps it.

    A score that is NaN does not apply to that sample, and does not reject it.

    Raises:
        ValueError: unknown score, or scores of different lengths.
    """
    check_names([threshold.score for threshold in thresholds], scores, "image score")
    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"scores are of different numbers of samples: {lengths}")
    reasons: list[list[str]] = [[] for _ in range(next(iter(lengths.values()), 0))]
    for threshold in resolve(thresholds, held_out or {}):
        for row, value in enumerate(scores[threshold.score].tolist()):
            if threshold.min is not None and value < threshold.min:
                reasons[row].append(f"{threshold.score} {_compared(value, '<', threshold.min)}")
            if threshold.max is not None and value > threshold.max:
                reasons[row].append(f"{threshold.score} {_compared(value, '>', threshold.max)}")
    return reasons


def gate(scores: Sequence[SetScore], params: GateParams, kept: int) -> list[str]:
    """Why the set may not be published; empty where it may.

    A limit on a score that refused to be a number is a problem: what was not judged has not passed.

    Raises:
        ValueError: a limit on an unknown score.
    """
    by_name = {score.name: score for score in scores}
    problems: list[str] = []
    if kept < params.min_kept:
        problems.append(f"{kept} samples kept, at least {params.min_kept} asked")
    for limit in params.limits:
        check_names([limit.score], by_name, "set score")
        score = by_name[limit.score]
        if score.value is None:
            problems.append(f"{score.name} is limited but has no value: {score.note}")
            continue
        if limit.max is not None and score.value > limit.max:
            problems.append(f"{score.name} {_compared(score.value, '>', limit.max)}{_interval(score)}")
        if limit.max_over_floor is not None:
            problems += _over_floor(score, score.value, limit.max_over_floor)
    return problems


def _over_floor(score: SetScore, value: float, limit: float) -> list[str]:
    # An unbiased floor scatters around 0, and no multiple of 0 is a limit: its upper end takes its place.
    floor = score.floor if score.floor is not None and score.floor > 0 else score.floor_high
    if floor is None or floor <= 0:
        return [f"{score.name} is limited to {limit:g} × its floor but has none: {score.note}"]
    if value <= limit * floor:
        return []
    return [f"{score.name} {_number(value)}{_interval(score)} is {value / floor:.1f} × its floor, > {limit:g}"]


def _quantile(name: str, held_out: Mapping[str, NDArray[np.float32]], quantile: float) -> float:
    values = held_out.get(name, np.zeros(0, np.float32))
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(f"the threshold on {name} is a quantile of held-out real images, but none has that score")
    return float(np.quantile(values, quantile))


def _compared(value: float, sign: str, limit: float) -> str:
    """Both numbers with as many digits as tell them apart, two at least."""
    digits = 2
    while f"{value:.{digits}f}" == f"{limit:.{digits}f}" and digits < 9:
        digits += 1
    return f"{value:.{digits}f} {sign} {limit:.{digits}f}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _interval(score: SetScore) -> str:
    if score.low is None or score.high is None:
        return ""
    return f" ({_number(score.low)} to {_number(score.high)})"
