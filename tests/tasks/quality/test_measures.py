"""What a study measures of its answers, against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from tasks.conclude import compare
from tasks.quality.arms import Regime
from tasks.quality.measures import CLASSIFICATION, complete, measures_of
from tasks.study import StudyParams
from tests.tasks.quality.answers import ARMS, answered

ONCE = np.ones((1, 4))


def test_a_head_that_was_not_drawn_errs_by_its_whole_circumference() -> None:
    rows = pd.DataFrame(
        {
            "hit": [8, 0, 5, 5],
            "drawn": [8, 0, 5, 10],
            "truth": [8, 9, 10, 5],
            "drawn_mm": [100.0, 0.0, 90.0, 120.0],
            "truth_mm": [100.0, 80.0, 100.0, 110.0],
        }
    )
    dice, f1, error = measures_of("segmentation", rows)
    assert dice.statistic(rows)(ONCE)[0] == pytest.approx((1 + 0 + 2 / 3 + 2 / 3) / 4)
    assert f1.statistic(rows)(ONCE)[0] == pytest.approx(2 * 18 / (23 + 32))
    assert error.statistic(rows)(ONCE)[0] == pytest.approx((0 + 80 + 10 + 10) / 4)
    assert error.less_is_better
    assert not dice.less_is_better


def test_circumferences_are_measured_where_the_pixel_size_is_known_alone() -> None:
    rows = pd.DataFrame({"hit": [1, 1], "drawn": [1, 1], "truth": [1, 1], "drawn_mm": [1, None], "truth_mm": [2, None]})
    *_, error = measures_of("segmentation", rows)
    assert len(complete(error, rows)) == 1
    unknown = rows.assign(drawn_mm=None, truth_mm=None)
    assert [measure.name for measure in measures_of("segmentation", unknown)] == ["mean Dice", "pixel F1"]
    before = rows.drop(columns=["drawn_mm", "truth_mm"])
    assert [measure.name for measure in measures_of("segmentation", before)] == ["mean Dice", "pixel F1"]
    assert [measure.name for measure in measures_of(CLASSIFICATION, rows.iloc[:0])] == ["AUC"]


def test_a_smaller_error_counts_as_better_and_a_larger_one_as_worse() -> None:
    params = StudyParams(arms=ARMS, regimes=[Regime()], resamples=200)
    found = {
        (estimate.measure, estimate.arm): estimate
        for estimate in compare(answered(nearer_mm=4.0), "segmentation", None, params, 0)
        if estimate.over is not None
    }
    error = found["segmentation, head circumference error, mm", "real + synthetic"]
    assert error.value == pytest.approx(-4)
    assert error.high is not None
    assert error.high < 0
    assert (error.better, error.trainings) == (2, 2)
    worse = compare(answered(nearer_mm=-4.0), "segmentation", None, params, 0)
    assert [e.better for e in worse if e.over is not None and "circumference" in e.measure] == [0]
