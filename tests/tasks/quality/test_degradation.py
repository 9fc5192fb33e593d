import numpy as np
import pytest

from tasks.quality.degradation import DEGRADATIONS, degrade, degrade_inside, draw_severities
from tests.tasks.quality.toys import pictures

IMAGE, MASK = pictures(1, 0).images[0], pictures(1, 0).masks[0]


@pytest.mark.parametrize("kind", sorted(DEGRADATIONS))
def test_damage_grows_with_severity(kind: str):
    damage = [
        np.abs(DEGRADATIONS[kind](IMAGE, severity, np.random.default_rng(0)).astype(int) - IMAGE).mean()
        for severity in (0.3, 0.6, 1.0)
    ]
    assert 0 < damage[0] < damage[1] < damage[2]


@pytest.mark.parametrize("kind", sorted(DEGRADATIONS))
def test_sizes_that_do_not_divide_by_four_are_kept(kind: str):
    assert DEGRADATIONS[kind](IMAGE[:61, :43], 0.5, np.random.default_rng(0)).shape == (61, 43)


def test_no_severity_leaves_the_image_alone():
    untouched = degrade(IMAGE, np.zeros(len(DEGRADATIONS), np.float32), np.random.default_rng(0))
    assert (untouched == IMAGE).all()


def test_damage_inside_a_mask_stays_inside():
    damaged = degrade_inside(IMAGE, MASK, np.ones(len(DEGRADATIONS), np.float32), np.random.default_rng(0))
    assert (damaged[~MASK] == IMAGE[~MASK]).all()
    assert (damaged[MASK] != IMAGE[MASK]).mean() > 0.5


def test_a_third_of_the_draws_are_untouched():
    rng = np.random.default_rng(0)
    untouched = np.mean([not draw_severities(rng).any() for _ in range(600)])
    assert 0.27 < untouched < 0.40
