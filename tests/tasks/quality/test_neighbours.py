import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from prdc import compute_prdc

from storage.records import SetScore
from tasks.quality import neighbours
from tasks.quality.neighbours import MEASURES, coverage, density, precision, precision_recall, recall
from tests.tasks.quality.clouds import cloud, evidence

SCORES = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def by_prdc(real: np.ndarray, synthetic: np.ndarray, neighbours: int) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, synthetic, neighbours)


@pytest.mark.parametrize(("n", "m", "d", "k"), [(80, 60, 8, 5), (40, 90, 64, 3), (12, 12, 2, 5)])
def test_all_four_agree_with_prdc(n: int, m: int, d: int, k: int):
    real, synthetic = cloud(n, d, 1), cloud(m, d, 2, shift=0.3, scale=0.8)
    found = precision_recall(real, synthetic, k)
    assert found == pytest.approx(by_prdc(real, synthetic, k), abs=1e-12)
    assert tuple(found) == MEASURES


def test_equal_sets_constant_features_and_duplicates_are_wholly_covered():
    a = cloud(40, 8, 1)
    for same in (a, np.ones((20, 3)), np.repeat(a, 7, axis=0), a + 1e6):
        found = precision_recall(same, same)
        assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_far_apart_sets_share_nothing():
    found = precision_recall(cloud(30, 4, 1), cloud(30, 4, 2, shift=100))
    assert set(found.values()) == {0}


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        (np.full((9, 3), np.nan), np.ones((9, 3)), "NaN"),
        (np.ones((5, 3)), np.ones((9, 3)), "found 5 real .* need at least 6"),
        (np.ones((9, 3)), np.ones((9, 4)), "3 dimensions, synthetic 4"),
    ],
)
def test_what_cannot_be_compared_is_refused(real: np.ndarray, synthetic: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        precision_recall(real, synthetic)


def checked(score: SetScore) -> SetScore:
    """The score, all of whose numbers exist and are in order."""
    assert None not in (score.value, score.low, score.high, score.over_floor, score.over_floor_high), score
    assert score.low <= score.value <= score.high
    assert score.over_floor_low <= score.over_floor <= score.over_floor_high
    return score


@pytest.mark.parametrize("name", MEASURES)
def test_a_set_of_the_same_distribution_scores_its_floor(name: str):
    score = checked(SCORES[name](evidence(cloud(200, 8, 1), cloud(90, 8, 2), per_group=2)))
    assert score.name == name
    assert score.n_real == score.n_synthetic == 90
    assert score.over_floor_low < 1 < score.over_floor_high
    assert score.high <= 1 or name == "density"


def test_collapsed_diversity_loses_recall_and_coverage_but_no_precision():
    collapsed = np.repeat(cloud(4, 8, 2), 20, axis=0) + 0.01 * cloud(80, 8, 3)
    given = evidence(cloud(200, 8, 1), collapsed)
    assert checked(recall(given)).over_floor_high < 0.3
    assert checked(coverage(given)).over_floor_high < 0.5
    assert precision(given).value > 0.6


def test_what_is_not_real_loses_precision_and_density():
    half_noise = np.concatenate([cloud(40, 8, 2), cloud(40, 8, 3, shift=4)])
    given = evidence(cloud(200, 8, 1), half_noise)
    assert 0.3 < checked(precision(given)).value < 0.6
    assert checked(precision(given)).over_floor_high < 0.8
    assert checked(density(given)).over_floor_high < 0.9


def test_about_95_percent_of_the_intervals_hold_the_mean_of_many_scores():
    scores = [
        [
            checked(SCORES[name](given))
            for given in [evidence(cloud(120, 6, k), cloud(80, 6, 500 + k, shift=0.6), per_group=2)]
            for name in MEASURES
        ]
        for k in range(20)
    ]
    for column, name in enumerate(MEASURES):
        found = np.array([(row[column].low, row[column].value, row[column].high) for row in scores])
        truth = found[:, 1].mean()
        assert ((found[:, 0] <= truth) & (truth <= found[:, 2])).mean() >= 0.85, name
        assert (found[:, 2] - found[:, 0]).mean() < 2.5 * 3.92 * found[:, 1].std(), name


def test_a_rate_found_on_every_image_is_not_certain():
    score = checked(recall(evidence(cloud(80, 4, 1), cloud(40, 4, 2, shift=50))))
    assert score.value == 0
    assert 0 < score.high < 0.1


def test_too_few_images_or_groups_are_refused_or_have_no_interval():
    few = recall(evidence(cloud(20, 4, 1), cloud(20, 4, 2)))
    assert few.value is None
    assert "N = 10 a side, at least 11 needed" in few.note
    assert recall(evidence(cloud(40, 4, 1), cloud(40, 4, 2), per_group=40)).value is None
    one = replace(evidence(cloud(40, 4, 1), cloud(20, 4, 2)), synthetic_groups=["only"] * 20)
    assert recall(one).value is not None
    assert recall(one).low is None
    assert "no interval" in recall(one).note


def test_of_many_images_a_bounded_number_is_compared_and_the_note_says_so(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    squares = neighbours._squares
    monkeypatch.setattr(neighbours, "_squares", lambda a, b: seen.append(max(len(a), len(b))) or squares(a, b))
    score = precision(evidence(cloud(2202, 2, 1), cloud(60, 2, 2), per_group=3))
    assert max(seen) <= 2048
    assert "of 2046 of 2202 real, 60 of 60 synthetic images, drawn as whole groups" in score.note
