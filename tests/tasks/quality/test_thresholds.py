import numpy as np
import pytest
from pydantic import ValidationError

from tasks.quality.thresholds import Threshold, cause, judge, refuse_unscored, relaxed

SCORES = {
    "segmenter_dice": np.array([0.41, 0.9, 0.5], np.float32),
    "nearest_similarity": np.array([0.2, 0.95, np.nan], np.float32),
}


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


def test_the_threshold_that_rejects_most_comes_first_with_the_limit_that_would_keep_enough():
    scores = {"a": np.array([0.1, 0.3, 0.2, 0.9, 0.9], np.float32), "b": np.array([1, 1, 1, 5, 1], np.float32)}
    limits = [Threshold(score="b", max=2), Threshold(score="a", min=0.5)]
    said = relaxed(scores, limits, judge(scores, limits), missing=2)
    assert said == ["a alone rejects 3; min 0.20 instead of 0.50 would keep 2 of them", "b alone rejects 1"]
    loosened = [limits[0], Threshold(score="a", min=0.2)]
    # 0.2 as float32 is a little above 0.2: the advice holds
    assert sum(not reasons for reasons in judge(scores, loosened)) == sum(not r for r in judge(scores, limits)) + 2


def test_a_cause_is_a_reason_without_its_numbers():
    assert cause("segmenter_dice 0.41 < 0.50") == "segmenter_dice"
    assert cause("quota label=benign, margin=spiculated: 40 better by critic_realism") == (
        "quota label=benign, margin=spiculated"
    )


def test_a_threshold_on_what_no_sample_has_is_refused_but_not_one_that_some_have():
    asked = [Threshold(score="lesion_change", min=0.6)]
    refuse_unscored(asked, {"lesion_change": np.array([np.nan, 0.2], np.float32)})
    refuse_unscored(asked, {"lesion_change": np.zeros(0, np.float32)})  # every sample failed: nothing to say
    with pytest.raises(ValueError, match="lesion_change limits nothing: none of 2 samples has that score"):
        refuse_unscored(asked, {"lesion_change": np.full(2, np.nan, np.float32)})
