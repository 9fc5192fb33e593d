from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tasks.imaging import ellipse as ellipses
from tasks.imaging import letterbox
from tasks.sources import hc18
from tasks.synthesis import Donor, ellipse
from tests import real_data
from tests.fakes.drafts import ellipse as filled

PX = 96


def heads(count: int, seed: int = 0, pixel_mm: bool = True) -> list[Donor]:
    """Heads left and right of the middle; the larger a head in its picture, the finer the pixels."""
    rng = np.random.default_rng(seed)
    donors: list[Donor] = []
    for number in range(count):
        size = rng.uniform(14, 30)
        row, column, ratio = rng.normal(48, 2), 48 + rng.choice([-1, 1]) * rng.uniform(4, 8), rng.uniform(1.2, 1.4)
        mask = filled(PX, row, column, size / ratio, size)
        donors.append(Donor(f"h{number}", mask, "head", f"p{number}", pixel_mm=20 / size if pixel_mm else None))
    return donors


def drawn(model: ellipse.Model, count: int) -> list[ellipse.Head]:
    found = [ellipse.draw(model, np.random.default_rng(seed), lambda _: True, 50) for seed in range(count)]
    assert None not in found
    return [head for head in found if head is not None]


def test_drawn_heads_are_as_large_as_round_and_as_placed_as_the_training_heads() -> None:
    donors = heads(60)
    made = drawn(ellipse.learn(donors), 400)
    real = [ellipses.of(donor.mask) for donor in donors]
    for number in (
        lambda one: one.major * one.minor,
        lambda one: one.major / one.minor,
        lambda one: abs(one.column - 47.5),
        lambda one: one.row,
    ):
        assert ks_2samp([number(one) for one in real], [number(head.ellipse) for head in made]).pvalue > 0.01


def test_a_head_seen_large_has_small_pixels_as_the_training_heads_do() -> None:
    made = drawn(ellipse.learn(heads(60)), 300)
    sizes = np.array([head.ellipse.major for head in made])
    pixels = np.array([head.pixel_mm for head in made])
    assert np.corrcoef(np.log(sizes), np.log(pixels))[0, 1] < -0.9
    assert {head.pixel_mm for head in made} <= {donor.pixel_mm for donor in heads(60)}


def test_left_and_right_are_alike() -> None:
    donors = [
        replace(donor, mask=donor.mask if ellipses.of(donor.mask).column < 48 else donor.mask[:, ::-1])
        for donor in heads(30)
    ]
    columns = np.array([head.ellipse.column for head in drawn(ellipse.learn(donors), 200)])
    assert 0.35 < (columns < 47.5).mean() < 0.65


def test_no_head_lies_where_none_was_seen() -> None:
    donors = heads(40)
    seen = np.any([donor.mask | donor.mask[:, ::-1] for donor in donors], axis=0)
    for head in drawn(ellipse.learn(donors), 100):
        assert (head.mask & ~seen).sum() <= 0.011 * head.mask.sum()


def test_without_pixel_sizes_there_are_none() -> None:
    donors = heads(20)
    model = ellipse.learn([*donors[1:], replace(donors[0], pixel_mm=None)])
    assert {head.pixel_mm for head in drawn(model, 20)} == {None}


def test_a_head_that_nobody_wants_is_none() -> None:
    assert ellipse.draw(ellipse.learn(heads(20)), np.random.default_rng(0), lambda _: False, 20) is None


def test_too_few_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="5 masks to learn ellipses from; expected 6 or more"):
        ellipse.learn(heads(5))
    speck = replace(heads(1)[0], mask=np.eye(PX, dtype=np.bool_))  # a line has no ellipse
    with pytest.raises(ValueError, match="5 masks to learn ellipses from"):
        ellipse.learn([*heads(5), speck])


@pytest.mark.slow
def test_drawn_heads_are_distributed_as_hc18s_training_ones() -> None:
    scans = islice(hc18.read(hc18.Params(root=real_data("hc18"))), 70)
    donors: list[Donor] = []
    for scan in scans:
        if scan.mask is not None and scan.image is not None and scan.pixel_mm is not None:
            fitted = letterbox(scan.image, scan.mask, 128)
            assert fitted.mask is not None
            donors.append(Donor(scan.file, fitted.mask, "head", scan.group or "", scan.pixel_mm / fitted.scale))
    made = drawn(ellipse.learn(donors), 400)
    real = [(ellipses.of(donor.mask), donor.pixel_mm) for donor in donors]
    drawn_ones = [(head.ellipse, head.pixel_mm) for head in made]
    for number in (
        lambda one, mm: one.circumference * mm,
        lambda one, mm: one.major * one.minor,
        lambda one, mm: one.major / one.minor,
        lambda one, mm: one.row,
        lambda one, mm: abs(one.column - 63.5),
    ):
        assert ks_2samp([number(*one) for one in real], [number(*one) for one in drawn_ones]).statistic < 0.15
