"""Ellipses of masks: right against elliptic integrals, where the picture cuts them, and against HC18's own table."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from tasks.imaging import ellipse, letterbox
from tasks.imaging.ellipse import Ellipse
from tasks.sources import hc18
from tests import real_data

PX = 128
AXES = {"major": st.floats(20, 45), "ratio": st.floats(0.6, 0.95), "angle": st.floats(-1.5, 1.5)}


def tilted(major: float, ratio: float, angle: float, row: float = 64, column: float = 64) -> Ellipse:
    return Ellipse(row, column, major, major * ratio, angle)


@settings(max_examples=100, deadline=None)
@given(ratio=st.floats(1 / 3, 1))
def test_the_circumference_is_that_of_the_elliptic_integral(ratio: float) -> None:
    exact = 4 * 10 * special.ellipe(1 - ratio**2)
    assert tilted(10, ratio, 0.3).circumference == pytest.approx(exact, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(row=st.floats(55, 70), column=st.floats(55, 70), **AXES)
def test_a_filled_ellipse_is_found_again(row: float, column: float, major: float, ratio: float, angle: float) -> None:
    truth = tilted(major, ratio, angle, row, column)
    mask = truth.filled((PX, PX))
    assert ellipse.cut_sides(mask) == []
    found = ellipse.of(mask)
    assert (found.row, found.column) == pytest.approx((row, column), abs=0.2)
    assert (found.major, found.minor) == pytest.approx((truth.major, truth.minor), rel=0.015)
    assert (found.filled(mask.shape) ^ mask).sum() <= 0.03 * mask.sum()


@settings(max_examples=50, deadline=None)
@given(side=st.integers(0, 3), lacking=st.floats(0.06, 0.2), **AXES)
def test_a_head_that_the_picture_cuts_keeps_its_circumference(
    side: int, lacking: float, major: float, ratio: float, angle: float
) -> None:
    truth = tilted(major, ratio, angle)
    mask = np.rot90(truth.filled((PX, PX)), side).copy()
    rows = np.flatnonzero(mask.any(axis=1))
    mask[: rows[0] + max(3, round(lacking * len(rows)))] = False
    mask = np.rot90(mask, -side)
    assert ["top", "right", "bottom", "left"][side] in ellipse.cut_sides(mask)
    assert ellipse.of(mask).circumference == pytest.approx(truth.circumference, rel=0.025)


def test_the_cut_may_lie_within_the_array_as_in_a_letterboxed_picture() -> None:
    mask = Ellipse(60, 64, 40, 30, 0).filled((PX, PX))
    mask[:40] = False
    assert ellipse.cut_sides(mask) == ["top"]
    assert ellipse.of(mask).row == pytest.approx(60, abs=0.5)
    assert np.nonzero(mask)[0].mean() > 62  # where the middle of what is left lies


@pytest.mark.parametrize("shape", ["blank", "line", "speck"])
def test_what_is_no_area_is_refused(shape: str) -> None:
    mask = np.zeros((32, 32), np.bool_)
    if shape == "line":
        mask[7, 3:29] = True
    if shape == "speck":
        mask[7:9, 7:9] = True
    with pytest.raises(ValueError, match="expected an area several pixels wide"):
        ellipse.of(mask)


def test_points_on_a_line_or_too_few_are_refused() -> None:
    line = np.stack([np.arange(40.0), 2 * np.arange(40.0)], axis=1)
    for points in (line, np.array([[0.0, 1], [1, 0], [0, -1], [-1, 0]])):
        with pytest.raises(ValueError, match="lie on no ellipse"):
            ellipse.fitted(points)


@pytest.mark.slow
def test_circumferences_of_hc18_are_the_published_ones_at_every_size() -> None:
    """Measured on 170 heads: within 0.02 % as released, 0.27 % at 256 px, 0.31 % at 128 px; asked: 95 % within 2 %."""
    root = real_data("hc18")
    with (root / "training_set_pixel_size_and_HC.csv").open() as file:
        published = {row["filename"]: float(row["head circumference (mm)"]) for row in csv.DictReader(file)}
    scans = [scan for scan in hc18.read(hc18.Params(root=root)) if scan.mask is not None]
    assert len(scans) >= 100
    errors: dict[int | None, list[float]] = {None: [], 256: [], 128: []}
    for scan in scans:
        assert scan.image is not None
        assert scan.mask is not None
        assert scan.pixel_mm is not None
        for px, found in errors.items():
            mask, pixel_mm = scan.mask, scan.pixel_mm
            if px is not None:
                fitted = letterbox(scan.image, mask, px)
                assert fitted.mask is not None
                mask, pixel_mm = fitted.mask, pixel_mm / fitted.scale
            found.append(ellipse.circumference_mm(mask, pixel_mm) / published[scan.file.rpartition("/")[2]] - 1)
    for found in errors.values():
        assert np.mean(np.abs(found) < 0.02) >= 0.95
