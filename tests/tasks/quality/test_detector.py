from dataclasses import replace

import numpy as np
import pytest

from tasks.quality import detector
from tasks.quality.degradation import DEGRADATIONS, degrade_inside
from tasks.quality.judge import Pictures
from tasks.quality.separability import area_under_curve
from tests.tasks.quality.toys import pictures

PARAMS = detector.Params(steps=60, folds=2, batch=16)
REAL = pictures(80, 0)


def degraded(pictures: Pictures, kind: str, severity: float) -> Pictures:
    severities = np.array([severity if name == kind else 0 for name in DEGRADATIONS], np.float32)
    pairs = zip(pictures.images, pictures.masks, strict=True)
    damaged = [degrade_inside(*pair, severities, np.random.default_rng(row)) for row, pair in enumerate(pairs)]
    return replace(pictures, images=np.stack(damaged))


@pytest.mark.parametrize("kind", ["blur", "noise"])
def test_a_set_degraded_inside_its_lesions_is_told_from_real(kind: str):
    found = detector.out_of_fold(REAL, degraded(pictures(60, 1), kind, 0.8), PARAMS, seed=0)
    assert area_under_curve(found) > 0.85


def test_two_sets_of_one_distribution_are_not_told_apart():
    areas = [area_under_curve(detector.out_of_fold(REAL, pictures(80, 10 + seed), PARAMS, seed)) for seed in range(2)]
    assert abs(np.mean(areas) - 0.5) < 0.15


def test_it_repeats_and_every_image_is_answered():
    short = detector.Params(steps=2, folds=3, batch=8)
    first, second = (detector.out_of_fold(REAL, pictures(20, 1), short, seed=0) for _ in range(2))
    assert (first.real == second.real).all()
    assert (first.synthetic == second.synthetic).all()
    assert first.real.shape == (80,)
    assert first.synthetic.shape == (20,)


def test_a_group_is_never_split_and_folds_are_alike():
    groups = [f"g{row // 3}" for row in range(90)]
    fold = detector.assign_folds(groups, 3, seed=0)
    assert all(len({fold[row] for row in range(90) if groups[row] == name}) == 1 for name in set(groups))
    assert np.bincount(fold).tolist() == [30, 30, 30]
    assert (fold != detector.assign_folds(groups, 3, seed=1)).any()


def test_a_copy_in_the_same_group_cannot_be_remembered():
    """Synthetic images equal to real ones of the same group: out of fold there is nothing to learn."""
    found = detector.out_of_fold(REAL, REAL, PARAMS, seed=0)
    assert area_under_curve(found) == pytest.approx(0.5, abs=0.01)  # batches of other sizes round otherwise


def test_one_group_or_one_image_is_refused():
    one = replace(REAL, groups=["same"] * 80)
    with pytest.raises(ValueError, match="one group"):
        detector.out_of_fold(one, one, PARAMS, seed=0)
    with pytest.raises(ValueError, match="1 synthetic"):
        detector.out_of_fold(REAL, pictures(1, 1), PARAMS, seed=0)


def test_each_view_hides_what_it_says():
    one = REAL.select(np.arange(4))
    for view, damaged_shows in (("lesion", True), ("surroundings", False), ("window", True), ("full", True)):
        changed = replace(one, images=np.where(one.masks, np.uint8(200), one.images))
        seen, then = detector.look(one, view), detector.look(changed, view)
        assert np.array_equal(seen, then) != damaged_shows
    elsewhere = replace(one, images=np.where(one.masks, one.images, np.uint8(0)))
    inside = detector.windows(one.masks.astype(np.uint8), one.masks) > 0
    assert np.array_equal(detector.look(one, "lesion")[inside], detector.look(elsewhere, "lesion")[inside])
    assert not np.array_equal(detector.look(one, "surroundings"), detector.look(elsewhere, "surroundings"))


def test_known_images_are_learned_from_and_not_answered():
    params = detector.Params(steps=60, folds=2, batch=16, network="resnet18", width=8)
    few, others = REAL.select(np.arange(12)), REAL.select(np.arange(12, 80))
    found = detector.out_of_fold(few, degraded(pictures(60, 1), "noise", 0.8), params, seed=0, known=others)
    assert found.real.shape == (12,)
    assert found.synthetic.shape == (60,)
    assert area_under_curve(found) > 0.85


def test_whole_images_go_through_resnet18_at_their_own_size():
    params = detector.Params(steps=1, folds=2, batch=4, network="resnet18", width=4, view="full")
    found = detector.out_of_fold(pictures(6, 0, px=96), pictures(6, 1, px=96), params, seed=0)
    assert np.isfinite(found.real).all()
