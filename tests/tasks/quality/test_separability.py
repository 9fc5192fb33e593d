from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tasks.quality.detector import Detection
from tasks.quality.separability import (
    area_under_curve,
    area_with_interval,
    detector_auc,
    permutation_p,
    weighted_area,
)
from tests.tasks.quality.clouds import evidence


def detection(n: int, m: int, shift: float, folds: int = 1, seed: int = 0) -> Detection:
    rng = np.random.default_rng(seed)
    real, synthetic = rng.normal(0, 1, n).round(1), rng.normal(shift, 1, m).round(1)
    sides = real.astype(np.float32), synthetic.astype(np.float32)
    return Detection(*sides, np.arange(n) % folds, np.arange(m) % folds)


def test_the_area_agrees_with_sklearn_ties_included():
    found = detection(50, 40, 0.7)
    truth = np.repeat([0, 1], [50, 40])
    expected = roc_auc_score(truth, np.concatenate([found.real, found.synthetic]))
    assert area_under_curve(found) == pytest.approx(expected)


def test_answers_of_different_folds_are_not_compared():
    # The second fold's network answers higher throughout; within each fold the order is perfect.
    found = Detection(
        np.array([0.1, 0.7], np.float32), np.array([0.2, 0.8], np.float32), np.array([0, 1]), np.array([0, 1])
    )
    assert area_under_curve(found) == 1


def test_folds_without_both_sides_are_refused():
    found = Detection(np.zeros(2, np.float32), np.ones(2, np.float32), np.array([0, 0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="no fold holds both"):
        area_under_curve(found)


def test_the_score_has_interval_and_floor():
    plain = evidence(np.zeros((120, 3)), np.zeros((90, 3)))
    floor = detection(60, 60, 0.0, folds=3, seed=1)
    score = detector_auc(replace(plain, detection=detection(120, 90, 1.0, folds=3), floor_detection=floor))
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    assert score.floor_low is not None
    assert score.floor_high is not None
    assert score.low < score.value < score.high
    assert score.high - score.low < 0.2
    assert score.floor_low < 0.5 < score.floor_high
    assert score.low > score.floor_high


def test_folds_that_share_nothing_give_no_number_but_a_reason():
    apart = Detection(np.zeros(4, np.float32), np.ones(4, np.float32), np.zeros(4, int), np.ones(4, int))
    plain = evidence(np.zeros((4, 3)), np.zeros((4, 3)))
    score = detector_auc(replace(plain, detection=apart))
    assert score.value is None
    assert "no fold holds both" in score.note


def test_without_a_detector_there_is_no_number():
    assert detector_auc(evidence(np.zeros((4, 3)), np.zeros((4, 3)))).value is None


def singles(n: int) -> list[str]:
    return [f"g{k}" for k in range(n)]


def test_the_permutation_p_is_small_for_a_difference_and_agrees_with_scipy_where_there_is_none():
    apart, alike = detection(60, 60, 1.0), detection(60, 60, 0.0, seed=2)
    groups = singles(60), [f"s{k}" for k in range(60)]
    assert permutation_p(apart, *groups, 200, np.random.default_rng(0)) == pytest.approx(1 / 201)
    theirs = stats.mannwhitneyu(alike.synthetic, alike.real, alternative="greater").pvalue
    assert permutation_p(alike, *groups, 2000, np.random.default_rng(0)) == pytest.approx(theirs, abs=0.04)


def test_groups_change_sides_as_a_whole():
    found = detection(60, 60, 0.25, seed=4)
    # The same answers ten times over are no more evidence when they come from the same groups.
    many = Detection(*(np.repeat(side, 10) for side in (found.real, found.synthetic)), *(np.zeros(600, int),) * 2)
    names = [f"g{k // 10}" for k in range(600)], [f"s{k // 10}" for k in range(600)]
    few = permutation_p(found, singles(60), [f"s{k}" for k in range(60)], 300, np.random.default_rng(0))
    assert permutation_p(many, *names, 300, np.random.default_rng(0)) == pytest.approx(few, abs=0.06)


def test_the_interval_of_the_area_holds_it_and_narrows_with_more_groups():
    wide, narrow = (
        area_with_interval(detection(n, n, 1.0), singles(n), singles(n), 300, np.random.default_rng(0))
        for n in (30, 200)
    )
    for value, low, high in (wide, narrow):
        assert low < value < high
    assert narrow[2] - narrow[1] < wide[2] - wide[1]


def test_the_area_of_weighted_images_is_that_of_all_pairs():
    found = detection(40, 30, 0.5, folds=3, seed=5)
    rng = np.random.default_rng(0)
    real, synthetic = rng.integers(0, 4, (6, 40)).astype(float), rng.integers(0, 4, (6, 30)).astype(float)
    together = (found.real_fold[:, None] == found.synthetic_fold[None]).astype(float)
    right = together * (0.5 + 0.5 * np.sign(found.synthetic[None] - found.real[:, None]))
    expected = np.einsum("ri,ij,rj->r", real, right, synthetic) / np.einsum("ri,ij,rj->r", real, together, synthetic)
    assert weighted_area(found, real, synthetic) == pytest.approx(expected)
    assert np.isnan(weighted_area(found, np.zeros((1, 40)), synthetic[:1])).all()


def test_the_score_has_a_p_value_and_a_control_and_doubts_a_blind_detector():
    plain = evidence(np.zeros((60, 3)), np.zeros((60, 3)))
    apart, alike = detection(60, 60, 2.0), detection(60, 60, 0.0, seed=2)
    sure = detector_auc(replace(plain, detection=apart, floor_detection=alike, control_detection=apart))
    assert sure.p == pytest.approx(1 / 501)
    assert sure.control == area_under_curve(apart)
    assert "misses" not in sure.note
    assert sure.over_floor == pytest.approx(area_under_curve(apart) / area_under_curve(alike))
    assert sure.over_floor_low is not None
    assert sure.over_floor_low < sure.over_floor < (sure.over_floor_high or 0)
    blind = detector_auc(replace(plain, detection=alike, control_detection=alike))
    assert blind.p is not None
    assert blind.p > 0.05
    assert "misses damage made on purpose" in blind.note
    assert "no control" in detector_auc(replace(plain, detection=alike)).note


def test_each_network_is_named_with_its_own_area():
    good, poor = detection(60, 60, 2.0), detection(60, 60, 0.0, seed=2)
    both = replace(good, each={"small": (good.real, good.synthetic), "resnet50": (poor.real, poor.synthetic)})
    score = detector_auc(replace(evidence(np.zeros((60, 3)), np.zeros((60, 3))), detection=both))
    assert f"small {area_under_curve(good):.2f}, resnet50 {area_under_curve(poor):.2f}" in score.note
    assert score.extractor == "small + resnet50, out of fold"


def test_a_floor_that_orders_nothing_rightly_has_no_multiples():
    plain = evidence(np.zeros((4, 3)), np.zeros((4, 3)))
    found = detection(4, 4, 0.0)
    hopeless = replace(found, real=np.ones(4, np.float32), synthetic=np.zeros(4, np.float32))
    score = detector_auc(replace(plain, detection=found, floor_detection=hopeless))
    assert score.floor == 0
    assert score.over_floor is None
