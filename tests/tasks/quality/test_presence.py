from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest

from tasks.quality import detector
from tasks.quality.contrast import lesion_contrast
from tasks.quality.judge import Pictures
from tasks.quality.judged import Evidence
from tasks.quality.presence import concentration, lesion_change, lesion_position, lesion_presence
from tests.tasks.quality.toys import pictures

MIXED = pictures(12, 0, labels=("benign", "malignant", "normal"))
LESIONS = MIXED.select(MIXED.masks.any((1, 2)))


class Drawn(Evidence):
    """Evidence whose segmenter draws the true lesion of every image, whatever mask it claims."""

    @cached_property
    def drawn(self) -> np.ndarray:
        truth = {image.tobytes(): mask for image, mask in zip(MIXED.images, MIXED.masks, strict=True)}
        return np.stack([np.where(truth[image.tobytes()], 0.9, 0.05) for image in self.scored.images]).astype("f4")


def evidence(scored: Pictures) -> Evidence:
    return Drawn(scored, MIXED, b"", b"", detector.Params(), 0)


def test_a_true_mask_scores_high_and_a_moved_or_empty_one_low():
    moved = replace(LESIONS, masks=np.roll(LESIONS.masks, 24, 2))
    healthy = MIXED.with_labels({"normal"}).images
    missing = replace(LESIONS, images=np.concatenate([healthy, healthy]))
    for score in (lesion_presence, lesion_position):
        true = score(evidence(LESIONS)).min()
        assert true > 0.5
        assert true > score(evidence(moved)).max()
        assert true > score(evidence(missing)).max()


def test_presence_is_the_difference_of_mean_probabilities_and_half_the_contrast():
    expected = 0.85 + 0.5 * np.minimum(lesion_contrast(evidence(LESIONS)), 1.5)
    assert lesion_presence(evidence(LESIONS)) == pytest.approx(expected, abs=1e-5)


def test_healthy_images_are_not_asked_and_blank_masks_are_the_worst():
    found = lesion_presence(evidence(MIXED))
    assert np.isnan(found[[label == "normal" for label in MIXED.labels]]).all()
    blank = replace(LESIONS, masks=np.zeros_like(LESIONS.masks))
    assert (lesion_presence(evidence(blank)) == -1).all()
    assert (lesion_position(evidence(blank)) < -18).all()
    full = replace(LESIONS, masks=np.ones_like(LESIONS.masks))
    assert (lesion_presence(evidence(full)) == -1).all()


def test_a_lesion_that_changed_nothing_or_the_wrong_place_is_told_from_one_that_was_drawn():
    ground = np.full_like(LESIONS.images, 90)
    drawn = replace(LESIONS, images=np.where(LESIONS.masks, 40, ground).astype(np.uint8))
    asked = replace(evidence(LESIONS), scored=drawn, backgrounds=ground)
    assert (lesion_change(asked) == 1).all()
    untouched = replace(asked, scored=replace(LESIONS, images=ground))
    assert (lesion_change(untouched) == 0).all()
    elsewhere = replace(asked, scored=replace(drawn, masks=np.roll(LESIONS.masks, 30, 2)))
    assert (lesion_change(elsewhere) < 0.5).all()
    assert np.isnan(lesion_change(evidence(LESIONS))).all()  # no background is known


def test_concentration_is_the_ratio_of_mean_changes():
    image, mask = np.full((4, 4), 100, np.uint8), np.zeros((4, 4), bool)
    mask[:2] = True
    assert concentration(np.where(mask, 130, 110).astype(np.uint8), image, mask) == pytest.approx(30 / 40)


def test_backgrounds_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="backgrounds of shape"):
        replace(evidence(LESIONS), backgrounds=np.zeros((2, 8, 8), np.uint8))
