"""Limits on single images: which samples stay, and a reason for every refusal."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from storage.records import Record

Scores = Mapping[str, NDArray[np.float32]]
"""Image scores by name, each (samples,); NaN where a score does not apply."""


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


def check_names(asked: Collection[str], known: Collection[str], kind: str) -> None:
    """Refuse score names that do not exist.

    Raises:
        ValueError: with the nearest names that do.
    """
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
            raise ValueError(f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?")


def resolve(thresholds: Sequence[Threshold], held_out: Scores) -> list[Threshold]:
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


def refuse_unscored(thresholds: Sequence[Threshold], scores: Scores) -> None:
    """Refuse a threshold on what none of the samples that were made has: it would let everything pass.

    Raises:
        ValueError: with the score.
    """
    for threshold in thresholds:
        values = scores[threshold.score]
        if len(values) and not np.isfinite(values).any():
            raise ValueError(
                f"the threshold on {threshold.score} limits nothing: none of {len(values)} samples has that score; "
                "take it out of curate"
            )


def judge(scores: Scores, thresholds: Sequence[Threshold], held_out: Scores | None = None) -> list[list[str]]:
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
        values = scores[threshold.score].astype(np.float64)
        low, high = threshold.min, threshold.max
        if low is not None:
            for row in np.flatnonzero(values < low).tolist():
                reasons[row].append(f"{threshold.score} {compared(values[row], '<', low)}")
        if high is not None:
            for row in np.flatnonzero(values > high).tolist():
                reasons[row].append(f"{threshold.score} {compared(values[row], '>', high)}")
    return reasons


def relaxed(
    scores: Scores, thresholds: Sequence[Threshold], reasons: Sequence[Sequence[str]], missing: int
) -> list[str]:
    """What each threshold alone rejects, the largest number first; and where it would have to lie so that
    `missing` more samples stay.

    Args:
        scores: as `judge` saw them.
        thresholds: resolved.
        reasons: what `judge` said; a sample with one reason is rejected by that threshold alone.
        missing: samples that are wanted, 1 upwards.
    """
    found: list[tuple[int, str]] = []
    sole = [row for row, own in enumerate(reasons) if len(own) == 1]
    for threshold in thresholds:
        own = np.array([row for row in sole if reasons[row][0].startswith(f"{threshold.score} ")], np.intp)
        if not len(own):
            continue
        values = scores[threshold.score][own].astype(np.float64)
        low, high = threshold.min, threshold.max
        beyond = np.maximum(
            0 if low is None else low - values,
            0 if high is None else values - high,
        )
        text = f"{threshold.score} alone rejects {len(own)}"
        if missing <= len(own):
            last = float(values[np.argsort(beyond, kind="stable")[missing - 1]])
            side, limit = ("min", low) if low is not None and last < low else ("max", high)
            assert limit is not None
            text += f"; {side} {apart(last, limit)} instead of {apart(limit, last)} would keep {missing} of them"
        found.append((-len(own), text))
    return [text for _, text in sorted(found)]


def cause(reason: str) -> str:
    """What a reason is about, without its numbers.

    >>> cause("segmenter_dice 0.41 < 0.50"), cause("not selected: kid is lower without it")
    ('segmenter_dice', 'not selected')
    """
    about, colon, _ = reason.partition(": ")
    return about if colon else reason.split(" ")[0]


def compared(value: float, sign: str, limit: float) -> str:
    """Both numbers with as many digits as tell them apart, two at least."""
    return f"{apart(value, limit)} {sign} {apart(limit, value)}"


def apart(value: float, other: float) -> str:
    """A number with as many digits as tell it from another, two at least."""
    digits = 2
    while f"{value:.{digits}f}" == f"{other:.{digits}f}" and digits < 9:
        digits += 1
    return f"{value:.{digits}f}"


def _quantile(name: str, held_out: Scores, quantile: float) -> float:
    values = held_out.get(name, np.zeros(0, np.float32))
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(f"the threshold on {name} is a quantile of held-out real images, but none has that score")
    return float(np.quantile(values, quantile))
