"""A learned model of fetal heads: ellipses whose size, form, direction, place and pixel size are learned together.

A head in the standard plane is measured as an ellipse, so an ellipse says all of its mask. Learned are size in shares
of the picture and in mm, axis ratio, direction and centre, as one Gaussian copula over the training masks and their
mirror images: a sonographer zooms in on a small head. A drawn head is given the pixel size of the training scan with
which it comes nearest to its size in mm. One that lies where no training head was seen is drawn again.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Mask
from tasks.imaging import ellipse as ellipses
from tasks.imaging.ellipse import Ellipse
from tasks.synthesis import copula
from tasks.synthesis.copula import Copula
from tasks.synthesis.draft import Donor

MINIMUM = 6
"""Fewest masks that ellipses are learned from."""

_SIDED = 2  # numbers that change in a mirror image come first
_ASIDE = 0.01  # largest share of a head that may lie where no training head did


@dataclass(frozen=True)
class Model:
    """What heads look like.

    `numbers` are turn of the major axis (half turns, -1/2 to 1/2) and centre column; log size, log axis ratio and
    centre row, all lengths in shares of the picture's side; where pixel sizes are known, log size in mm. A size is the
    root of an area. `seen` (H, H) is where training heads or their mirror images lie, `pixels_mm` (N,) the pixel sizes
    of the training scans; empty where one is not known.
    """

    numbers: Copula
    seen: Mask
    pixels_mm: NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """A drawn head, (H, H), and its pixel size, where pixel sizes are known."""

    mask: Mask
    ellipse: Ellipse
    pixel_mm: float | None


def learn(donors: Sequence[Donor]) -> Model:
    """The model of these masks, all of one size in pixels; those that are no area do not count.

    Raises:
        ValueError: fewer than MINIMUM of them.
    """
    outlined = [(donor, one) for donor in donors if (one := _ellipse(donor.mask)) is not None]
    if len(outlined) < MINIMUM:
        raise ValueError(
            f"{len(outlined)} masks to learn ellipses from; expected {MINIMUM} or more: add scans, or set shapes to "
            "donors"
        )
    donors, found = [donor for donor, _ in outlined], [one for _, one in outlined]
    side = donors[0].mask.shape[0]
    shares = np.array([np.sqrt(np.pi * one.major * one.minor) / side for one in found])
    pixels_mm = np.array([donor.pixel_mm for donor in donors if donor.pixel_mm is not None])
    known = len(pixels_mm) == len(donors)
    rows: list[list[float]] = []
    for number, (one, share) in enumerate(zip(found, shares, strict=True)):
        alike = [np.log(share), np.log(one.major / one.minor), one.row / side]
        alike += [np.log(share * side * pixels_mm[number])] if known else []
        turn = np.arctan(np.tan(one.angle)) / np.pi
        rows += [[turn, one.column / side, *alike], [-turn, (side - 1 - one.column) / side, *alike]]
    # Turn and column go the other way in a mirror image: so they depend on each other alone.
    blocks = (np.arange(_SIDED), np.arange(_SIDED, len(rows[0])))
    seen = np.any([donor.mask | donor.mask[:, ::-1] for donor in donors], axis=0)
    return Model(copula.learn(np.array(rows), len(donors), blocks), seen, pixels_mm if known else pixels_mm[:0])


def draw(model: Model, rng: np.random.Generator, wanted: Callable[[Head], bool], attempts: int) -> Head | None:
    """A new head that is `wanted`; None if none of `attempts` ellipses was."""
    for _ in range(attempts):
        head = _drawn(model, rng)
        if head is not None and wanted(head):
            return head
    return None


def nearest(mask: Mask, donors: Sequence[Donor]) -> Donor:
    """The real mask that overlaps most with `mask`, each where it lies."""
    return max(donors, key=lambda donor: float((donor.mask & mask).sum() / (donor.mask | mask).sum()))


def _ellipse(mask: Mask) -> Ellipse | None:
    with suppress(ValueError):
        return ellipses.of(mask)
    return None


def _drawn(model: Model, rng: np.random.Generator) -> Head | None:
    side = model.seen.shape[0]
    turn, column, log_share, log_ratio, row, *log_mm = copula.draw(model.numbers, rng)
    radius, stretch = np.exp(log_share) * side / np.sqrt(np.pi), np.exp(log_ratio / 2)
    one = Ellipse(row * side, column * side, radius * stretch, radius / stretch, turn * np.pi)
    mask = one.filled(model.seen.shape)
    if (mask & ~model.seen).sum() > _ASIDE * np.pi * radius**2:
        return None
    if not log_mm:
        return Head(mask, one, None)
    nearest = np.abs(np.log(model.pixels_mm * side) - (log_mm[0] - log_share)).argmin()
    return Head(mask, one, float(model.pixels_mm[nearest]))
