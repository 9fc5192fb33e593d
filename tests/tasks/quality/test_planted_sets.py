"""Sets spoiled on purpose, as the extractors of a build see them: each must be told from real, and real ones not."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from storage.records import SetScore
from tasks.quality import HIGHER_IS_BETTER, SET_SCORES, extractors
from tasks.quality.evidence import SetEvidence, Space
from tasks.quality.judge import Pictures
from tests.tasks.quality.toys import pictures

MADE = 44


def blurred(made: Pictures) -> Pictures:
    return replace(made, images=ndimage.gaussian_filter(made.images, (0, 1, 1)))


def white_noise_for_speckle(made: Pictures) -> Pictures:
    levels = made.images.astype(float)
    mean = ndimage.uniform_filter(levels, (0, 7, 7))
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(levels**2, (0, 7, 7)) - mean**2, 0))
    noise = np.random.default_rng(0).normal(size=levels.shape)
    return replace(made, images=(mean + spread * noise).clip(0, 255).astype(np.uint8))


def collapsed(made: Pictures) -> Pictures:
    """Four images, over and over, mirrored and brightened."""
    few = made.select(np.arange(MADE) % 4)
    images = few.images.copy()
    images[::2] = images[::2, :, ::-1]
    return replace(few, images=(images * np.linspace(0.9, 1, MADE)[:, None, None]).astype(np.uint8))


def half_replaced(made: Pictures) -> Pictures:
    return made.select(np.arange(MADE // 2)).and_also(pictures(MADE // 2, 9, labels=("normal",)))


def unspoiled(made: Pictures) -> Pictures:
    return made


Plant = Callable[[Pictures], Pictures]


def features(seen: Pictures) -> list[tuple[np.ndarray, str]]:
    """By the shipped extractor, of radiomics and of speckle; with their names."""
    known = [extractors.load(extractors.ExtractorParams()), *(load() for load in extractors.SPACES.values())]
    return [(each.features(seen.images, seen.masks), each.identity) for each in known]


@cache
def real_features() -> tuple[list[str], list[tuple[np.ndarray, str]]]:
    real = pictures(100, 1)
    return list(real.groups), features(real)


@cache
def compared(plant: Plant) -> SetEvidence:
    """Real pictures with a spoiled set of others."""
    made = plant(pictures(MADE, 2))
    groups, real = real_features()
    main, radiomic, speckle = (Space(a, b, name) for (a, name), (b, _) in zip(real, features(made), strict=True))
    sides = main.real, main.synthetic, groups, made.groups
    return SetEvidence(*sides, main.extractor, seed=0, radiomic=radiomic, speckle=speckle)


def flagged(score: SetScore) -> bool:
    """The whole interval of the multiple of the floor is on the bad side of 1."""
    assert score.over_floor_low is not None
    assert score.over_floor_high is not None
    return score.over_floor_high < 1 if score.name in HIGHER_IS_BETTER else score.over_floor_low > 1


PLANTS = [
    (blurred, "speckle_frechet"),
    (white_noise_for_speckle, "speckle_frechet"),
    (white_noise_for_speckle, "radiomic_frechet"),
    (collapsed, "coverage"),
    (collapsed, "recall"),
    (half_replaced, "fid"),
    (half_replaced, "kid"),
]


@pytest.mark.parametrize(("plant", "name"), PLANTS)
def test_a_spoiled_set_is_told_from_real(plant: Plant, name: str):
    assert flagged(SET_SCORES[name](compared(plant)))


@pytest.mark.parametrize("name", sorted({name for _, name in PLANTS}))
def test_a_set_of_other_real_images_is_not(name: str):
    assert not flagged(SET_SCORES[name](compared(unspoiled)))
