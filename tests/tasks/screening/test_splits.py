from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.screening.splits import folds_by_group, split_by_group

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
GROUPS = [f"g{k // 3}" for k in range(300)]
LABELS = [("benign", "malignant", "normal")[(k // 3) % 3] for k in range(300)]


def test_fractions_hold_within_every_label():
    splits = split_by_group(GROUPS, LABELS, FRACTIONS, seed=1)
    for label in set(LABELS):
        counts = Counter(splits[group] for group, own in zip(GROUPS, LABELS, strict=True) if own == label)
        assert abs(counts["test"] / counts.total() - 0.15) < 0.04
        assert abs(counts["val"] / counts.total() - 0.15) < 0.04


def test_order_does_not_matter_and_seeds_do():
    first = split_by_group(GROUPS, LABELS, FRACTIONS, seed=1)
    assert split_by_group(GROUPS[::-1], LABELS[::-1], FRACTIONS, seed=1) == first
    assert split_by_group(GROUPS, LABELS, FRACTIONS, seed=2) != first


def test_a_new_group_moves_hardly_any_other():
    first = split_by_group(GROUPS, LABELS, FRACTIONS, seed=1)
    more = split_by_group([*GROUPS, "new"], [*LABELS, "benign"], FRACTIONS, seed=1)
    assert sum(first[group] != more[group] for group in first) <= 2


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_few_groups_still_reach_every_split(count):
    for seed in range(8):
        splits = split_by_group([f"g{k}" for k in range(count)], ["head"] * count, FRACTIONS, seed)
        assert set(splits.values()) == {"train", "val", "test"}


def test_groups_decided_elsewhere_keep_their_split():
    splits = split_by_group(GROUPS, LABELS, FRACTIONS, 1, {"g0": "test", "g1": "val", "unknown": "train"})
    assert (splits["g0"], splits["g1"]) == ("test", "val")
    assert "unknown" not in splits


def test_an_empty_split_stays_empty_and_wrong_fractions_are_refused():
    splits = split_by_group(GROUPS, LABELS, {"train": 0.8, "val": 0.2, "test": 0.0}, seed=1)
    assert set(splits.values()) == {"train", "val"}
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_group(GROUPS, LABELS, {"train": 0.8, "val": 0.1, "test": 0.0}, seed=1)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=10, max_size=60),
    folds=st.integers(2, 10),
    seed=st.integers(0, 1000),
)
def test_every_group_is_held_out_in_exactly_one_fold(sizes: list[int], folds: int, seed: int):
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    labels = [("benign", "malignant", "normal")[int(group[1:]) % 3] for group in groups]
    found = folds_by_group(groups, labels, folds, seed)
    assert set(found) == set(groups)
    assert set(found.values()) == set(range(folds))
    for label in set(labels):
        own = Counter(found[group] for group, name in zip(groups, labels, strict=True) if name == label)
        assert max(own.values()) - min(own.get(fold, 0) for fold in range(folds)) <= max(sizes)
    assert folds_by_group(groups[::-1], labels[::-1], folds, seed) == found


def test_more_folds_than_groups_are_refused():
    with pytest.raises(ValueError, match="3 groups cannot be held out in 5 folds"):
        folds_by_group(["a", "b", "c"], ["head"] * 3, 5, 0)
