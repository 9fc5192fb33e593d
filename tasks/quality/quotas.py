"""Quotas: how many samples of each kind stay, the best first."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from storage.records import Record

ATTRIBUTES = ("label", "margin", "orientation", "mask_kind", "background_kind")
"""What a quota may ask for: columns of a sample that name its kind."""


class Quota(Record):
    """How many samples of one kind stay. Those of no quota stay as they are."""

    where: dict[str, str] = Field(
        default={}, description=f"which: a value for each of some of {', '.join(ATTRIBUTES)}; {{}}: all"
    )
    keep: int = Field(ge=1, description="most that stay")
    least: int = Field(default=0, ge=0, description="fewest; a set with fewer misses its gate")

    @model_validator(mode="after")
    def _can_be_met(self) -> "Quota":
        for name in self.where:
            if name not in ATTRIBUTES:
                raise ValueError(f"a quota asks for {name!r}; it may ask for {', '.join(ATTRIBUTES)}")
        if self.least > self.keep:
            raise ValueError(f"the quota of {self.name} asks for at least {self.least} of at most {self.keep}")
        return self

    @property
    def name(self) -> str:
        """Its kind, as reasons call it."""
        return ", ".join(f"{name}={value}" for name, value in self.where.items()) or "all"


class Quotas(Record):
    """Quotas and what "best" means for them. A sample of several quotas needs room in each."""

    best: str = Field(description="image score by which samples of a kind are ranked; without one a sample is last")
    each: list[Quota] = Field(min_length=1, description="the quotas")


class Filled(Record):
    """How one quota ended: `found` samples passed all thresholds, `kept` of them stay in the set."""

    quota: Quota
    found: int
    kept: int


def overfull(
    quotas: Quotas,
    attributes: Mapping[str, Sequence[str | None]],
    scores: NDArray[np.float32],
    lowest: bool,
    passed: NDArray[np.bool_],
) -> list[str | None]:
    """For each sample, why its quota has no room for it; None where it has, or where the sample had not `passed`.

    Args:
        quotas: what may stay.
        attributes: columns by name, one value a sample, samples in order of id: of equal ones the first stay.
        scores: what they are ranked by, (samples,).
        lowest: whether the lowest is the best.
        passed: which of them passed the thresholds, (samples,).
    """
    asked = [(quota, kind(quota, attributes, len(scores))) for quota in quotas.each]
    rank = np.where(np.isnan(scores), -np.inf, -scores if lowest else scores)
    room = [quota.keep for quota in quotas.each]
    reasons: list[str | None] = [None] * len(scores)
    for row in np.argsort(-rank, kind="stable").tolist():
        if not passed[row]:
            continue
        own = [number for number, (_, members) in enumerate(asked) if members[row]]
        full = next((asked[number][0] for number in own if not room[number]), None)
        if full is not None:
            reasons[row] = f"quota {full.name}: {full.keep} better by {quotas.best}"
            continue
        for number in own:
            room[number] -= 1
    return reasons


def filled(
    quotas: Quotas,
    attributes: Mapping[str, Sequence[str | None]],
    passed: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> list[Filled]:
    """How each quota ended."""
    ended: list[Filled] = []
    for quota in quotas.each:
        members = kind(quota, attributes, len(passed))
        ended.append(Filled(quota=quota, found=int((members & passed).sum()), kept=int((members & kept).sum())))
    return ended


def kind(quota: Quota, attributes: Mapping[str, Sequence[str | None]], count: int) -> NDArray[np.bool_]:
    """Which samples a quota is about, (samples,)."""
    members = np.ones(count, np.bool_)
    for name, value in quota.where.items():
        members &= np.array([found == value for found in attributes[name]], np.bool_)
    return members
