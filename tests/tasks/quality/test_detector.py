from dataclasses import replace

import numpy as np
import pytest

from tasks.quality import detector
from tasks.quality.degradation import DEGRADATIONS, degrade_inside
from tasks.quality.judge import Pictures
from tasks.quality.resampling import bounded_rows
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
    params = detector.Params(steps=60, folds=2, batch=16, networks=["resnet18"], width=8)
    few, others = REAL.select(np.arange(12)), REAL.select(np.arange(12, 80))
    found = detector.out_of_fold(few, degraded(pictures(60, 1), "noise", 0.8), params, seed=0, known=others)
    assert found.real.shape == (12,)
    assert found.synthetic.shape == (60,)
    assert area_under_curve(found) > 0.85


def test_whole_images_go_through_resnet18_at_their_own_size():
    params = detector.Params(steps=1, folds=2, batch=4, networks=["resnet18"], width=4, view="full")
    found = detector.out_of_fold(pictures(6, 0, px=96), pictures(6, 1, px=96), params, seed=0)
    assert np.isfinite(found.real).all()


def test_every_network_up_to_resnet101_answers_and_their_logits_are_averaged():
    names: list[detector.Network] = ["small", "resnet18", "resnet34", "resnet50", "resnet101"]
    params = detector.Params(steps=1, folds=2, batch=2, networks=names, width=4)
    found = detector.out_of_fold(pictures(4, 0), pictures(4, 1), params, seed=0)
    assert list(found.each) == names
    logits = np.stack([np.log(real / (1 - real)) for real, _ in found.each.values()])
    assert found.real == pytest.approx(1 / (1 + np.exp(-logits.mean(0))), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "layers", "weights"),
    [("resnet18", 18, 11_689_512), ("resnet50", 50, 25_557_032), ("resnet101", 101, 44_549_160)],
)
def test_at_full_width_the_networks_are_those_of_the_paper(name: detector.Network, layers: int, weights: int):
    """Layers with weights, shortcuts aside, as in He et al., table 1; parameters as published for three channels, 1000
    classes and shortcuts without biases."""
    network = detector.network_of(detector.Params(width=64, view="full"), name)
    counted = [key for key, value in network.named_parameters() if value.ndim >= 2 and "downsample" not in key]
    assert len(counted) == layers
    features = network.get_parameter("fc.weight").shape[1]
    biases = sum(value.numel() for key, value in network.named_parameters() if key.endswith("downsample.0.bias"))
    ours = sum(value.numel() for value in network.parameters())
    assert ours - biases + 64 * 7 * 7 + 999 * (features + 1) == weights


def test_a_network_named_twice_is_refused():
    with pytest.raises(ValueError, match="name each network once"):
        detector.Params(networks=["small", "small"])


def test_a_bounded_sample_of_whole_groups_teaches_and_all_images_are_judged():
    rows = bounded_rows(REAL.groups, 21, seed=0)
    assert 19 < len(rows) <= 21
    chosen = {REAL.groups[row] for row in rows}
    assert len(rows) == sum(group in chosen for group in REAL.groups)
    assert bounded_rows(REAL.groups, 80, seed=0).tolist() == list(range(80))
    params = detector.Params(steps=2, folds=2, batch=4, sample=20)
    found = detector.out_of_fold(REAL, pictures(40, 1), params, seed=0)
    assert (found.real != 0.5).all()
    assert (len(found.real), len(found.synthetic)) == (80, 40)


def test_baselines_share_no_group_and_damage_is_easier_to_find_than_nothing():
    params = detector.Params(steps=40, folds=2, batch=16)
    found = detector.baselines(REAL, 80, params, seed=0)
    assert found is not None
    assert not {REAL.groups[row] for row in found.a} & {REAL.groups[row] for row in found.b}
    assert area_under_curve(found.control) > max(0.7, area_under_curve(found.floor))
    assert detector.baselines(replace(REAL, groups=["one"] * 80), 80, params, seed=0) is None


def test_no_pictures_get_no_answers():
    nobody = REAL.select(np.arange(0))
    assert detector.Jury(PARAMS, {}).logits(nobody, np.zeros(0, np.intp)).shape == (1, 0)


def test_pictures_drawn_whole_are_seen_whole_unless_the_recipe_says_otherwise():
    assert [detector.Params().seeing(whole).view for whole in (True, False)] == ["full", "window"]
    assert detector.Params(view="lesion").seeing(True).view == "lesion"


def test_what_lies_far_from_the_mask_is_seen_in_whole_pictures_alone():
    shown = pictures(4, 0, px=160)
    masks = np.zeros_like(shown.masks)
    masks[:, 20:50, 20:50] = True
    images = shown.images.copy()
    images[:, 120:, 120:] = 255
    asked, spoiled = replace(shown, masks=masks), replace(shown, masks=masks, images=images)
    seen = {whole: detector.Params().seeing(whole).seen for whole in (True, False)}
    assert (detector.look(asked, seen[False]) == detector.look(spoiled, seen[False])).all()
    assert (detector.look(asked, seen[True]) != detector.look(spoiled, seen[True])).any()
