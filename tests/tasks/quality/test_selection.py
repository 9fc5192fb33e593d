"""Greedy selection: changes against recomputed distances, planted outliers, and where it must stop."""

from typing import Literal

import numpy as np
import pytest

from tasks.quality.frechet import frechet_distance
from tasks.quality.kernel import kernel_distance
from tasks.quality.selection import FrechetDistance, KernelDistance, SelectParams, select

By = Literal["kid", "fid"]
D = 8
LABELS = ["benign", "malignant"]


def cloud(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, D))


def groups(n: int) -> list[str]:
    return [f"p{row // 2}" for row in range(n)]


def chosen(synthetic: np.ndarray, real: np.ndarray, params: SelectParams):
    labels = [LABELS[row % 2] for row in range(len(synthetic))]
    return select(synthetic, real, labels, groups(len(real)), params, 0)


def test_the_kernel_distance_and_its_changes_are_those_of_a_computation_from_scratch():
    synthetic, real = cloud(40, 1, 0.3), cloud(50, 2)
    distance = KernelDistance.of(synthetic, real).without(np.array([3, 4]))
    rest = np.delete(synthetic, [3, 4], 0)
    assert distance.value() == pytest.approx(kernel_distance(real, rest), rel=1e-10)
    without_7 = np.delete(synthetic, [3, 4, 7], 0)
    assert distance.value() + distance.changes()[7] == pytest.approx(kernel_distance(real, without_7), rel=1e-10)


def test_the_frechet_distance_is_exact_and_its_changes_are_of_first_order():
    synthetic, real = cloud(400, 3, 0.3), cloud(300, 4)
    distance = FrechetDistance.of(synthetic, real, 1.0).without(np.array([3, 4]))
    rest = np.delete(synthetic, [3, 4], 0)
    assert distance.value() == pytest.approx(frechet_distance(real, rest), rel=1e-8)
    kept = [row for row in range(400) if row not in (3, 4)][:60]
    exact = [frechet_distance(real, np.delete(synthetic, [3, 4, row], 0)) - distance.value() for row in kept]
    guessed = distance.changes()[kept]
    assert np.corrcoef(exact, guessed)[0, 1] > 0.99
    assert np.abs(guessed - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("by", ["kid", "fid"])
def test_planted_outliers_are_left_out_and_hardly_anything_else(by: By):
    outliers = cloud(30, 5, 2.0)
    found = chosen(np.concatenate([cloud(170, 6), outliers]), cloud(200, 7), SelectParams(by=by))
    assert (~found.kept[170:]).mean() >= 0.9
    assert (~found.kept[:170]).mean() <= 0.1
    assert found.after < 0.3 * found.before


@pytest.mark.parametrize("by", ["kid", "fid"])
def test_of_a_set_that_is_as_near_as_real_images_nearly_everything_stays(by: By):
    shares = [chosen(cloud(120, seed), cloud(120, 50 + seed), SelectParams(by=by)).kept.mean() for seed in range(8)]
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize("by", ["kid", "fid"])
def test_of_every_label_the_least_share_stays(by: By):
    malignant_is_off = np.where(np.arange(120)[:, None] % 2 == 1, cloud(120, 8, 3.0), cloud(120, 9))
    found = chosen(malignant_is_off, cloud(200, 10), SelectParams(by=by, least=0.5))
    assert found.kept[1::2].sum() == 30
    assert found.kept[::2].sum() >= 30


@pytest.mark.parametrize("by", ["kid", "fid"])
def test_the_distance_after_is_that_of_what_stays_and_a_repetition_is_equal(by: By):
    synthetic, real = cloud(150, 11, 0.5), cloud(150, 12)
    found = chosen(synthetic, real, SelectParams(by=by, step=0.05))
    measure = kernel_distance if by == "kid" else frechet_distance
    assert found.before == pytest.approx(measure(real, synthetic), rel=1e-8)
    assert found.after == pytest.approx(measure(real, synthetic[found.kept]), rel=1e-8)
    assert (found.kept == chosen(synthetic, real, SelectParams(by=by, step=0.05)).kept).all()


def test_constant_and_repeated_features_do_no_harm():
    real = np.repeat(cloud(20, 13), 4, axis=0)
    real[:, 0] = 1.0
    synthetic = np.repeat(cloud(30, 14, 0.5), 3, axis=0)
    for by in ("kid", "fid"):
        found = chosen(synthetic, real, SelectParams(by=by))
        assert np.isfinite([found.before, found.after]).all()
        assert found.after <= found.before


def test_too_few_images_and_nan_are_refused():
    with pytest.raises(ValueError, match="at least 16 images on each side"):
        chosen(cloud(40, 0), cloud(15, 1), SelectParams(by="fid"))
    with pytest.raises(ValueError, match="NaN"):
        chosen(np.full((40, D), np.nan), cloud(40, 1), SelectParams())
