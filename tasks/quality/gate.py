"""May the set be published? Limits on set scores and numbers of samples, judged with their intervals.

A limit is met where the whole interval of its score is within, missed where the value is beyond, and in doubt between
the two. A set that misses one fails; a set in doubt passes with warnings, unless the recipe is strict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Literal, Self

from pydantic import Field, model_validator

from storage.records import Record, SetScore
from tasks.quality.quotas import Filled
from tasks.quality.resampling import wilson
from tasks.quality.thresholds import check_names, compared

Verdict = Literal["pass", "warn", "fail"]
_HOPELESS = 25.0  # times as many images: what nobody collects to settle a limit


class Limit(Record):
    """Limits on one set score. `…_over_floor` are in multiples of the score's real-vs-real floor."""

    score: str = Field(description="name of a set score")
    max: float | None = Field(default=None, description="highest value of the score")
    min: float | None = Field(default=None, description="lowest value of the score")
    max_over_floor: float | None = Field(default=None, gt=0, description="highest value, in multiples of its floor")
    min_over_floor: float | None = Field(default=None, gt=0, description="lowest value, in multiples of its floor")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if (self.max, self.min, self.max_over_floor, self.min_over_floor) == (None, None, None, None):
            raise ValueError(
                f"the limit on {self.score} limits nothing: give max, min, max_over_floor or min_over_floor"
            )
        return self

    @property
    def asked(self) -> str:
        """In words, such as "kid ≤ 0.2 and ≤ 3 × its floor"."""
        bounds = [
            *([f"≤ {self.max:g}"] if self.max is not None else []),
            *([f"≥ {self.min:g}"] if self.min is not None else []),
            *([f"≤ {self.max_over_floor:g} × its floor"] if self.max_over_floor is not None else []),
            *([f"≥ {self.min_over_floor:g} × its floor"] if self.min_over_floor is not None else []),
        ]
        return f"{self.score} {' and '.join(bounds)}"


class GateParams(Record):
    """What a set must reach to be published."""

    min_kept: int = Field(default=1, ge=0, description="fewest samples a published set may have")
    limits: list[Limit] = Field(default=[], description="limits on set scores")
    strict: bool = Field(default=False, description="whether doubt, a limit inside an interval say, also blocks")


@dataclass(frozen=True)
class Decision:
    """What the gate found: `problems` block publication, `warnings` do not, `advice` says what would change them."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """fail where there is a problem, else warn where there is a warning, else pass."""
        return "fail" if self.problems else "warn" if self.warnings else "pass"


@dataclass(frozen=True)
class _Bound:
    """One number of a score against one end of its limit."""

    name: str
    value: float
    low: float | None
    high: float | None
    limit: float
    is_max: bool
    unit: str  # "" or " × its floor"

    def beyond(self, value: float) -> bool:
        return value > self.limit if self.is_max else value < self.limit

    @property
    def far(self) -> float | None:
        """The worse end of the interval."""
        return self.high if self.is_max else self.low

    @property
    def near(self) -> float | None:
        return self.low if self.is_max else self.high


def gate(
    scores: Sequence[SetScore],
    params: GateParams,
    planned: int,
    kept: int,
    quotas: Sequence[Filled] = (),
    known: Decision | None = None,
) -> Decision:
    """Judge a set.

    A limit on a score that refused to be a number is a problem: what was not judged has not passed.

    Args:
        scores: of the kept samples.
        params: what is asked.
        planned: samples that were planned.
        kept: samples that stay.
        quotas: how they ended.
        known: what was found before.

    Raises:
        ValueError: a limit on an unknown score.
    """
    by_name = {score.name: score for score in scores}
    known = known or Decision()
    problems, warnings, advice = [*known.problems], [*known.warnings], [*known.advice]
    if kept < params.min_kept:
        problems.append(f"{kept} samples kept, at least {params.min_kept} asked")
        advice.append(_plan(planned, kept, params.min_kept))
    for ended in quotas:
        if ended.kept < ended.quota.keep:
            short = ended.kept < ended.quota.least
            wanted = ended.quota.least if short else ended.quota.keep
            counted = f"quota {ended.quota.name}: {ended.kept} samples kept, "
            (problems if short else warnings).append(
                counted + (f"at least {wanted} asked" if short else f"of {wanted}")
            )
            advice.append(f"quota {ended.quota.name}: {_plan(planned, ended.kept, wanted)}")
    for limit in params.limits:
        check_names([limit.score], by_name, "set score")
        score = by_name[limit.score]
        bounds, missing = _bounds(score, limit)
        problems += missing
        for bound in bounds:
            wrong, doubt, change = _judged(bound, score)
            problems += wrong
            warnings += doubt
            advice += change
        warnings += _toothless(score, limit)
    if params.strict:
        problems, warnings = problems + warnings, []
    return Decision(problems, warnings, list(dict.fromkeys(advice)))


def _bounds(score: SetScore, limit: Limit) -> tuple[list[_Bound], list[str]]:
    """The limit's ends with the numbers that they are about; and, in words, the numbers that there are not."""
    bounds: list[_Bound] = []
    missing: list[str] = []
    for asked, is_max in ((limit.max, True), (limit.min, False)):
        if asked is None:
            continue
        if score.value is None or not isfinite(score.value):
            ratio = (
                "" if score.over_floor is None else f"; it is {score.over_floor:.2g} × its floor: limit that instead"
            )
            missing.append(f"{score.name} is limited but has no value: {score.note}{ratio}")
        else:
            bounds.append(_Bound(score.name, score.value, score.low, score.high, asked, is_max, ""))
    for asked, is_max in ((limit.max_over_floor, True), (limit.min_over_floor, False)):
        if asked is None:
            continue
        ratios = _over_floor(score)
        if ratios is None:
            missing.append(f"{score.name} is limited to {asked:g} × its floor but has none: {score.note}")
        else:
            bounds.append(_Bound(score.name, *ratios, asked, is_max, " × its floor"))
    return bounds, missing


