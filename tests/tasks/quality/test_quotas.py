import numpy as np
import pytest
from pydantic import ValidationError

from tasks.quality.quotas import Filled, Quota, Quotas, filled, overfull

COLUMNS = {
    "label": ["benign", "benign", "benign", "malignant", "malignant", "benign"],
    "margin": ["circumscribed", "spiculated", "circumscribed", "spiculated", None, "circumscribed"],
}
SCORES = np.array([0.2, 0.9, 0.8, 0.1, np.nan, 0.8], np.float32)
ALL = np.ones(6, np.bool_)


def left_out(quotas: Quotas, passed: np.ndarray = ALL, lowest: bool = False) -> list[int]:
    return [row for row, reason in enumerate(overfull(quotas, COLUMNS, SCORES, lowest, passed)) if reason]


def test_the_best_of_a_kind_stay_and_of_equal_ones_the_first():
    benign = Quotas(best="s", each=[Quota(where={"label": "benign"}, keep=2)])
    assert left_out(benign) == [0, 5]  # 0.9 stays, of the two with 0.8 the first
    assert left_out(benign, lowest=True) == [1, 5]


def test_a_reason_names_quota_number_and_score():
    quotas = Quotas(best="s", each=[Quota(where={"label": "benign", "margin": "circumscribed"}, keep=1)])
    assert overfull(quotas, COLUMNS, SCORES, False, ALL)[0] == "quota label=benign, margin=circumscribed: 1 better by s"


def test_what_the_thresholds_refused_takes_no_room():
    quotas = Quotas(best="s", each=[Quota(where={"label": "benign"}, keep=2)])
    assert left_out(quotas, np.array([True, False, True, True, True, True])) == [0]


def test_a_sample_of_several_quotas_needs_room_in_each():
    quotas = Quotas(best="s", each=[Quota(keep=3), Quota(where={"margin": "spiculated"}, keep=1)])
    assert left_out(quotas) == [0, 3, 4]  # 3 is spiculated after 1; 0 and 4 (without a score) come after three others


def test_the_same_samples_stay_whatever_the_order_of_quotas():
    each = [Quota(where={"label": "benign"}, keep=2), Quota(where={"margin": "circumscribed"}, keep=1), Quota(keep=4)]
    assert left_out(Quotas(best="s", each=each)) == left_out(Quotas(best="s", each=each[::-1]))


def test_quotas_say_how_they_ended():
    quotas = Quotas(best="s", each=[Quota(where={"label": "malignant"}, keep=5, least=3)])
    kept = np.array([True, True, True, True, False, True])
    assert filled(quotas, COLUMNS, ALL, kept) == [Filled(quota=quotas.each[0], found=2, kept=1)]


def test_quotas_of_unknown_attributes_and_impossible_numbers_are_refused():
    with pytest.raises(ValidationError, match="may ask for label, margin"):
        Quota(where={"colour": "red"}, keep=3)
    with pytest.raises(ValidationError, match="at least 4 of at most 3"):
        Quota(keep=3, least=4)
