import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.leak_changes import CHANGES
from tasks.screening.duplicates import find_alike, near_duplicate_groups
from tests import real_data
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


def left_for_right(image):
    return np.ascontiguousarray(image[:, ::-1])


def upside_down(image):
    return np.ascontiguousarray(image[::-1])


def half_turn(image):
    return np.ascontiguousarray(image[::-1, ::-1])


@pytest.mark.parametrize(
    "change",
    [cropped, resized, brighter, compressed, with_calipers, np.copy, left_for_right, upside_down, half_turn],
)
def test_a_changed_copy_is_found_and_strangers_are_not(change):
    images = strangers(5)
    groups = near_duplicate_groups([*images, change(images[2])])
    assert groups == [0, 1, 2, 3, 4, 2]


def test_all_changes_at_once_are_found():
    images = strangers(4)
    changed = left_for_right(with_calipers(brighter(resized(cropped(images[1])))))
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


def test_copies_planted_among_real_scans_are_found_and_tie_nothing_else_together():
    files = sorted(path for path in real_data("busi").rglob("malignant (*).png") if "_mask" not in path.name)[:24]
    images = [np.asarray(Image.open(file).convert("L")) for file in files]
    changes = [*CHANGES.values()]
    copies = [changes[k % 12](image, np.random.default_rng([3, k])) for k, image in enumerate(images)]
    before, after = near_duplicate_groups(images), near_duplicate_groups(images + copies)
    found = [after[k] == after[24 + k] for k in range(24)]
    assert sum(found) >= 23
    assert after[:24] == before
    assert all(after[24 + k] in (after[k], 24 + k) for k in range(24))
