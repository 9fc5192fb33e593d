"""The plan: every sample is fixed by its index."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.plan import Plan, planned, shards


@given(samples=st.integers(1, 500), shard=st.integers(1, 64))
def test_shards_cover_every_sample_once(samples: int, shard: int) -> None:
    covered = [index for part in shards(Plan(samples=samples, shard=shard)) for index in part]
    assert covered == list(range(samples))


@given(first=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_a_sample_is_the_same_whatever_else_is_planned(first: int, share: float) -> None:
    plan = Plan(samples=1, labels={"benign": share, "malignant": 1 - share})
    (alone,) = planned(plan, 3, [first])
    assert planned(plan, 3, range(first, first + 5))[0] == alone


@pytest.mark.parametrize("samples", [10, 100, 1000])
def test_every_prefix_has_the_shares_asked_for(samples: int) -> None:
    plan = Plan(labels={"benign": 3, "malignant": 1})
    counts = Counter(sample.label for sample in planned(plan, 0, range(samples)))
    assert abs(counts["benign"] / samples - 0.75) <= 2 / samples


def test_seeds_differ_between_samples_and_recipes() -> None:
    seeds = [sample.seed for recipe in (0, 1) for sample in planned(Plan(), recipe, range(500))]
    assert len(set(seeds)) == len(seeds)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="above 0"):
        Plan(labels={"benign": 0})
