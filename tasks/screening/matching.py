"""Which spots of which pictures look alike: proposals for what a closer look then accepts or refuses.

Spots are looked up in inverted lists (Sivic & Zisserman 2003), each list the spots nearest to one of √n centres, so the
work grows with n √n for n spots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.imaging.keypoints import Keypoints, mirrored, upside_down

Turn = tuple[bool, bool]
"""Whether a picture is mirrored left for right, and turned top to bottom, before it is compared."""
TURNS: tuple[Turn, ...] = ((False, False), (True, False), (False, True), (True, True))

_MATCH = 0.84
"""Cosine between descriptors from which two spots may be the same."""
_DIMENSIONS = 48
_LEAST_MATCHES = 8
"""Copies of whole frames share 60 spots and more, strangers of one scanner mostly fewer than this."""
_TILE = 2048
_EXACT = 20_000
"""Up to so many spots, each is compared with all others."""
_PROBES = 8
"""Inverted lists looked into for each spot."""
_STRONGEST = 16
"""Matches kept of one spot: what every picture shows, a logo or the edge of the fan, proposes no more than that."""

Spots = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Proposal:
    """Pictures `i` < `j`, of which the first, once turned, matches the second in spots `left`, `right` (n,): numbers
    among the keypoints of each."""

    i: int
    j: int
    turn: Turn
    left: Spots
    right: Spots


def turned(points: Keypoints, turn: Turn) -> Keypoints:
    """The keypoints of the turned picture."""
    points = mirrored(points) if turn[0] else points
    return upside_down(points) if turn[1] else points


def proposals(described: Sequence[Keypoints]) -> Iterator[Proposal]:
    """Pairs of pictures with enough matching spots, turn by turn, those with the most matches first."""
    counts = np.array([len(points.xy) for points in described], np.int64)
    if counts.sum() < 2:
        return
    starts, owner = np.cumsum(counts) - counts, np.repeat(np.arange(len(described)), counts)
    spots = Keypoints(
        *(np.concatenate([getattr(one, name) for one in described]) for name in ("xy", "level", "vectors"))
    )
    lists = _Lists(spots.vectors, owner)
    for turn in TURNS:
        asking, found = lists.matches(turned(spots, turn).vectors)
        # Turning the one and turning the other say the same, so that each pair is named with the earlier one turned.
        back = owner[asking] > owner[found]
        left, right = np.where(back, found, asking), np.where(back, asking, found)
        left, right = np.divmod(np.unique(left * np.int64(len(owner)) + right), np.int64(len(owner)))
        pair = owner[left] * np.int64(len(described)) + owner[right]
        order = np.argsort(pair, kind="stable")
        pairs, begins, sizes = np.unique(pair[order], return_index=True, return_counts=True)
        for k in np.argsort(-sizes, kind="stable").tolist():
            if sizes[k] < _LEAST_MATCHES:
                break
            i, j = divmod(int(pairs[k]), len(described))
            which = order[begins[k] : begins[k] + sizes[k]]
            yield Proposal(i, j, turn, left[which] - starts[i], right[which] - starts[j])


class _Lists:
    """All spots, sorted into lists by the centre that is nearest to them."""

    def __init__(self, vectors: Vectors, owner: NDArray[np.int64]) -> None:
        self._owner = owner
        self._mean, self._axes = _principal(vectors)
        self._vectors = self._reduced(vectors)
        count = 1 if len(vectors) <= _EXACT else int((_PROBES * len(vectors)) ** 0.5)
        chosen = np.random.default_rng(0).choice(len(vectors), count, replace=False)
        self._centres = self._vectors[np.sort(chosen)]
        home = self._nearest(self._vectors, 1)[:, 0]
        self._members = np.split(np.argsort(home, kind="stable"), np.cumsum(np.bincount(home, minlength=count))[:-1])

    def matches(self, vectors: Vectors) -> tuple[Spots, Spots]:
        """Numbers of the spots that ask with `vectors`, one each, and of spots of other pictures that match them."""
        asking = self._reduced(vectors)
        probed = self._nearest(asking, min(_PROBES, len(self._centres)))
        by_list = np.argsort(probed.ravel(), kind="stable") // probed.shape[1]
        askers = np.split(by_list, np.cumsum(np.bincount(probed.ravel(), minlength=len(self._centres)))[:-1])
        pieces = [
            self._within(asking, tile[at : at + _TILE], members)
            for tile, members in zip(askers, self._members, strict=True)
            for at in range(0, len(tile), _TILE)
        ]
        return _strongest(*(np.concatenate(part) for part in zip(*pieces, strict=True)))

    def _within(self, asking: Vectors, askers: Spots, members: Spots) -> tuple[Spots, Spots, Vectors]:
        """The strongest matches of a tile of spots in one list, with their cosines."""
        near = asking[askers] @ self._vectors[members].T
        row, column = np.nonzero(near > _MATCH)
        apart = self._owner[askers[row]] != self._owner[members[column]]
        row, column = row[apart], column[apart]
        cosines = near[row, column]
        if np.bincount(row, minlength=1).max() > _STRONGEST:
            place = _rank(row, cosines)
            row, column, cosines = row[place < _STRONGEST], column[place < _STRONGEST], cosines[place < _STRONGEST]
        return askers[row], members[column], cosines

    def _reduced(self, vectors: Vectors) -> Vectors:
        """Descriptors on their leading principal axes, length 1: a third of the work, the same neighbours."""
        reduced = np.empty((len(vectors), self._axes.shape[1]), np.float32)
        for at in range(0, len(vectors), _TILE):
            tile = (vectors[at : at + _TILE].astype(np.float32) - self._mean) @ self._axes
            reduced[at : at + _TILE] = tile / (np.linalg.norm(tile, axis=1, keepdims=True) + 1e-6)
        return reduced

    def _nearest(self, vectors: Vectors, count: int) -> Spots:
        """Numbers of the `count` centres nearest to each vector, in no order."""
        found = np.empty((len(vectors), count), np.int64)
        for at in range(0, len(vectors), _TILE):
            near = vectors[at : at + _TILE] @ self._centres.T
            found[at : at + _TILE] = np.argpartition(-near, count - 1, axis=1)[:, :count]
        return found


def _principal(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Mean (128,) and leading principal axes (128, d) of the descriptors."""
    total, square = np.zeros(vectors.shape[1]), np.zeros((vectors.shape[1], vectors.shape[1]))
    for at in range(0, len(vectors), _TILE):
        tile = vectors[at : at + _TILE].astype(np.float32)
        total += tile.sum(0)
        square += tile.T @ tile
    mean = total / len(vectors)
    axes = np.linalg.eigh(square / len(vectors) - np.outer(mean, mean)).eigenvectors[:, ::-1][:, :_DIMENSIONS]
    return mean.astype(np.float32), np.ascontiguousarray(axes, np.float32)


def _strongest(asking: Spots, found: Spots, cosines: Vectors) -> tuple[Spots, Spots]:
    kept = _rank(asking, cosines) < _STRONGEST
    return asking[kept], found[kept]


def _rank(asking: Spots, cosines: Vectors) -> Spots:
    """Of each match, how many of the same spot are stronger."""
    order = np.lexsort((-cosines, asking))
    ranked = asking[order]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    return place
