import numpy as np
import pytest
from pydantic import ValidationError

from storage.records import SetScore
from tasks.quality.curate import GateParams, Limit, Threshold, gate, judge

SCORES = {
    "segmenter_dice": np.array([0.41, 0.9, 0.5], np.float32),
    "nearest_similarity": np.array([0.2, 0.95, np.nan], np.float32),
}


def score(name: str = "kid", value: float | None = 0.5, floor: float | None = 0.1) -> SetScore:
    return SetScore(
        name=name,
        value=value,
        low=0.4,
        high=0.6,
        floor=floor,
        floor_low=-0.1,
        floor_high=0.2,
        n_real=10,
        n_synthetic=10,
        extractor="toy",
        note="refused" if value is None else "",
    )


def test_every_rejection_names_score_value_and_limit():
    reasons = judge(SCORES, [Threshold(score="segmenter_dice", min=0.5)])
    assert reasons == [["segmenter_dice 0.41 < 0.50"], [], []]


def test_a_sample_carries_all_its_reasons_and_nan_is_none():
    limits = [Threshold(score="segmenter_dice", max=0.8), Threshold(score="nearest_similarity", max=0.9)]
    assert judge(SCORES, limits)[1:] == [["segmenter_dice 0.90 > 0.80", "nearest_similarity 0.95 > 0.90"], []]


def test_close_numbers_are_told_apart():
    values = {"s": np.array([0.4999], np.float32)}
    assert judge(values, [Threshold(score="s", min=0.5)]) == [["s 0.4999 < 0.5000"]]


def test_a_limit_may_be_a_quantile_of_held_out_real_images():
    held_out = {"nearest_similarity": np.linspace(0, 1, 101).astype(np.float32)}
    limits = [Threshold(score="nearest_similarity", max_real=0.9)]
    assert judge(SCORES, limits, held_out) == [[], ["nearest_similarity 0.95 > 0.90"], []]


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="none has that score"):
        judge(SCORES, [Threshold(score="segmenter_dice", min_real=0.05)], {})


def test_an_unknown_score_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean segmenter_dice"):
        judge(SCORES, [Threshold(score="segmentor_dice", min=0.5)])


def test_thresholds_that_limit_nothing_or_keep_nothing_are_refused():
    with pytest.raises(ValidationError, match="limits nothing"):
        Threshold(score="segmenter_dice")
    with pytest.raises(ValidationError, match="keeps nothing"):
        Threshold(score="segmenter_dice", min=0.8, max=0.2)
    with pytest.raises(ValidationError, match="limits nothing"):
        Limit(score="kid")


def test_a_set_within_its_limits_passes():
    assert gate([score()], GateParams(min_kept=5, limits=[Limit(score="kid", max=0.5, max_over_floor=5)]), 5) == []


def test_each_missed_limit_is_a_problem_of_its_own():
    params = GateParams(min_kept=20, limits=[Limit(score="kid", max=0.2, max_over_floor=2)])
    assert gate([score()], params, 7) == [
        "7 samples kept, at least 20 asked",
        "kid 0.50 > 0.20 (0.4 to 0.6)",
        "kid 0.5 (0.4 to 0.6) is 5.0 × its floor, > 2",
    ]


def test_a_negative_floor_is_replaced_by_its_upper_end():
    limits = GateParams(limits=[Limit(score="kid", max_over_floor=2)])
    assert gate([score(floor=-0.01)], limits, 5) == ["kid 0.5 (0.4 to 0.6) is 2.5 × its floor, > 2"]


def test_what_could_not_be_judged_has_not_passed():
    params = GateParams(limits=[Limit(score="fid", max=10)])
    assert gate([score("fid", value=None)], params, 5) == ["fid is limited but has no value: refused"]


def test_a_limit_on_an_unknown_set_score_is_refused():
    with pytest.raises(ValueError, match="did you mean kid"):
        gate([score()], GateParams(limits=[Limit(score="kidd", max=1)]), 5)
