"""Near-duplicates: copies of one frame, whatever was cropped, resized, brightened, drawn on or mirrored in between.

Keypoints propose pairs, a placement laid over each pair checks them by their speckle: see `COPY` below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from storage.images import pixels_sha256
from tasks.imaging import Grey
from tasks.imaging.keypoints import SIDE, Keypoints, describe
from tasks.screening.alignment import Placement, place, resembles, speckle_agreement, thumbnail
from tasks.screening.matching import Proposal, Turn, proposals, turned

COPY = 0.8
"""Speckle agreement from which two pictures are copies. On BUSI copies measure 0.83 to 1, neighbouring frames of
one sweep 0.45 to 0.8, other frames of one lesion 0.15 to 0.3, strangers below 0.2."""
LIKELY_COPY = 1.1
"""Sum of speckle agreement and of the share of keypoints that agree, from which two pictures are copies although noise,
compression or clipped levels took much of the speckle: where half of the keypoints agree at the least. Such copies
measure 1.2 and more; frames of one sweep up to 1.1, but for neighbours that hardly differ."""
SCENE = 0.45
"""Speckle agreement from which two pictures are frames of one sweep. HC18's fetal heads, which share the scanner's
interface, reach 0.38 between strangers."""

_LEAST_INLIERS = 8
"""BUSI's own copies have 112 and more; copies cut to a quarter of the area 9 to 61, to a sixth mostly none."""
_SCENE_INLIERS = 16


@dataclass(frozen=True)
class Likeness:
    """What is alike in a list of pictures, each as one number a picture; equal numbers belong together.

    `copies`: copies of one frame. `scenes`: also neighbouring frames of one sweep; every set of copies lies inside
    one scene. Splits must keep scenes together.
    """

    copies: list[int]
    scenes: list[int]


class Pictures(Protocol):
    """A list of pictures, uint8 (h, w) or None, or something that reads each when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Grey | None: ...


@dataclass(frozen=True)
class _Described:
    """What stays in memory of a picture; `size` is its width and height once scaled to `SIDE`."""

    points: Keypoints
    thumbnail: NDArray[np.float32]
    size: NDArray[np.float64]


def near_duplicate_groups(images: Sequence[Grey | None]) -> list[int]:
    """One number a picture; pictures with the same number are copies of one frame. None is a group of its own."""
    return find_alike(images).copies


def find_alike(images: Pictures, advance: Callable[[int], None] | None = None) -> Likeness:
    """Copies and scenes among `images`. `advance` counts pictures described.

    Each is asked for once, then those of proposed pairs again; some 70 kB of each stay in memory.
    """
    copies, scenes = DisjointSet(range(len(images))), DisjointSet(range(len(images)))
    first: dict[str, int] = {}
    described: list[_Described] = []
    for k in range(len(images)):
        image = images[k]
        described.append(_describe(image))
        if image is not None:
            # The same pixels are copies without a closer look: blank pictures have no keypoints.
            copies.merge(k, first.setdefault(pixels_sha256(image), k))
        if advance:
            advance(1)
    for proposal in proposals([one.points for one in described]):
        i, j = proposal.i, proposal.j
        if not copies.connected(i, j) and (verdict := _verdict(proposal, described[i], described[j], images)):
            (copies if verdict == "copy" else scenes).merge(i, j)
    for k in range(len(images)):
        scenes.merge(k, copies[k])
    return Likeness(_numbered(copies, len(images)), _numbered(scenes, len(images)))


def _describe(image: Grey | None) -> _Described:
    if image is None:
        image = np.zeros((1, 1), np.uint8)
    points, (height, width) = describe(image), image.shape
    # Half the memory: whoever reads them widens a tile at a time.
    vectors = cast(NDArray[np.float32], points.vectors.astype(np.float16))
    size = np.array([width, height]) * (SIDE / (height * width) ** 0.5)
    return _Described(Keypoints(points.xy, points.level, vectors), thumbnail(image), size)


def _verdict(proposal: Proposal, one: _Described, two: _Described, images: Pictures) -> Literal["copy", "scene"] | None:
    """What two pictures are to each other, as far as the matches of the proposal say so."""
    flip, points = _slices(proposal.turn), turned(one.points, proposal.turn)
    placement = place(points.xy[proposal.left] * one.size, two.points.xy[proposal.right] * two.size)
    if placement is None or placement.inliers < _LEAST_INLIERS:
        return None
    if not resembles(one.thumbnail[flip], two.thumbnail, placement, SIDE):
        return None
    left, right = images[proposal.i], images[proposal.j]
    assert left is not None  # without pictures there are no keypoints
    assert right is not None
    agreement = speckle_agreement(np.ascontiguousarray(left[flip]), right, placement, SIDE)
    if agreement < SCENE:
        return None
    share = _share(placement, points.xy * one.size, two.size)
    if agreement >= COPY or (share >= 0.5 and agreement + share >= LIKELY_COPY):
        return "copy"
    return "scene" if placement.inliers >= _SCENE_INLIERS else None


def _slices(turn: Turn) -> tuple[slice, slice]:
    """Index that turns a picture (h, w)."""
    across, upright = turn
    return slice(None, None, -1 if upright else 1), slice(None, None, -1 if across else 1)


def _share(placement: Placement, spots: NDArray[np.float64], size: NDArray[np.float64]) -> float:
    """Share of the `spots` (n, 2) of one picture that found their match, of those that lie within the other."""
    there = spots * placement.scale + placement.shift
    inside = ((there > 0) & (there < size)).all(1)
    return placement.inliers / max(int(inside.sum()), 1)


def _numbered(sets: DisjointSet, count: int) -> list[int]:
    """The number of the first member of each one's set."""
    first: dict[int, int] = {}
    return [first.setdefault(sets[k], k) for k in range(count)]
