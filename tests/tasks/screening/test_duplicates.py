import io

import numpy as np
import pytest
from PIL import Image

from tasks.screening.duplicates import find_alike, near_duplicate_groups
from tests.fakes.pictures import picture, with_calipers

SHAPE = (300, 360)


def strangers(count):
    return [picture(seed, SHAPE)[0] for seed in range(count)]


def cropped(image):
    return image[20:-30, 45:-15]


def resized(image):
    return np.asarray(Image.fromarray(image).resize((270, 215), Image.Resampling.BILINEAR))


def brighter(image):
    return np.clip(255 * (image / 255.0) ** 0.7 * 1.1 + 8, 0, 255).astype(np.uint8)


def compressed(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=60)
    return np.asarray(Image.open(data))


@pytest.mark.parametrize("change", [cropped, resized, brighter, compressed, with_calipers, np.copy])
def test_a_changed_copy_is_found_and_strangers_are_not(change):
    images = strangers(5)
    groups = near_duplicate_groups([*images, change(images[2])])
    assert groups == [0, 1, 2, 3, 4, 2]


def test_all_changes_at_once_are_found():
    images = strangers(4)
    changed = with_calipers(brighter(resized(cropped(images[1]))))
    assert near_duplicate_groups([*images, changed]) == [0, 1, 2, 3, 1]


def test_blank_and_missing_pictures_match_only_their_equals():
    black, grey = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 80, np.uint8)
    assert near_duplicate_groups([black, None, grey, black, None]) == [0, 1, 2, 0, 4]
    assert near_duplicate_groups([]) == []
    assert near_duplicate_groups([np.zeros((1, 1), np.uint8), np.zeros((3, 900), np.uint8)]) == [0, 1]


def test_copies_lie_inside_scenes_and_progress_counts_every_picture():
    done = []
    images = strangers(3)
    alike = find_alike([*images, images[0]], done.append)
    assert sum(done) == 4
    assert alike.copies == alike.scenes == [0, 1, 2, 0]
