"""Plan which samples to make: number, label and seed of each, fixed by its index alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydantic import Field, field_validator

from storage.records import Record
from tasks.synthesis.attributes import by_share

GOLDEN = (5**0.5 - 1) / 2


class Plan(Record):
    """How many samples of which labels.

    Sample 17 is the same whatever `samples` is, so asking for 500 more makes 500.
    """

    samples: int = Field(default=96, ge=1, le=10_000_000, description="Samples to plan; fewer are kept.")
    labels: dict[str, float] = Field(
        default={"benign": 0.5, "malignant": 0.5},
        min_length=1,
        description="Share of each label; scaled to sum to 1.",
    )
    shard: int = Field(
        default=16, ge=1, le=4096, description="Samples a shard: the unit of work, of resume and of loss."
    )

    @field_validator("labels")
    @classmethod
    def _shares_are_positive(cls, labels: dict[str, float]) -> dict[str, float]:
        if not all(share > 0 for share in labels.values()):
            raise ValueError("every share must be above 0; leave a label out to make none of it")
        return labels


@dataclass(frozen=True)
class Planned:
    """One sample to make. `point` is where it lies in its label's share, 0 to 1, evenly spread over any prefix."""

    id: str
    index: int
    label: str
    seed: int
    point: float


def shards(plan: Plan) -> list[range]:
    """Index ranges of the shards, the last one possibly short.

    >>> shards(Plan(samples=5, shard=2))
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(at, min(at + plan.shard, plan.samples)) for at in range(0, plan.samples, plan.shard)]


def planned(plan: Plan, seed: int, indices: Iterable[int]) -> list[Planned]:
    """The samples at `indices`.

    Labels follow the golden-ratio sequence, so each depends on its index alone and every prefix of the plan
    has the shares asked for, to within a sample or two; and so have quotas of attributes that are read from `point`.

    >>> [p.label for p in planned(Plan(samples=4), 0, range(4))]
    ['benign', 'malignant', 'malignant', 'benign']
    """
    out: list[Planned] = []
    for index in indices:
        label, point = by_share(plan.labels, (index + 0.5) * GOLDEN % 1.0)
        sample_seed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0])
        out.append(Planned(f"syn-{index:08d}", index, label, sample_seed, point))
    return out
