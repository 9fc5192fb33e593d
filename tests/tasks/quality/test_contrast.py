from dataclasses import replace

import numpy as np
import pytest

from tasks.quality import Evidence, detector
from tasks.quality.contrast import contrast_to_noise, lesion_contrast, surrounding_ring
from tests.tasks.quality.toys import pictures


def test_it_is_the_difference_of_means_over_the_root_of_summed_variances():
    image = np.array([[10, 14, 50, 70]], np.float32)
    lesion = np.array([[True, True, False, False]])
    assert contrast_to_noise(image, lesion, ~lesion) == pytest.approx(48 / np.hypot(2, 10))


def test_blank_sides_are_refused():
    with pytest.raises(ValueError, match="0 lesion"):
        contrast_to_noise(np.ones((2, 2), np.float32), np.zeros((2, 2), bool), np.ones((2, 2), bool))


def test_the_ring_leaves_out_lesion_and_padding():
    image, mask = np.full((40, 40), 100, np.uint8), np.zeros((40, 40), bool)
    image[:10] = 0
    mask[12:24, 10:30] = True
    ring = surrounding_ring(image, mask)
    assert not (ring & mask).any()
    assert not ring[:10].any()
    assert ring[10:12, 15].all()


def test_missing_lesions_score_lower_than_every_real_one():
    shown = pictures(20, 0)
    hidden = replace(shown, images=pictures(20, 1, labels=("normal",)).images)
    score = lambda scored: lesion_contrast(Evidence(scored, shown, b"", b"", detector.Params(), 0))  # noqa: E731
    assert score(hidden).max() < score(shown).min()


def test_a_lesion_label_without_mask_has_no_contrast_and_a_normal_image_none_to_have():
    mixed = pictures(4, 0, labels=("normal", "benign"))
    blank = replace(mixed, masks=np.zeros_like(mixed.masks))
    values = lesion_contrast(Evidence(blank, mixed, b"", b"", detector.Params(), 0))
    assert np.isnan(values[::2]).all()
    assert (values[1::2] == 0).all()
