import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tasks.quality.copies import COPY, Index
from tests.fakes.pictures import picture, with_calipers

SHAPE = (240, 300)
COUNT = 10


@pytest.fixture(scope="module")
def train():
    return [picture(seed, SHAPE)[0] for seed in range(COUNT)]


@pytest.fixture(scope="module")
def index(train):
    return Index.of(iter(train))


def clipped(pixels):
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def compressed(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=30)
    return np.asarray(Image.open(data))


def turned(image):
    return clipped(ndimage.rotate(image.astype(float), 6, reshape=False, order=1))


def in_a_strangers_picture(image):
    """Its middle, with soft edges, at another place of another picture."""
    out, part = picture(500, SHAPE)[0].astype(float), image[60:180, 80:220]
    edge = np.zeros(part.shape)
    edge[6:-6, 6:-6] = 1
    soft = ndimage.gaussian_filter(edge, 3)
    window = slice(100, 220), slice(20, 160)
    out[window] = soft * part + (1 - soft) * out[window]
    return clipped(out)


CHANGES = {
    "exact": np.copy,
    "mirrored": lambda image: image[:, ::-1].copy(),
    "upside down": lambda image: image[::-1].copy(),
    "cropped": lambda image: image[30:210, 50:270],
    "darker": lambda image: clipped(255 * (image / 255) ** 1.6),
    "brighter": lambda image: clipped(255 * (image / 255) ** 0.6),
    "compressed": compressed,
    "smaller": lambda image: np.asarray(Image.fromarray(image).resize((200, 160), Image.Resampling.BILINEAR)),
    "noisy": lambda image: clipped(image + np.random.default_rng(0).normal(0, 10, image.shape)),
    "blurred": lambda image: clipped(ndimage.gaussian_filter(image.astype(float), 1.0)),
    "turned": turned,
    "drawn on": with_calipers,
    "pasted": in_a_strangers_picture,
    "all at once": lambda image: compressed(turned(with_calipers(image[10:230, 20:280][:, ::-1].copy()))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_points_at_its_original(index, train, change):
    found = index.search(change(train[4]))
    assert found
    assert found[0].row == 4
    assert found[0].similarity >= COPY


def test_strangers_are_no_copies(index):
    for seed in range(100, 108):
        assert not [match for match in index.search(picture(seed, SHAPE)[0]) if match.similarity >= COPY]


def test_a_training_picture_that_is_left_out_is_not_found(index, train):
    assert all(match.row != 3 for match in index.search(train[3], without=[3]))


def test_the_same_pictures_give_the_same_answers(index, train):
    again = Index.of(train)
    assert index.search(turned(train[2])) == again.search(turned(train[2]))


def test_blank_pictures_resemble_nothing_and_cannot_be_searched_in(index):
    assert index.search(np.zeros(SHAPE, np.uint8)) == []
    assert index.search(np.zeros((1, 1), np.uint8)) == []
    with pytest.raises(ValueError, match="found nothing to recognise in 2 training pictures"):
        Index.of([np.zeros(SHAPE, np.uint8)] * 2)


def test_what_a_scanner_draws_on_every_picture_makes_no_copy():
    logo = picture(900, (70, 90))[0]

    def drawn_on(image):
        image = image.copy()
        image[:70, :90] = logo
        return image

    pictures = [drawn_on(picture(seed, SHAPE)[0]) for seed in range(14)]
    index = Index.of(pictures)
    assert index.hidden[0] is not None
    assert index.hidden[0].mean() < 0.25
    for seed in range(200, 203):
        assert not [m for m in index.search(drawn_on(picture(seed, SHAPE)[0])) if m.similarity >= COPY]
    assert index.search(pictures[5])[0].row == 5
