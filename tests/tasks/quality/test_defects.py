from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tasks.quality import detector
from tasks.quality.defects import SIGNS, defects
from tasks.quality.judge import Pictures
from tasks.quality.judged import Evidence
from tests.tasks.quality.toys import pictures

ROUGH = pictures(40, 0, px=128, labels=("benign",))
# As wide across the beam as speckle is, and without the toys' hard outlines.
CLEAN = replace(ROUGH, images=ndimage.gaussian_filter(ROUGH.images, (0, 0.7, 1.5)))


def score(images: np.ndarray) -> np.ndarray:
    shown = Pictures(images, CLEAN.masks, CLEAN.labels, CLEAN.groups)
    return defects(Evidence(shown, CLEAN, b"", b"", detector.Params(), 0))


def drawn(change: Callable[[np.ndarray, np.random.Generator], None]) -> np.ndarray:
    images = CLEAN.images.copy()
    for row, image in enumerate(images):
        change(image, np.random.default_rng(row))
    return images


def text(image: np.ndarray, rng: np.random.Generator) -> None:
    picture = Image.fromarray(image)
    at = tuple(rng.uniform(20, 60, 2).tolist())
    ImageDraw.Draw(picture).text(at, "RT LIN 12", fill=255, font=ImageFont.load_default(10))
    image[:] = np.asarray(picture)


def caliper(image: np.ndarray, rng: np.random.Generator) -> None:
    y, x = rng.integers(30, 98, 2)
    image[y - 3 : y + 4, x] = image[y, x - 3 : x + 4] = 250


def square(image: np.ndarray, rng: np.random.Generator) -> None:
    y, x = rng.integers(20, 80, 2)
    image[y : y + 24, x : x + 24] = np.clip(image[:24, :24] * 0.4, 0, 255)


def flat(image: np.ndarray, rng: np.random.Generator) -> None:
    image[50:62, 50:62] = 120


def frame(image: np.ndarray, rng: np.random.Generator) -> None:
    image[0] = image[-1] = image[:, 0] = image[:, -1] = 200


@pytest.mark.parametrize(
    ("sign", "change"),
    [("ink", text), ("ink", caliper), ("pasted edge", square), ("area of one level", flat), ("frame", frame)],
    ids=["text", "caliper", "square", "flat", "frame"],
)
def test_a_planted_defect_is_found_and_named(sign: str, change: Callable[[np.ndarray, np.random.Generator], None]):
    spoiled = drawn(change)
    assert SIGNS[sign](spoiled).mean() >= 0.9
    assert (score(spoiled) > 0).mean() >= 0.9


def test_clean_images_have_none():
    assert (score(CLEAN.images) > 0).mean() <= 0.05


def test_black_padding_is_no_defect():
    padded = CLEAN.images.copy()
    padded[:, :20] = padded[:, -20:] = 0
    assert (score(padded) > 0).mean() <= 0.05


def test_two_kinds_count_twice():
    both = drawn(flat)
    for image in both:
        frame(image, np.random.default_rng(0))
    assert (score(both) >= 2).all()


def test_small_pictures_are_judged_too():
    assert all(len(sign(np.full((2, 12, 12), 7, np.uint8))) == 2 for sign in SIGNS.values())
