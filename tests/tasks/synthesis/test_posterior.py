"""What lies behind a lesion: the measure on constructed pictures, and the zone made to be read by it."""

import numpy as np
import pytest

from tasks.synthesis import posterior
from tests.fakes.drafts import ellipse

PX = 96
MASK = ellipse(PX, 30, 48, 10, 14)
ALL = np.ones((PX, PX), np.bool_)


def test_shadow_darkens_and_enhancement_brightens_what_lies_behind_a_lesion() -> None:
    mask = ellipse(64, 24, 32, 8, 10)
    shadow = posterior.zone(mask, reach=1.5, peak=-6)
    assert shadow[mask].max() == 0
    assert shadow[:16].min() == 0  # nothing in front of the lesion
    assert shadow[36, 32] < -3
    assert -0.01 < shadow[36, 10] <= 0  # nor beside it
    assert abs(shadow[60, 32]) < abs(shadow[36, 32])
    np.testing.assert_allclose(posterior.zone(mask, 1.5, 3), -shadow / 2, atol=1e-5)


def test_the_measure_reads_what_lies_behind_against_what_lies_beside() -> None:
    levels = np.full((PX, PX), 100.0)
    levels[42:64, 40:57] = 130
    found = posterior.behind(levels, MASK, ALL)
    assert found is not None
    assert found.change == pytest.approx(30)
    assert found.beside == pytest.approx(100)


def test_brightness_that_changes_with_depth_or_evenly_across_is_no_shading() -> None:
    rows, columns = np.mgrid[:PX, :PX].astype(float)
    found = posterior.behind(200 - rows + columns, MASK, ALL)
    assert found is not None
    assert found.change == pytest.approx(0, abs=1)


def test_without_room_behind_or_beside_nothing_is_read() -> None:
    levels = np.full((PX, PX), 100.0)
    assert posterior.behind(levels, ellipse(PX, 90, 48, 8, 8), ALL) is None
    assert posterior.behind(levels, ellipse(PX, 30, 48, 10, 47), ALL) is None
    narrow = ALL.copy()
    narrow[:, :36] = narrow[:, 60:] = False
    assert posterior.behind(levels, MASK, narrow) is None


@pytest.mark.parametrize("change", [-40.0, 25.0])
def test_a_zone_made_to_reach_a_change_is_read_as_that_change(change: float) -> None:
    zone = posterior.zone_reaching(MASK, ALL, 1.5, change)
    found = posterior.behind(zone, MASK, ALL)
    assert found is not None
    assert found.change == pytest.approx(change, rel=1e-4)
    speckle = np.random.default_rng(0).normal(110, 15, (PX, PX)).astype(np.uint8)
    before = posterior.behind(speckle, MASK, ALL)
    after = posterior.behind(posterior.shaded(speckle, zone), MASK, ALL)
    assert before is not None
    assert after is not None
    assert after.change - before.change == pytest.approx(change, abs=2)


def test_shading_takes_texture_along_and_leaves_the_rest_bit_for_bit() -> None:
    speckle = np.clip(np.random.default_rng(0).normal(100, 10, (PX, PX)), 1, 254).astype(np.uint8)
    change = np.zeros((PX, PX), np.float32)
    change[40:, :] = -60
    shaded = posterior.shaded(speckle, change)
    np.testing.assert_array_equal(shaded[:40], speckle[:40])
    dark, before = shaded[60:].astype(float), speckle[60:].astype(float)
    assert dark.mean() == pytest.approx(before.mean() - 60, abs=2)
    # the square root of the mean: sqrt(40 / 100)
    assert dark.std() / before.std() == pytest.approx(0.63, abs=0.06)
