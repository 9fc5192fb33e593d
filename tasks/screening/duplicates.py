"""Near-duplicates: copies of one frame, whatever was cropped, resized, brightened or drawn on in between.

Keypoints propose pairs (a few seconds for hundreds of pictures), a placement laid over each pair checks them by
their speckle: see `COPY` below.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from storage.images import pixels_sha256
from tasks.imaging import Grey
from tasks.screening.alignment import Placement, place, resembles, speckle_agreement, thumbnail
from tasks.screening.keypoints import SIDE, Keypoints, describe

COPY = 0.8
"""Speckle agreement from which two pictures are copies. On BUSI copies measure 0.83 to 1, neighbouring frames of
one sweep 0.45 to 0.8, other frames of one lesion 0.15 to 0.3, strangers below 0.2."""
LIKELY_COPY = 0.6
"""Lower agreement that still means copies where half of the keypoints agree: strong compression, heavy marks."""
SCENE = 0.45
"""Speckle agreement from which two pictures are frames of one sweep. HC18's fetal heads, which share the scanner's
interface, reach 0.38 between strangers."""

_MATCH = 0.84
"""Cosine between descriptors from which two spots may be the same."""
_DIMENSIONS = 48
_LEAST_MATCHES = 4
_LEAST_INLIERS = 5
_SCENE_INLIERS = 8
_TILE = 2048


@dataclass(frozen=True)
class Likeness:
    """What is alike in a list of pictures, each as one number a picture; equal numbers belong together.

    `copies`: copies of one frame. `scenes`: also neighbouring frames of one sweep; every set of copies lies inside
    one scene. Splits must keep scenes together.
    """

    copies: list[int]
    scenes: list[int]


def near_duplicate_groups(images: Sequence[Grey | None]) -> list[int]:
    """One number a picture; pictures with the same number are copies of one frame. None is a group of its own."""
    return find_alike(images).copies


def find_alike(images: Sequence[Grey | None], advance: Callable[[int], None] | None = None) -> Likeness:
    """Copies and scenes among `images`, each uint8 (h, w). `advance` counts pictures described."""
    described: list[Keypoints] = []
    none = Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.int16), np.zeros((0, 128), np.float32))
    for image in images:
        described.append(none if image is None else describe(image))
        if advance:
            advance(1)
    blank = np.zeros((1, 1), np.float32)
    thumbnails = [blank if image is None else thumbnail(image) for image in images]
    copies, scenes = _identical(images), list[tuple[int, int]]()
    settled = set(copies)
    for i, j, matched in _candidates(described):
        left, right = images[i], images[j]
        if (i, j) in settled or left is None or right is None:
            continue
        a = described[i].xy[matched[:, 0]] * _size(left)
        b = described[j].xy[matched[:, 1]] * _size(right)
        placement = place(a, b)
        if placement is None or placement.inliers < _LEAST_INLIERS:
            continue
        if not resembles(thumbnails[i], thumbnails[j], placement, SIDE):
            continue
        agreement = speckle_agreement(left, right, placement, SIDE)
        likely = agreement >= LIKELY_COPY and _share(placement, described[i], left, right) >= 0.5
        if agreement >= COPY or likely:
            copies.append((i, j))
        elif agreement >= SCENE and placement.inliers >= _SCENE_INLIERS:
            scenes.append((i, j))
    return Likeness(_joined(copies, len(images)), _joined(copies + scenes, len(images)))


def _identical(images: Sequence[Grey | None]) -> list[tuple[int, int]]:
    """Pairs of pictures with the same pixels: blank ones have no keypoints."""
    first: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for i, image in enumerate(images):
        if image is not None:
            earlier = first.setdefault(pixels_sha256(image), i)
            pairs += [(earlier, i)] if earlier != i else []
    return pairs


def _size(image: Grey) -> NDArray[np.float64]:
    """Width and height of a picture scaled to `SIDE`."""
    height, width = image.shape
    return np.array([width, height]) * (SIDE / (height * width) ** 0.5)


def _share(placement: Placement, a: Keypoints, left: Grey, right: Grey) -> float:
    """Share of the keypoints of `a` in the overlap that found their match."""
    there = (a.xy * _size(left)) * placement.scale + placement.shift
    inside = ((there > 0) & (there < _size(right))).all(1)
    return placement.inliers / max(int(inside.sum()), 1)


def _candidates(described: Sequence[Keypoints]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Pairs i < j of pictures with enough matching spots, and the matches as (n, 2) keypoint numbers."""
    counts = np.array([len(points.xy) for points in described])
    starts = np.concatenate([[0], np.cumsum(counts)])
    if counts.sum() < 2:
        return
    owner = np.repeat(np.arange(len(described)), counts)
    left, right = _matches(_reduced(np.concatenate([points.vectors for points in described])), owner)
    pair = owner[left] * np.int64(len(described)) + owner[right]
    order = np.argsort(pair, kind="stable")
    pairs, begins, sizes = np.unique(pair[order], return_index=True, return_counts=True)
    for code, begin, size in zip(pairs.tolist(), begins.tolist(), sizes.tolist(), strict=True):
        if size >= _LEAST_MATCHES:
            i, j = divmod(code, len(described))
            which = order[begin : begin + size]
            yield i, j, np.stack([left[which] - starts[i], right[which] - starts[j]], axis=1)


def _reduced(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Descriptors on their leading principal axes, length 1: a third of the work, the same neighbours."""
    centred = vectors - vectors.mean(0)
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, ::-1][:, :_DIMENSIONS]
    reduced = centred @ axes
    return np.asarray(reduced / (np.linalg.norm(reduced, axis=1, keepdims=True) + 1e-6), np.float32)


def _matches(vectors: NDArray[np.float32], owner: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of all pairs of spots above `_MATCH` that belong to two pictures, the earlier picture first."""
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for a in range(0, len(vectors), _TILE):
        for b in range(a, len(vectors), _TILE):
            hits = np.flatnonzero(vectors[a : a + _TILE] @ vectors[b : b + _TILE].T > _MATCH)
            i, j = np.divmod(hits, min(_TILE, len(vectors) - b))
            i, j = i + a, j + b
            apart = owner[i] < owner[j]
            lefts.append(i[apart])
            rights.append(j[apart])
    return np.concatenate(lefts), np.concatenate(rights)


def _joined(pairs: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Connected components, numbered by their first member."""
    if not count:
        return []
    links = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return [int(first[label]) for label in labels]
