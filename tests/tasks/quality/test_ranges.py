"""Range scores against scipy's distance, and against planted blur, noise and shifted grey levels."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import distance

from tasks.quality import detector, ranges
from tasks.quality.judge import Pictures
from tasks.quality.judged import Evidence
from tasks.quality.ranges import distances, grain, intensity_range, levels, speckle_range
from tests.tasks.quality.toys import pictures

TRAIN, SEEN = pictures(80, 0), pictures(30, 1)


def evidence(scored: Pictures, train: Pictures = TRAIN) -> Evidence:
    return Evidence(scored, train, b"", b"", detector.Params(), 0)


def changed(images: np.ndarray) -> Pictures:
    return replace(SEEN, images=np.clip(np.rint(images), 0, 255).astype(np.uint8))


def test_real_images_of_other_groups_are_inside_the_range():
    for score in (intensity_range, speckle_range):
        assert (score(evidence(SEEN)) < 1.3).mean() > 0.9


def test_planted_blur_and_noise_leave_the_range_of_speckle():
    soft = changed(ndimage.gaussian_filter(SEEN.images.astype(float), (0, 1, 1)))
    noisy = changed(SEEN.images + np.random.default_rng(0).normal(0, 15, SEEN.images.shape))
    limit = np.quantile(speckle_range(evidence(SEEN)), 0.95)
    for spoiled in (soft, noisy):
        assert (speckle_range(evidence(spoiled)) > limit).mean() > 0.95


def test_noise_inside_lesions_alone_is_found():
    noise = np.random.default_rng(0).normal(0, 25, SEEN.images.shape)
    limit = np.quantile(speckle_range(evidence(SEEN)), 0.95)
    assert (speckle_range(evidence(changed(SEEN.images + noise * SEEN.masks))) > limit).mean() > 0.9


def test_planted_brightness_and_contrast_leave_the_range_of_grey_levels():
    limit = np.quantile(intensity_range(evidence(SEEN)), 0.95)
    for spoiled in (changed(SEEN.images * 0.35), changed(150 + 0.2 * SEEN.images)):
        assert (intensity_range(evidence(spoiled)) > limit).mean() > 0.95


def test_distances_agree_with_scipy_where_nothing_is_shrunk_or_clipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranges, "_SHRINKAGE", 0.0)
    rng = np.random.default_rng(0)
    reference = rng.uniform(-1, 1, (400, 3)) @ rng.normal(size=(3, 3))
    asked = rng.normal(size=(20, 3))
    inverse, centre = np.linalg.inv(np.cov(reference.T)), np.median(reference, 0)
    of = lambda rows: np.array([distance.mahalanobis(row, centre, inverse) for row in rows])  # noqa: E731
    expected = of(asked) / np.quantile(of(reference), 0.99)
    assert distances(asked, reference) == pytest.approx(expected, rel=1e-6)


def test_a_statistic_that_never_varies_breaks_nothing():
    reference = np.column_stack([np.random.default_rng(0).normal(size=50), np.full(50, 3.0)])
    found = distances(np.array([[0.0, 3.0], [0.0, 4.0]]), reference)
    assert np.isfinite(found).all()
    assert found[0] < 1 < found[1]


def test_few_training_images_of_a_kind_give_no_range():
    mixed = pictures(12, 2, labels=("benign", "normal"))
    found = speckle_range(evidence(mixed))
    assert np.isnan(found[1::2]).all()  # no healthy image was trained on
    assert np.isfinite(found[::2]).all()


def test_black_images_and_blank_masks_have_finite_statistics():
    black, blank = np.zeros((2, 32, 32), np.uint8), np.zeros((2, 32, 32), bool)
    assert np.isfinite(levels(black, blank)).all()
    assert np.isfinite(grain(black, blank)).all()
    assert levels(black, blank).shape == (2, 14)
    assert grain(black, blank).shape == (2, 18)


def test_what_nearly_all_training_images_share_does_not_stretch_the_range():
    rng = np.random.default_rng(0)
    ordinary = rng.normal(size=(200, 3))
    rare = np.where(np.arange(200) % 20 == 0, 0.3, 0.0)[:, None]
    reference = np.concatenate([ordinary, rare, np.zeros((200, 1))], axis=1)  # and what they all share
    asked = np.concatenate([rng.normal(size=(50, 3)), np.zeros((50, 2))], axis=1)
    assert 0.3 < np.median(distances(asked, reference)) < 0.9
    asked[:, 2] += 9
    assert (distances(asked, reference) > 1).all()
