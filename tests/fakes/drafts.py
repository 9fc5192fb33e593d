"""Small healthy pictures, lesion masks and drafts for the stages of synthesis."""

import numpy as np

from tasks.imaging import Grey, Mask
from tasks.plan import GOLDEN
from tasks.synthesis import Donor, Draft

SKIN = 4


def ellipse(px: int, row: float, column: float, height: float, width: float) -> Mask:
    """An ellipse; centre and radii in pixels."""
    rows, columns = np.mgrid[:px, :px]
    return ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1


def sector(px: int, seed: int = 0) -> tuple[Grey, Mask]:
    """A speckled picture in a trapezoid that widens downwards, black around it, and where it is not black."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:px, :px]
    inside = (np.abs(columns - px / 2) < px * (0.25 + 0.2 * rows / px)) & (rows > px * 0.1) & (rows < px * 0.92)
    speckle = np.clip(rng.rayleigh(45, (px, px)) + 40, 40, 255).astype(np.uint8)
    return np.where(inside, speckle, 0).astype(np.uint8), inside


def donors(px: int, label: str = "benign") -> list[Donor]:
    """Three ellipses of different shapes."""
    shapes = [(0.12, 0.16), (0.16, 0.12), (0.1, 0.22)]
    return [
        Donor(f"{label}-{number}", ellipse(px, px / 2, px / 2, height * px, width * px), label, f"p{number}")
        for number, (height, width) in enumerate(shapes)
    ]


def drafts(count: int, background: Grey, label: str = "benign") -> list[Draft]:
    """`count` drafts on one background, seeded from 100."""
    return [
        Draft(
            id=f"{label}-{number}",
            seed=100 + number,
            label=label,
            organ="breast",
            background=background,
            background_id="healthy-1",
            background_kind="real",
            pixel_mm=None,
            group="patient-1",
            image=background,
            point=(number + 0.5) * GOLDEN % 1.0,
        )
        for number in range(count)
    ]
