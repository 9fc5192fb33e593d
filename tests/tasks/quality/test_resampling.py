import numpy as np
import pytest
from scipy.stats import binomtest, t

from tasks.quality.resampling import (
    GroupSample,
    bounded_rows,
    comparisons,
    group_halves,
    group_weights,
    grouped_margin,
    interval_around,
    wilson,
)


def test_halves_share_no_group_and_are_equally_large():
    groups = [f"g{row // 3}" for row in range(100)]
    for a, b in group_halves(groups, 40, 20, np.random.default_rng(0)):
        assert not {groups[row] for row in a} & {groups[row] for row in b}
        assert len(a) == len(b) <= 40
        assert len(set(a.tolist())) == len(a)


def test_one_huge_group_leaves_small_halves_rather_than_sharing():
    groups = ["big"] * 50 + ["a", "b", "c"]
    halves = group_halves(groups, 50, 10, np.random.default_rng(0))
    assert all(2 <= len(a) <= 3 for a, _ in halves)


def test_two_patients_of_one_image_have_no_halves():
    assert group_halves(["a", "b"], 5, 3, np.random.default_rng(0)) == []


def test_one_group_has_no_halves():
    assert group_halves(["only"] * 10, 5, 3, np.random.default_rng(0)) == []


def test_a_group_is_drawn_as_a_whole():
    weights = group_weights(["a", "a", "b", "c", "c"], 50, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()


def test_the_interval_is_centred_on_the_value_whatever_the_bias_of_resampling():
    low, high = interval_around(1.0, np.random.default_rng(0).normal(7, 1, 4000))
    assert low < 1 < high
    assert abs((low + high) / 2 - 1) < 0.1


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 3), (5, 10), (97, 100), (100, 100)])
def test_the_interval_of_a_rate_is_scipys(hits: int, n: int):
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= wilson(hits, n)[0] <= hits / n <= wilson(hits, n)[1] <= 1


def test_of_no_trials_nothing_is_known_and_more_hits_than_trials_are_refused():
    assert wilson(0, 0) == (0, 1)
    for hits, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"found {hits} hits of 2"):
            wilson(hits, n)


def test_a_comparison_has_equal_sides_and_a_floor_without_shared_groups():
    real, made = [f"r{row // 4}" for row in range(60)], [f"s{row // 3}" for row in range(21)]
    for draw in comparisons(real, made, 20, np.random.default_rng(0)):
        assert len(draw.here) == len(draw.there) == len(draw.made) == 21
        assert not {real[row] for row in draw.here} & {real[row] for row in draw.there}
        assert len(set(draw.made.tolist())) == 21
        fewer = draw.first(9)
        assert len({made[row] for row in fewer.made}) == 3  # whole groups
    assert comparisons(["one"] * 9, made, 3, np.random.default_rng(0)) == []


def test_the_margin_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(size=12)
    moves = (values - values.mean()) / 12
    expected = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert grouped_margin([(moves, [str(row) for row in range(12)])]) == pytest.approx(expected, rel=1e-9)


def test_repeats_within_a_group_add_nothing_to_what_is_known():
    values = np.random.default_rng(0).normal(size=12)
    repeated = np.repeat(values, 5)
    groups = [str(row // 5) for row in range(60)]
    single = grouped_margin([((values - values.mean()) / 12, [str(row) for row in range(12)])])
    assert grouped_margin([((repeated - repeated.mean()) / 60, groups)]) == pytest.approx(single, rel=1e-9)


def test_a_group_on_both_sides_moves_both():
    """A difference of two means of the same patients: what they share cancels."""
    patients = np.random.default_rng(0).normal(size=20)
    moves, names = (patients - patients.mean()) / 20, [str(row) for row in range(20)]
    assert grouped_margin([(moves, names), (-moves, names)]) == pytest.approx(0, abs=1e-12)
    assert grouped_margin([(moves, names), (-moves, ["only"] * 20)]) is None


def test_a_bounded_sample_holds_whole_groups_whatever_the_order():
    groups = [f"g{row % 40}" for row in range(400)]
    rows = bounded_rows(groups, 95, seed=3)
    assert 86 <= len(rows) <= 95
    chosen = {groups[row] for row in rows}
    assert len(rows) == 10 * len(chosen)
    assert (np.diff(rows) > 0).all()
    shuffled = np.random.default_rng(0).permutation(400)
    again = bounded_rows([groups[row] for row in shuffled], 95, seed=3)
    assert {groups[shuffled[row]] for row in again} == chosen
    assert {groups[row] for row in bounded_rows(groups, 95, seed=4)} != chosen
    assert bounded_rows(groups, 400, seed=3).tolist() == list(range(400))


def test_every_group_is_drawn_equally_often():
    drawn = np.zeros(10)
    for seed in range(400):
        drawn[bounded_rows([str(group) for group in range(10)], 3, seed)] += 1
    assert drawn.sum() == 1200
    assert (np.abs(drawn - 120) < 5 * np.sqrt(120 * 0.7)).all()


def test_a_stream_is_never_held_whole():
    sample = GroupSample[int](20, seed=0)
    for row in range(5000):
        sample.add(f"g{row // 4}", row)
        assert sum(len(rows) for rows in sample._rows.values()) <= 20
    assert sample.seen == 5000
    assert len(sample.rows()) >= 17
    huge = GroupSample[int](20, seed=0)
    for row in range(100):
        huge.add("only", row)
    assert [row for _, row in huge.rows()] == list(range(20))