def _over_floor(score: SetScore) -> tuple[float, float | None, float | None] | None:
    """Value and interval in multiples of the floor."""
    if score.over_floor is not None:
        return score.over_floor, score.over_floor_low, score.over_floor_high
    # An unbiased floor scatters around 0, and no multiple of 0 is a limit: its upper end takes its place.
    floor = score.floor if score.floor is not None and score.floor > 0 else score.floor_high
    if score.value is None or floor is None or floor <= 0:
        return None
    low, high = (None if end is None else end / floor for end in (score.low, score.high))
    return score.value / floor, low, high


def _judged(bound: _Bound, score: SetScore) -> tuple[list[str], list[str], list[str]]:
    """Problem, warning and advice; each list holds one or none."""
    sign = ">" if bound.is_max else "<"
    what = f"{bound.name} {compared(bound.value, sign, bound.limit)}{bound.unit}{_interval(bound)}"
    if bound.beyond(bound.value):
        return [what], [], [_change(bound, score)]
    if bound.far is None:
        return [], [f"{bound.name} {bound.value:.3g}{bound.unit} is within its limit, but has no interval"], []
    if bound.beyond(bound.far):
        end = compared(bound.far, sign, bound.limit)
        doubt = f"{bound.name} {bound.value:.3g}{bound.unit} is within its limit, but its interval reaches {end}"
        return [], [doubt], [_change(bound, score)]
    return [], [], []


def _change(bound: _Bound, score: SetScore) -> str:
    """What would have to change for the whole interval to be within the limit.

    An interval shrinks with the root of the number of images; that of a value on the wrong side may shrink as it
    likes.
    """
    assert bound.far is not None or bound.beyond(bound.value)
    fall, distance = ("fall" if bound.is_max else "rise"), abs(bound.limit - bound.value)
    now = f"now {score.n_real} real and {score.n_synthetic} synthetic"
    if bound.beyond(bound.value):
        must = f"{bound.name} must {fall} by {distance:.3g}{bound.unit}"
        if bound.near is not None and bound.beyond(bound.near):
            return f"{must}: its whole interval is beyond the limit, so other images are needed, not more"
        return f"{must}; its interval holds the limit, so more images may also show it to be within ({now})"
    assert bound.far is not None
    width = abs(bound.far - bound.value)
    times = (width / distance) ** 2 if distance else float("inf")
    if times > _HOPELESS:
        return f"{bound.name} must {fall} by about {width - distance:.3g}{bound.unit} for its interval to be within"
    return (
        f"{bound.name} would be within its limit for sure with about {times:.1f} × as many images on both sides "
        f"({now}), or where it {fall}s by {width - distance:.3g}{bound.unit}"
    )


def _toothless(score: SetScore, limit: Limit) -> Iterator[str]:
    """A warning where images damaged on purpose would be within the limit too: then being within says nothing."""
    if score.control is None or score.value is None:
        return
    if (limit.max is not None and score.control <= limit.max) or (limit.min is not None and score.control >= limit.min):
        yield (
            f"{score.name} {score.value:.3g} proves nothing: images damaged on purpose reach {score.control:.3g}, "
            "which is within the limit too"
        )


def _plan(planned: int, kept: int, wanted: int) -> str:
    """How many samples to plan so that `wanted` stay, at the rate at which they do now."""
    if not kept:
        return f"none of {planned} planned samples stays: planning more will not help, see what rejects them"
    low, high = wilson(kept, planned)
    few, many = ceil(wanted / high), ceil(wanted / low)
    return (
        f"plan about {ceil(wanted * planned / kept)} samples instead of {planned} ({few} to {many} by the "
        f"{kept / planned:.0%} that stay now)"
    )


def _interval(bound: _Bound) -> str:
    if bound.low is None or bound.high is None:
        return ""
    return f" ({bound.low:.3g} to {bound.high:.3g})"
