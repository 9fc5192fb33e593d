from typing import Any

import pytest
from pydantic import ValidationError

from storage.records import SetScore
from tasks.quality.gate import Decision, GateParams, Limit, gate
from tasks.quality.quotas import Filled, Quota


def score(name: str = "kid", value: float | None = 0.5, **changes: Any) -> SetScore:
    fields: dict[str, Any] = {
        "low": 0.4,
        "high": 0.6,
        "floor": 0.1,
        "floor_low": -0.1,
        "floor_high": 0.2,
        "n_real": 30,
        "n_synthetic": 40,
        "extractor": "toy",
        "note": "refused" if value is None else "",
    }
    return SetScore(name=name, value=value, **(fields | changes))


def judged(limit: Limit, found: SetScore | None = None, **params: Any) -> Decision:
    return gate([found or score()], GateParams(limits=[limit], **params), planned=50, kept=40)


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        (Limit(score="kid", max=0.6), "pass"),
        (Limit(score="kid", max=0.55), "warn"),
        (Limit(score="kid", max=0.5), "warn"),
        (Limit(score="kid", max=0.49), "fail"),
        (Limit(score="kid", min=0.4), "pass"),
        (Limit(score="kid", min=0.45), "warn"),
        (Limit(score="kid", min=0.51), "fail"),
        (Limit(score="kid", max_over_floor=6), "pass"),
        (Limit(score="kid", max_over_floor=5.5), "warn"),
        (Limit(score="kid", max_over_floor=4.9), "fail"),
        (Limit(score="kid", min_over_floor=4), "pass"),
        (Limit(score="kid", min_over_floor=4.5), "warn"),
        (Limit(score="kid", min_over_floor=5.5), "fail"),
        (Limit(score="kid", max=0.6, max_over_floor=4.9), "fail"),
    ],
)
def test_a_limit_is_met_by_the_whole_interval_missed_by_the_value_and_in_doubt_between(limit: Limit, verdict: str):
    assert judged(limit).verdict == verdict


def test_problems_and_warnings_name_value_limit_and_interval():
    assert judged(Limit(score="kid", max=0.2)).problems == ["kid 0.50 > 0.20 (0.4 to 0.6)"]
    assert judged(Limit(score="kid", max_over_floor=2)).problems == ["kid 5.00 > 2.00 × its floor (4 to 6)"]
    assert judged(Limit(score="kid", max=0.55)).warnings == [
        "kid 0.5 is within its limit, but its interval reaches 0.60 > 0.55"
    ]


def test_a_strict_gate_is_blocked_by_doubt():
    limit = Limit(score="kid", max=0.55)
    assert (judged(limit).verdict, judged(limit, strict=True).verdict) == ("warn", "fail")
    assert judged(limit, strict=True).problems == judged(limit).warnings


def test_a_value_without_an_interval_is_in_doubt():
    assert judged(Limit(score="kid", max=0.6), score(low=None, high=None)).verdict == "warn"


def test_a_ratio_that_the_score_knows_itself_comes_before_the_quotient():
    found = score(value=None, over_floor=1.5, over_floor_low=1.2, over_floor_high=1.9)
    assert judged(Limit(score="kid", max_over_floor=2), found).verdict == "pass"
    assert judged(Limit(score="kid", max_over_floor=1.7), found).verdict == "warn"
    assert judged(Limit(score="kid", max_over_floor=1.4), found).verdict == "fail"


def test_a_negative_floor_is_replaced_by_its_upper_end():
    decision = judged(Limit(score="kid", max_over_floor=2), score(floor=-0.01))
    assert decision.problems == ["kid 2.50 > 2.00 × its floor (2 to 3)"]


def test_what_could_not_be_judged_has_not_passed():
    refused = score("fid", value=None, low=None, high=None, floor=None, floor_high=None)
    assert judged(Limit(score="fid", max=10), refused).problems == ["fid is limited but has no value: refused"]
    assert judged(Limit(score="fid", max_over_floor=3), refused).verdict == "fail"
    with_ratio = refused.model_copy(update={"over_floor": 1.25})
    (problem,) = judged(Limit(score="fid", max=10), with_ratio).problems
    assert problem.endswith("it is 1.2 × its floor: limit that instead")
    assert judged(Limit(score="kid", max=1), score(value=float("nan"))).verdict == "fail"


def test_a_limit_that_damaged_images_would_meet_too_proves_nothing():
    found = score("detector_auc", 0.55, low=0.5, high=0.58, control=0.6)
    (warning,) = judged(Limit(score="detector_auc", max=0.65), found).warnings
    assert "proves nothing" in warning
    assert judged(Limit(score="detector_auc", max=0.59), found).verdict == "pass"


def test_the_number_of_images_that_would_settle_a_doubt_follows_from_the_interval():
    # The upper end is 0.1 above the value and may be 0.05: four times the images halve it.
    (advice,) = judged(Limit(score="kid", max=0.55)).advice
    assert "about 4.0 × as many images on both sides (now 30 real and 40 synthetic)" in advice
    assert "falls by 0.05" in advice
    (hopeless,) = judged(Limit(score="kid", max=0.5001)).advice
    assert "must fall by about 0.0999" in hopeless


def test_advice_tells_other_images_from_more_images():
    (other,) = judged(Limit(score="kid", max=0.3)).advice
    assert other == "kid must fall by 0.2: its whole interval is beyond the limit, so other images are needed, not more"
    (more,) = judged(Limit(score="kid", max=0.45)).advice
    assert "more images may also show it to be within" in more


def test_too_few_samples_fail_with_the_number_to_plan():
    decision = gate([], GateParams(min_kept=80), planned=100, kept=40)
    assert decision.problems == ["40 samples kept, at least 80 asked"]
    assert decision.advice == ["plan about 200 samples instead of 100 (161 to 259 by the 40% that stay now)"]
    (none,) = gate([], GateParams(min_kept=1), planned=100, kept=0).advice
    assert "planning more will not help" in none


def test_a_quota_below_its_least_fails_and_one_that_is_not_full_warns():
    full, open_, short = (
        Filled(quota=Quota(where={"label": label}, keep=20, least=10), found=kept, kept=kept)
        for label, kept in (("benign", 20), ("malignant", 12), ("normal", 4))
    )
    decision = gate([], GateParams(), planned=100, kept=36, quotas=[full, open_, short])
    assert decision.warnings == ["quota label=malignant: 12 samples kept, of 20"]
    assert decision.problems == ["quota label=normal: 4 samples kept, at least 10 asked"]
    assert [advice.split(":")[0] for advice in decision.advice] == ["quota label=malignant", "quota label=normal"]


def test_what_was_known_before_counts():
    known = Decision(problems=["no real images"], warnings=["few"])
    decision = gate([], GateParams(), 10, 10, known=known)
    assert (decision.verdict, decision.problems, decision.warnings) == ("fail", ["no real images"], ["few"])


def test_limits_on_nothing_and_on_unknown_scores_are_refused():
    with pytest.raises(ValidationError, match="limits nothing"):
        Limit(score="kid")
    with pytest.raises(ValueError, match="did you mean kid"):
        judged(Limit(score="kidd", max=1))


def test_a_limit_says_in_words_what_it_asks():
    assert Limit(score="fid", max=5, max_over_floor=3).asked == "fid ≤ 5 and ≤ 3 × its floor"
    assert Limit(score="coverage", min=0.5, min_over_floor=0.8).asked == "coverage ≥ 0.5 and ≥ 0.8 × its floor"
