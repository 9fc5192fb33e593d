import numpy as np
import pytest

from tasks.quality.copies.placing import Placement, agreement, place
from tests.fakes.pictures import picture


def test_a_placement_recovers_scale_turn_and_shift_among_false_matches():
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 250, (40, 2))
    angle, scale = np.radians(7), 1.2
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    b = a @ matrix.T + [12, -30]
    b[25:] = rng.uniform(0, 250, (15, 2))
    found = place(a, b)
    assert found is not None
    assert found.matrix == pytest.approx(matrix, abs=0.01)
    assert found.shift == pytest.approx([12, -30], abs=1)
    assert 20 <= found.spots <= 27


def test_matches_that_agree_on_nothing_have_no_placement():
    assert place(np.zeros((5, 2)), np.zeros((5, 2))) is None
    assert place(np.zeros((1, 2)), np.zeros((1, 2))) is None


def test_a_picture_agrees_with_itself_and_with_no_other():
    image, other = picture(1, (256, 256))[0], picture(2, (256, 256))[0]
    same = Placement(np.eye(2), np.zeros(2), 20)
    assert agreement(image, image, same, 256, 0.8) > 0.7
    assert agreement(other, image, same, 256, 0.8) < 0.02
    half = np.zeros(image.shape, bool)
    half[:, :128] = True
    assert 0.3 < agreement(image, image, same, 256, 0.8, hidden=half) < 0.55


def test_lines_alone_do_not_agree():
    """Two skulls: the same bright arc on speckle of their own."""
    y, x = np.mgrid[:256, :256]
    arc = np.abs(np.hypot(y - 300, x - 128) - 180) < 4
    one, two = (np.where(arc, 250, picture(seed, (256, 256))[0] // 2).astype(np.uint8) for seed in (3, 4))
    assert agreement(one, two, Placement(np.eye(2), np.zeros(2), 20), 256, 0.8) < 0.03
