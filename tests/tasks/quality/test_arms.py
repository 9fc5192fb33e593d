"""The few real images of a regime: nested, by whole groups, every label in its share."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.quality.arms import ARMS, Arm, Regime, Trial, few
from tasks.study import StudyParams

GROUPS = [f"g{row // 2}" for row in range(200)]
LABELS = ["benign" if row % 200 < 120 else "malignant" for row in range(200)]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=40),
    st.integers(2, 45),
    st.integers(2, 45),
    st.integers(0, 3),
)
def test_smaller_subsets_lie_in_larger_ones_and_hold_whole_groups(
    rows: list[tuple[int, str]], one: int, other: int, seed: int
) -> None:
    groups, labels = [f"g{group}" for group, _ in rows], [label for _, label in rows]
    fewer, more = (few(groups, labels, wanted, seed) for wanted in sorted((one, other)))
    assert not (fewer & ~more).any()
    for chosen, wanted in ((fewer, min(one, other)), (more, max(one, other))):
        assert chosen.sum() <= wanted or len({g for g, taken in zip(groups, chosen, strict=True) if taken}) == 1
        assert len({(g, bool(taken)) for g, taken in zip(groups, chosen, strict=True)}) == len(set(groups))


def test_labels_keep_their_shares_and_all_means_all() -> None:
    for wanted in (10, 20, 0.5):
        counts = Counter(np.asarray(LABELS)[few(GROUPS, LABELS, wanted, 3)])
        size = sum(counts.values())
        assert size == (100 if wanted == 0.5 else wanted)
        assert counts["benign"] / size == pytest.approx(0.6, abs=0.5 * 2 / size + 1e-9)
    assert few(GROUPS, LABELS, 1.0, 3).all()
    assert few(GROUPS, LABELS, 1000, 3).all()


def test_another_seed_draws_others_and_the_order_of_rows_does_not_matter() -> None:
    chosen = few(GROUPS, LABELS, 20, 1)
    assert (chosen != few(GROUPS, LABELS, 20, 2)).any()
    order = np.random.default_rng(0).permutation(200)
    again = few([GROUPS[row] for row in order], [LABELS[row] for row in order], 20, 1)
    assert np.array_equal(again, chosen[order])


def test_an_arm_learns_from_something() -> None:
    with pytest.raises(ValidationError, match="neither real nor synthetic"):
        Arm(name="none", real=False, synthetic=False)
    with pytest.raises(ValidationError, match="needs real and synthetic"):
        Arm(name="first", real=False, pretrain=True)
    with pytest.raises(ValidationError, match="'half' is balanced; it needs real and synthetic"):
        Arm(name="half", synthetic=False, balanced=True)
    with pytest.raises(ValidationError, match="leave out `balanced`"):
        Arm(name="both", pretrain=True, balanced=True)


def test_what_decides_a_training_is_described_and_nothing_else() -> None:
    mixed = next(arm for arm in ARMS if arm.name == "real + synthetic")
    only = next(arm for arm in ARMS if not arm.real)
    ten, all_of_them = Regime(real_images=10), Regime()
    renamed = mixed.model_copy(update={"name": "both"})
    assert Trial(arm=mixed, regime=ten, seed=1).described == Trial(arm=renamed, regime=ten, seed=1).described
    assert Trial(arm=mixed, regime=ten, seed=1).described != Trial(arm=mixed, regime=all_of_them, seed=1).described
    assert Trial(arm=only, regime=ten, seed=1).described == Trial(arm=only, regime=all_of_them, seed=1).described


def test_a_regime_may_ask_for_more_trainings_each_with_scans_of_its_own() -> None:
    params = StudyParams(regimes=[Regime(real_images=10, trainings=3), Regime()])
    real = [trial for trial in params.trials(5, 2) if trial.arm.name == "real"]
    assert [(trial.regime.real_images, trial.seed) for trial in real] == [
        (10, 5), (10, 105), (10, 205), (1, 5), (1, 105)
    ]  # fmt: skip
    assert len([trial for trial in params.trials(5, 2) if not trial.arm.real]) == 2
    assert (
        Trial(arm=ARMS[0], regime=Regime(trainings=3), seed=1).described
        == real[3].model_copy(update={"seed": 1}).described
    )
