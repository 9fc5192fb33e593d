import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from tasks.quality.membership import Side, membership_auc


def side(gains, label="benign", prefix="g"):
    values = np.asarray(gains, np.float32)
    return Side(values, [f"{prefix}{label}{k}" for k in range(len(values))], [label] * len(values))


def both(one, other):
    gains = np.concatenate([one.gains, other.gains])
    return Side(gains, [*one.groups, *other.groups], [*one.labels, *other.labels])


def test_the_area_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    members, strangers = rng.normal(0.5, 1, 60).astype(np.float32), rng.normal(0, 1, 45).astype(np.float32)
    score = membership_auc(side(members), side(strangers, prefix="s"), 0)
    expected = mannwhitneyu(members, strangers)
    assert score.value == pytest.approx(expected.statistic / (60 * 45), abs=1e-6)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert score.p is not None
    assert score.p < 0.05
    assert (score.n_synthetic, score.n_real) == (60, 45)


def test_scans_learned_by_heart_give_one_and_the_floor_stays_at_a_half():
    score = membership_auc(side(np.arange(100, 130)), side(np.arange(30), prefix="s"), 0)
    assert (score.value, score.low, score.high) == (1, 1, 1)
    assert score.floor == pytest.approx(0.5, abs=0.03)
    assert score.over_floor == pytest.approx(2, abs=0.15)


def test_labels_with_gains_of_different_size_are_not_mixed():
    rng = np.random.default_rng(1)
    members = both(side(rng.normal(0, 1, 80)), side(rng.normal(50, 1, 10), "malignant"))
    strangers = both(side(rng.normal(0, 1, 10), prefix="s"), side(rng.normal(50, 1, 80), "malignant", "s"))
    score = membership_auc(members, strangers, 0)
    assert score.value == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(("members", "strangers"), [(7, 40), (40, 7), (0, 0)])
def test_few_scans_are_refused(members, strangers):
    score = membership_auc(side(np.zeros(members)), side(np.zeros(strangers), prefix="s"), 0)
    assert score.value is None
    assert score.note == f"refused: {members} members and {strangers} held-out scans; expected 8 of each"


def test_members_of_one_label_and_strangers_of_another_are_refused():
    score = membership_auc(side(np.zeros(9)), side(np.zeros(9), "malignant", "s"), 0)
    assert score.value is None
    assert "no label" in score.note
