"""Finding equal descriptors among very many: only those in the nearest cells of a partition are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]

DIMENSIONS = 48
_PER_CELL = 128
_MOST_CELLS = 4096
_PROBES = 3
"""Cells looked into for each descriptor: finds three quarters of what comparing with all would find."""
_ROUNDS = 3
_SAMPLED = 50_000
_STEP = 8192


@dataclass(frozen=True)
class Cells:
    """Descriptors on their leading principal axes, sorted by the cell they lie in (an inverted file; Sivic and
    Zisserman, "Video Google", ICCV 2003)."""

    mean: Vectors = field(repr=False)
    axes: Vectors = field(repr=False)
    centres: Vectors = field(repr=False)
    begins: Numbers = field(repr=False)
    order: Numbers = field(repr=False)
    vectors: NDArray[np.float16] = field(repr=False)

    def matches(self, asked: Vectors, least: float) -> tuple[Numbers, Numbers]:
        """Numbers of all pairs (asked, stored) of descriptors whose cosine is above `least`."""
        queries = _reduced(asked, self.mean, self.axes)
        if not len(queries) or not len(self.order):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        probes = min(_PROBES, len(self.centres))
        near = np.argpartition(-(queries @ self.centres.T), probes - 1, axis=1)[:, :probes].ravel()
        row = np.repeat(np.arange(len(queries)), probes)
        sequence = np.argsort(near, kind="stable")
        near, row = near[sequence], row[sequence]
        visited, first = np.unique(near, return_index=True)
        lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for cell, own in zip(visited.tolist(), np.split(row, first[1:]), strict=True):
            begin, end = int(self.begins[cell]), int(self.begins[cell + 1])
            if begin == end:
                continue
            likeness = queries[own] @ self.vectors[begin:end].astype(np.float32).T
            left, right = np.divmod(np.flatnonzero(likeness > least), end - begin)
            lefts.append(own[left])
            rights.append(self.order[begin + right])
        return np.concatenate(lefts), np.concatenate(rights)


def partition(parts: Sequence[NDArray[np.float16]]) -> Cells:
    """Cells of about `_PER_CELL` descriptors, by a few rounds of k-means on a sample.

    `parts` are descriptors (n, d), a part for each picture; they are numbered in that order.
    """
    total = sum(len(part) for part in parts)
    every = max(1, total // _SAMPLED)
    sample = np.concatenate([part[::every] for part in parts]).astype(np.float32)
    mean = sample.mean(0)
    centred = sample - mean
    axes = np.asarray(np.linalg.eigh(centred.T @ centred).eigenvectors[:, ::-1][:, :DIMENSIONS], np.float32)
    points = np.concatenate([_reduced(part.astype(np.float32), mean, axes).astype(np.float16) for part in parts])
    count = int(np.clip(total // _PER_CELL, 1, _MOST_CELLS))
    chosen = points[np.random.default_rng(0).permutation(total)[: 32 * count]].astype(np.float32)
    centres = chosen[:count]
    for _ in range(_ROUNDS):
        sums = np.zeros_like(centres)
        np.add.at(sums, _nearest(chosen, centres), chosen)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-6), centres)
    cell = _nearest(points, centres)
    order = np.argsort(cell, kind="stable")
    begins = np.searchsorted(cell[order], np.arange(len(centres) + 1))
    return Cells(mean, axes, centres, begins, order, points[order])


def _nearest(points: NDArray[np.float16] | Vectors, centres: Vectors) -> Numbers:
    chunks = (points[at : at + _STEP].astype(np.float32) for at in range(0, len(points), _STEP))
    return np.concatenate([(chunk @ centres.T).argmax(1) for chunk in chunks])


def _reduced(vectors: Vectors, mean: Vectors, axes: Vectors) -> Vectors:
    """On the leading axes, length 1."""
    reduced = (vectors - mean) @ axes
    return np.asarray(reduced / (np.linalg.norm(reduced, axis=1, keepdims=True) + 1e-6), np.float32)
