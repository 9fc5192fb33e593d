"""What can be said of a mask in words: its margin, its orientation, the trimester of a head.

The same code names the real masks that a model learns captions from, the masks that are made by quota, and those
that came out: a prompt never says what its mask does not show. Words are those of the embedded base's vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from tasks.imaging import Mask
from tasks.imaging.ellipse import circumference_mm
from tasks.synthesis import shape
from tasks.synthesis.shape import Margin, Margins, Orientation

Attribute = Literal["margin", "orientation", "trimester"]
Trimester = Literal["first", "second", "third"]
HEAD = "head"
"""The label of fetal heads."""
TRIMESTERS: tuple[Trimester, ...] = ("first", "second", "third")

_MARGINS: Mapping[Margin, str] = {
    "circumscribed": "smooth margin",
    "microlobulated": "irregular margin",
    "spiculated": "spiculated margin",
}
_ORIENTATIONS: Mapping[Orientation, str] = {"parallel": "parallel", "not parallel": "taller than wide"}
_BEGIN_WEEKS = 14, 28  # of the second and third trimester, by ACOG

_Name = TypeVar("_Name", bound=str)


def words(kinds: Sequence[Attribute], mask: Mask | None, pixel_mm: float | None, margins: Margins) -> tuple[str, ...]:
    """What a prompt says of a mask (H, W); nothing where it is blank, too small, or shows no head's size.

    Args:
        kinds: which attributes, in the order of the words.
        pixel_mm: size of a pixel of `mask`; without it no trimester is known.
        margins: thresholds learned from all training masks: `margins_of`.
    """
    if not kinds or mask is None or int(mask.sum()) < shape.SMALLEST_PX:
        return ()
    found: list[str] = []
    outline = shape.outline(mask) if {"margin", "orientation"} & set(kinds) else None
    for kind in kinds:
        if kind == "trimester":
            if pixel_mm is not None:
                found.append(f"{trimester(circumference_mm(mask, pixel_mm))} trimester")
        elif outline is not None:
            named = margins.name(outline.roughness)
            found.append(_MARGINS[named] if kind == "margin" else _ORIENTATIONS[outline.orientation])
    return tuple(found)


def margins_of(masks: Sequence[tuple[str, Mask]]) -> Margins:
    """Thresholds of the margin from (label, mask) of the training split; masks cut off by the picture do not count."""
    return shape.learn_margins([(label, shape.outline(mask)) for label, mask in masks if shape.is_whole(mask)])


def trimester(head_circumference_mm: float) -> Trimester:
    """The trimester that a head circumference speaks for.

    >>> trimester(80.0), trimester(180.0), trimester(300.0)
    ('first', 'second', 'third')
    """
    weeks = gestational_weeks(head_circumference_mm)
    return TRIMESTERS[sum(weeks >= begin for begin in _BEGIN_WEEKS)]


def gestational_weeks(head_circumference_mm: float) -> float:
    """Gestational age by head circumference: Hadlock et al., Radiology 152(2), 1984, from 14 weeks on.

    >>> round(gestational_weeks(175.0), 1)
    20.0
    """
    cm = head_circumference_mm / 10
    return 8.96 + 0.540 * cm + 0.0003 * cm**3


def by_share(shares: Mapping[_Name, float], point: float) -> tuple[_Name, float]:
    """The name whose part of 0 to 1 holds `point`, and where in that part it lies, 0 to 1 again.

    Points that are evenly spread give every name its share; what is left of them is evenly spread again, so that one
    quota can be read inside another.

    >>> by_share({"a": 1, "b": 3}, 0.625)
    ('b', 0.5)
    """
    edges = np.cumsum([0.0, *shares.values()])
    at = point * edges[-1]
    number = min(int(np.searchsorted(edges[1:], at, side="right")), len(shares) - 1)
    low, high = edges[number], edges[number + 1]
    return list(shares)[number], float((at - low) / (high - low))
