"""Ellipses of masks, and the circumference of heads.

A head is measured as the ellipse that it fills, as in the clinic: the circumference of its pixels' outline would
grow with every notch (van den Heuvel et al., PLOS ONE 13(8):e0200412, 2018). Where the picture's border cuts the
head, the ellipse is fitted to the part of the outline that can be seen.
"""

from dataclasses import dataclass
from math import atan2, cos, pi, sin, sqrt

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Mask

_CUT_PX = 1.5
"""Depth of a cut, pixels: a side of a mask that is flatter than an ellipse less this is one of the picture's."""


@dataclass(frozen=True)
class Ellipse:
    """Centre and semi-axes in pixels; `angle` is that of the major axis, radians, from right towards down."""

    row: float
    column: float
    major: float
    minor: float
    angle: float

    @property
    def circumference(self) -> float:
        """In pixels. Ramanujan's second approximation (1914), exact to 1e-5 down to axes of 1 : 3."""
        total = self.major + self.minor
        h = ((self.major - self.minor) / total) ** 2
        return pi * total * (1 + 3 * h / (10 + sqrt(4 - 3 * h)))

    def filled(self, shape: tuple[int, int]) -> Mask:
        """Pixels of a picture (height, width) whose centre lies inside.

        >>> int(Ellipse(8, 8, 5, 3, 0).filled((17, 17)).sum())
        45
        """
        rows, columns = np.indices(shape)
        down, right = rows - self.row, columns - self.column
        along = right * cos(self.angle) + down * sin(self.angle)
        across = down * cos(self.angle) - right * sin(self.angle)
        return (along / self.major) ** 2 + (across / self.minor) ** 2 <= 1


def of(mask: Mask) -> Ellipse:
    """The ellipse of a mask (height, width): by its second moments, or fitted to what is visible of it.

    In pictures of 128 px the circumference of heads that lack up to a fifth at one side is right to 1 %; of heads that
    lack a tenth at each of two sides to 3 %, and with more missing it is too small.

    Raises:
        ValueError: the mask is no area: blank, a line, or a few pixels.
    """
    rows, columns = np.nonzero(mask)
    spread = np.cov(np.stack([rows, columns])) if len(rows) > 4 else np.zeros((2, 2))
    values, vectors = np.linalg.eigh(spread)
    if values[0] < 0.5:
        raise ValueError(f"a mask of {len(rows)} px has no ellipse; expected an area several pixels wide")
    cut = cut_sides(mask)
    if cut:
        try:
            return fitted(_visible(mask, cut))
        except ValueError:
            pass  # too little is seen for a fit
    angle = atan2(vectors[0, 1], vectors[1, 1])
    return Ellipse(float(rows.mean()), float(columns.mean()), 2 * sqrt(values[1]), 2 * sqrt(values[0]), angle)


def circumference_mm(mask: Mask, pixel_mm: float) -> float:
    """Circumference of a head from its mask (height, width) and the pixel size; ValueError as `of`."""
    return of(mask).circumference * pixel_mm


def cut_sides(mask: Mask) -> list[str]:
    """Sides of a mask that are straight, because the picture ends there: of top, bottom, left, right.

    The picture's border need not be the array's: a letterboxed picture ends in black. So a side counts as cut where
    its outermost row or column of pixels is longer than that of an ellipse in the same box, `_CUT_PX` further in.
    """
    if not mask.any():
        return []
    top, bottom, left, right = _box(mask)
    box = mask[top : bottom + 1, left : right + 1]
    height, width = box.shape
    across, down = _chord(width, height), _chord(height, width)
    sides = {"top": box[0], "bottom": box[-1], "left": box[:, 0], "right": box[:, -1]}
    return [side for side, edge in sides.items() if edge.sum() > (across if side in ("top", "bottom") else down)]


def fitted(points: NDArray[np.float64]) -> Ellipse:
    """Least-squares ellipse through points (n, 2), row and column.

    Halir and Flusser, "Numerically stable direct least squares fitting of ellipses", 1998.

    Raises:
        ValueError: fewer than 12 points, or points that lie on no ellipse.
    """
    refused = ValueError(f"{len(points)} points lie on no ellipse; expected 12 or more along one")
    if len(points) < 12:
        raise refused
    centre, spread = points.mean(axis=0), max(*points.std(axis=0), 1.0)
    v, u = ((points - centre) / spread).T
    quadratic = np.stack([u * u, u * v, v * v], axis=1)
    linear = np.stack([u, v, np.ones_like(u)], axis=1)
    mixed, scatter = quadratic.T @ linear, linear.T @ linear
    if np.linalg.cond(scatter) > 1e10:
        raise refused
    back = -np.linalg.solve(scatter, mixed.T)
    reduced = np.array([[0, 0, 0.5], [0, -1, 0], [0.5, 0, 0]]) @ (quadratic.T @ quadratic + mixed @ back)
    vectors = np.real(np.linalg.eig(reduced).eigenvectors)
    discriminant = 4 * vectors[0] * vectors[2] - vectors[1] ** 2
    if not (discriminant > 0).any():
        raise refused
    conic = vectors[:, int(discriminant.argmax())]
    a, b, c, d, e, f = np.concatenate([conic, back @ conic]) * np.sign(conic[0])
    form = np.array([[a, b / 2], [b / 2, c]])
    middle = np.linalg.solve(form, [-d / 2, -e / 2])
    size = float(middle @ form @ middle - f)
    values, vectors = np.linalg.eigh(form)
    if size <= 0 or values[0] <= 0:
        raise refused
    minor, major = (float(spread * sqrt(size / value)) for value in values[::-1])
    column, row = centre[::-1] + spread * middle
    return Ellipse(float(row), float(column), major, minor, atan2(vectors[1, 0], vectors[0, 0]))


def _chord(width: int, height: int) -> float:
    """Length of the chord that an ellipse filling a box has `_CUT_PX` below its top."""
    return width * sqrt(max(0.0, 1 - (1 - 2 * _CUT_PX / max(height, 2 * _CUT_PX)) ** 2))


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """First and last row, first and last column that a non-blank mask covers."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _visible(mask: Mask, cut: list[str]) -> NDArray[np.float64]:
    """Points (n, 2) halfway between the pixels inside and outside a mask, but for those on its cut sides."""
    inside = np.pad(mask, 1)
    found: list[NDArray[np.float64]] = []
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        edge = inside & ~np.roll(inside, (-down, -right), axis=(0, 1))
        found.append(np.argwhere(edge) - 1 + 0.5 * np.array([down, right]))
    points = np.concatenate(found)
    rows, columns = points[:, 0], points[:, 1]
    top, bottom, left, right = _box(mask)
    # A cut off corner is rounded by resizing: what lies within a pixel of the cut is left out, too.
    dropped = {
        "top": rows < top + 1,
        "bottom": rows > bottom - 1,
        "left": columns < left + 1,
        "right": columns > right - 1,
    }
    return points[~np.any([dropped[side] for side in cut], axis=0)]
