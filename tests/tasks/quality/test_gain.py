"""Intervals of predictions against scipy and sklearn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from tasks.quality import gain

GROUPS = [f"g{row}" for row in range(80)]
RNG = np.random.default_rng(5)
VALUES = RNG.normal(0.6, 0.2, 80)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_interval_of_a_mean_agrees_with_scipys_bootstrap():
    value, low, high = gain.bootstrap(gain.mean(VALUES), GROUPS, 4000, rng())
    theirs = stats.bootstrap((VALUES,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert value == pytest.approx(VALUES.mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_a_paired_difference_is_as_narrow_as_the_differences_allow():
    better = VALUES + 0.05 + RNG.normal(0, 0.01, 80)
    value, low, high = gain.bootstrap(gain.difference(gain.mean(better), gain.mean(VALUES)), GROUPS, 2000, rng())
    assert value == pytest.approx((better - VALUES).mean())
    assert 0.04 < low < value < high < 0.06


def test_images_of_one_group_are_one_observation():
    repeated = np.repeat(VALUES[:20], 4)
    alone = gain.bootstrap(gain.mean(repeated), GROUPS, 2000, rng())
    grouped = gain.bootstrap(gain.mean(repeated), [f"g{row // 4}" for row in range(80)], 2000, rng())
    assert grouped[2] - grouped[1] > 1.7 * (alone[2] - alone[1])


def test_intervals_hold_what_they_promise():
    held = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).normal(0, 1, 60)
        _, low, high = gain.bootstrap(gain.mean(sample), GROUPS[:60], 300, np.random.default_rng([seed, 1]))
        held += low <= 0 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_the_area_agrees_with_sklearn_and_models_are_not_mixed():
    answers, positive = RNG.normal(size=80).round(1), np.arange(80) % 3 == 0
    one = np.zeros(80, np.intp)
    ones = np.ones((1, 80))
    assert gain.area(answers, positive, one)(ones)[0] == pytest.approx(roc_auc_score(positive, answers))
    halves = np.arange(80) % 2
    shifted = answers + 10.0 * halves
    parts = [roc_auc_score(positive[halves == k], answers[halves == k]) for k in (0, 1)]
    pairs = [positive[halves == k].sum() * (~positive[halves == k]).sum() for k in (0, 1)]
    assert gain.area(shifted, positive, halves)(ones)[0] == pytest.approx(np.average(parts, weights=pairs))


def test_the_pooled_f1_is_sklearns_on_all_pixels():
    drawn, truth = RNG.random((6, 8, 8)) < 0.4, RNG.random((6, 8, 8)) < 0.5
    counts = [(a).sum((1, 2)).astype(float) for a in (drawn & truth, drawn, truth)]
    expected = f1_score(truth.ravel(), drawn.ravel())
    assert gain.pooled_f1(*counts)(np.ones((1, 6)))[0] == pytest.approx(expected)


def test_the_median_counts_weights():
    values = np.array([3.0, 1.0, 2.0])
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 0.0]])
    assert gain.median(values)(weights).tolist() == [2.0, 3.0]


def test_a_statistic_without_a_value_has_no_interval():
    everyone = np.ones(80, np.bool_)
    assert np.isnan(gain.bootstrap(gain.area(VALUES, everyone, np.zeros(80, np.intp)), GROUPS, 50, rng())).all()


def test_intervals_over_groups_and_trainings_hold_both_chances():
    """Of 40 groups tested by each of 6 trainings, both with effects of their own around a true gain of 0."""
    held = narrow = 0
    for seed in range(150):
        draw = np.random.default_rng(seed)
        groups, trainings = np.repeat(np.arange(40), 6), np.tile(np.arange(6), 40)
        sample = draw.normal(0, 1, 40)[groups] + draw.normal(0, 1, 6)[trainings] + draw.normal(0, 0.2, 240)
        names, runs = [f"g{k}" for k in groups], [f"t{k}" for k in trainings]
        _, low, high = gain.bootstrap(gain.mean(sample), names, 200, np.random.default_rng([seed, 1]), runs)
        held += low <= 0 <= high
        _, low, high = gain.bootstrap(gain.mean(sample), names, 200, np.random.default_rng([seed, 1]))
        narrow += low <= 0 <= high
    assert held / 150 >= 0.8  # six trainings are few: a percentile interval of them is a little narrow
    assert narrow / 150 < 0.7


def test_one_training_alone_adds_no_chance_of_its_own():
    alone = gain.bootstrap(gain.mean(VALUES), GROUPS, 500, rng())
    assert gain.bootstrap(gain.mean(VALUES), GROUPS, 500, rng(), ["0-1"] * 80) == alone


def test_every_training_has_its_own_number():
    trainings = [f"t{row % 4}" for row in range(80)]
    found = gain.by_training(gain.mean(VALUES), trainings)
    assert found == pytest.approx([VALUES[k::4].mean() for k in range(4)])
