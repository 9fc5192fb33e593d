import numpy as np

from tasks.quality.resampling import group_halves, group_weights, interval_around


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
