"""Copies of training pictures, whole or in part: mirrored, cropped, regraded, compressed, turned a little, drawn on,
or set into another picture.

Local descriptors find which training pictures share spots with a picture; a placement that many of these spots agree
on is laid over it; and the region that then looks the same says how alike the two are. Nothing is learned, so nothing
has to be trained on anybody's scans.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask
from tasks.imaging.keypoints import Keypoints, describe, mirrored, upside_down
from tasks.quality.copies.cells import Cells, partition
from tasks.quality.copies.interface import interface
from tasks.quality.copies.placing import Placement, agreement, place, scaled

COPY = 0.35
"""Similarity from which a picture is a copy. Of 427 pictures of strangers (BUSI, BUS-UCLM, HC18) 8 reached it; changed
copies of whole pictures lie above 0.65, a lesion set into a stranger's picture at 0.4 and more unless it is tiny (a
hundredth of the picture)."""
SAME = 0.45
"""Similarity from which two training pictures are no strangers: one frame, or two of one sweep."""

SIDE = 256
_LEVELS, _APART = 9, 6
_MATCH = 0.84
"""Cosine between descriptors from which two spots may be the same."""
_LEAST_MATCHES = 4
_PLACED = 8
"""Training pictures that are tried in each orientation, those with most matches first."""
_LAID = 3
"""Placements that are laid over the picture, those with most spots first."""
_AGREES = 0.8
_LINE = 0.5
"""Coherence of a descriptor's gradients, 0..1, from which it shows a line."""
_HALF_SPOTS, _HALF_SHARE = 10.0, 0.05
"""Spots, and share of the picture, at which either counts for one half."""


@dataclass(frozen=True)
class Match:
    """A training picture that another one resembles: its number, `similarity` 0..1, the `spots` that say so, and the
    `share` of the picture, 0..1, that looks the same."""

    row: int
    similarity: float
    spots: int
    share: float


@dataclass(frozen=True)
class Index:
    """Training pictures to search in. It takes about 120 kB a picture, whatever their size."""

    small: list[Grey] = field(repr=False)
    hidden: list[Mask | None] = field(repr=False)
    owner: NDArray[np.int64] = field(repr=False)
    xy: NDArray[np.float32] = field(repr=False)
    cells: Cells = field(repr=False)

    def __len__(self) -> int:
        return len(self.small)

    @classmethod
    def of(cls, pictures: Iterable[Grey]) -> "Index":
        """The index of pictures, each (h, w); read once, one at a time."""
        small: list[Grey] = []
        places: list[NDArray[np.float32]] = []
        vectors: list[NDArray[np.float16]] = []
        shapes: dict[tuple[int, ...], list[int]] = {}
        for row, picture in enumerate(pictures):
            points = _described(picture)
            small.append(scaled(picture, SIDE))
            places.append(points.xy)
            vectors.append(points.vectors.astype(np.float16))
            shapes.setdefault(picture.shape, []).append(row)
        hidden: list[Mask | None] = [None] * len(small)
        for rows in shapes.values():
            drawn = interface([small[row] for row in rows])
            if drawn is not None:
                for row in rows:
                    seen = _seen(places[row], drawn)
                    hidden[row], places[row], vectors[row] = drawn, places[row][seen], vectors[row][seen]
        sizes = [len(xy) for xy in places]
        if not sum(sizes):
            raise ValueError(f"found nothing to recognise in {len(small)} training pictures; are they blank?")
        owner = np.repeat(np.arange(len(small)), sizes)
        xy = np.concatenate([xy * _size(picture) for xy, picture in zip(places, small, strict=True)])
        return cls(small, hidden, owner, xy.astype(np.float32), partition(vectors))

    def search(self, picture: Grey, without: Collection[int] = ()) -> list[Match]:
        """The training pictures that a picture (h, w) resembles, the most alike first; often none.

        `without` are numbers of training pictures to leave out.
        """
        small, points = scaled(picture, SIDE), _described(picture)
        barred = np.isin(np.arange(len(self)), list(without))
        found: dict[int, Match] = {}
        for image, row, placement in self._placed(small, points, barred)[:_LAID]:
            share = agreement(self.small[row], image, placement, SIDE, _AGREES, self.hidden[row])
            match = Match(row, _similarity(placement.spots, share), placement.spots, share)
            if row not in found or match.similarity > found[row].similarity:
                found[row] = match
        return sorted(found.values(), key=lambda match: (-match.similarity, match.row))

    def _placed(self, small: Grey, points: Keypoints, barred: NDArray[np.bool_]) -> list[tuple[Grey, int, Placement]]:
        """Orientations of the picture, training pictures and their placements, most spots first."""
        found: list[tuple[Grey, int, Placement]] = []
        for image, turned in _orientations(small, points):
            left, right = self.cells.matches(turned.vectors, _MATCH)
            owner = self.owner[right]
            counts = np.where(barred, 0, np.bincount(owner, minlength=len(self)))
            for row in np.argsort(-counts, kind="stable")[:_PLACED].tolist():
                if counts[row] < _LEAST_MATCHES:
                    break
                own = owner == row
                placement = place(self.xy[right[own]].astype(np.float64), (turned.xy * _size(image))[left[own]])
                if placement is not None:
                    found.append((image, row, placement))
        return sorted(found, key=lambda candidate: -candidate[2].spots)


def _orientations(image: Grey, points: Keypoints) -> Iterator[tuple[Grey, Keypoints]]:
    """The picture as it is, mirrored, upside down, and both."""
    yield image, points
    yield image[:, ::-1].copy(), mirrored(points)
    yield image[::-1].copy(), upside_down(points)
    yield image[::-1, ::-1].copy(), upside_down(mirrored(points))


def _similarity(spots: int, share: float) -> float:
    """Geometric mean of two pieces of evidence, each growing from 0 to 1: many spots, and a large region."""
    return float(np.sqrt(spots / (spots + _HALF_SPOTS) * share / (share + _HALF_SHARE)))


def _described(picture: Grey) -> Keypoints:
    """Keypoints that look unlike a line: along a skull or the skin all spots are alike (as in Lowe 2004, 4.1)."""
    points = describe(picture, SIDE, _LEVELS, _APART)
    by_orientation = points.vectors.reshape(len(points.vectors), 8, 16).sum(2)
    # Opposite gradients are one direction: angles count twice.
    turned = np.abs(by_orientation @ np.exp(2j * np.pi * np.arange(8) / 4)) / (by_orientation.sum(1) + 1e-6)
    unlike = turned < _LINE
    return Keypoints(points.xy[unlike], points.level[unlike], points.vectors[unlike])


def _seen(xy: NDArray[np.float32], hidden: Mask) -> NDArray[np.bool_]:
    """Which positions, shares of width and height, do not lie where `hidden` is True."""
    at = np.minimum((xy * hidden.shape[::-1]).astype(np.int64), np.array(hidden.shape[::-1]) - 1)
    return ~hidden[at[:, 1], at[:, 0]]


def _size(picture: Grey) -> NDArray[np.float64]:
    """Width and height of a picture scaled to `SIDE`."""
    height, width = picture.shape
    return np.array([width, height]) * (SIDE / (height * width) ** 0.5)
