"""Greedy set selection: leave out, one look after the other, what the set is nearer to real images without.

Backward elimination. The kernel distance changes by an exact amount with every sample, kept up to date in O(n); the
Fréchet distance by its derivative, exact to first order, one eigendecomposition a look. Whatever a look proposes is
measured exactly before it counts, so the distance never rises. It ends where the set is as near to the real images
as equally many real ones would be: what is left then is noise, and to follow it would cost variety for nothing.

Lower is not better for its own sake: a set chosen to be near some images is nearer to those than to others. So it is
chosen against training images and must be measured on held-out ones, before and after, beside the share that stays
and the coverage that is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.quality.evidence import check_features
from tasks.quality.frechet import frechet_distance
from tasks.quality.kernel import polynomial_kernel
from tasks.quality.resampling import group_halves

Features = NDArray[np.float64]

BLOCK = 4096
"""Samples that are looked at together: their kernel takes 128 MiB. More are chosen from block by block."""

_HALVES = 10


class SelectParams(Record):
    """Whether and how samples are left out to bring the set nearer to the real one."""

    by: Literal["kid", "fid"] = Field(default="kid", description="the distance that is to fall")
    least: float = Field(default=0.5, gt=0, le=1, description="smallest share of the samples of every label that stays")
    step: float = Field(default=0.01, gt=0, le=0.25, description="share left out between two looks; smaller is slower")


@dataclass(frozen=True)
class Chosen:
    """Which samples stay, and their distance to the real images they were chosen against."""

    kept: NDArray[np.bool_] = field(repr=False)
    before: float
    after: float


class Distance(Protocol):
    """A distance of the remaining samples to real images, while samples are left out."""

    def value(self) -> float:
        """Of those that remain."""
        ...

    def floor(self) -> float:
        """What equally many real images would have."""
        ...

    def changes(self) -> Features:
        """By how much, about, it changes where each sample is left out, (n,)."""
        ...

    def without(self, rows: NDArray[np.intp]) -> "Distance":
        """The same once these rows are left out too."""
        ...


def select(
    synthetic: Features,
    real: Features,
    labels: Sequence[str],
    real_groups: Sequence[str],
    params: SelectParams,
    seed: int,
) -> Chosen:
    """Choose from samples with features (n, d), n ≤ `BLOCK`, against the features of real images.

    Args:
        synthetic: features of the samples.
        real: features of the real images.
        labels: of the samples.
        real_groups: of the real images; the floor is measured between halves of them that share none.
        params: what to lower, and how far.
        seed: of the halves.

    Raises:
        ValueError: NaN, fewer than two rows, different dimensions; for fid, fewer rows on a side than twice the
            dimension.
    """
    check_features(real, synthetic)
    refuse_few(params, len(synthetic), len(real), synthetic.shape[1])
    start: Distance
    if params.by == "kid":
        start = KernelDistance.of(synthetic, real)
    else:
        start = FrechetDistance.of(synthetic, real, _bias(real, real_groups, seed))
    kept = np.ones(len(synthetic), np.bool_)
    names, member = np.unique(np.asarray(labels), return_inverse=True)
    room = np.bincount(member) - np.array([ceil(params.least * n) for n in np.bincount(member)])
    distance, value = start, start.value()
    batch = max(1, round(params.step * len(synthetic)))
    while value > distance.floor():
        changes = np.where(kept & (room[member] > 0), distance.changes(), np.inf)
        worst = _within(np.argsort(changes, kind="stable")[:batch], changes, member, room)
        if not len(worst):
            break
        proposed = distance.without(worst)
        lower = proposed.value()
        if lower < value:
            distance, value = proposed, lower
            kept[worst] = False
            room -= np.bincount(member[worst], minlength=len(names))
        elif len(worst) == 1:
            break
        else:
            batch = max(1, len(worst) // 2)
    return Chosen(kept, before=start.value(), after=value)


def refuse_few(params: SelectParams, synthetic: int, real: int, dimension: int) -> None:
    """Refuse a choice by fid from fewer images than twice the dimension, where it follows noise.

    Raises:
        ValueError: with what to do.
    """
    if min(synthetic, real) < 2:
        raise ValueError(f"selection needs at least 2 images on each side, found {synthetic} synthetic and {real} real")
    if params.by == "fid" and min(synthetic, real) < 2 * dimension:
        raise ValueError(
            f"selection by fid needs at least {2 * dimension} images on each side (twice the feature dimension), found "
            f"{synthetic} synthetic and {real} real: select by kid"
        )


def _within(
    rows: NDArray[np.intp], changes: Features, member: NDArray[np.intp], room: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The rows that lower the distance, as far as each label has room."""
    rows = rows[changes[rows] < 0]
    seen = np.zeros(len(room), np.intp)
    chosen: list[int] = []
    for row in rows.tolist():
        if seen[member[row]] < room[member[row]]:
            seen[member[row]] += 1
            chosen.append(row)
    return np.array(chosen, np.intp)


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased kernel distance (Bińkowski et al., arXiv 1801.01401) by sums over pairs.

    `within` is the kernel (n, n) of the samples with a diagonal of 0, `rows` its sums over those that remain,
    `across` each sample's mean kernel with the real images.
    """

    within: Features = field(repr=False)
    rows: Features = field(repr=False)
    across: Features = field(repr=False)
    kept: NDArray[np.bool_] = field(repr=False)
    constant: float

    @classmethod
    def of(cls, synthetic: Features, real: Features) -> "KernelDistance":
        """All samples against the real images."""
        within = polynomial_kernel(synthetic, synthetic)
        np.fill_diagonal(within, 0)
        across = np.zeros(len(synthetic))
        constant = 0.0
        for at in range(0, len(real), BLOCK):  # neither kernel with the real images is ever held whole
            part = real[at : at + BLOCK]
            across += polynomial_kernel(synthetic, part).sum(1)
            constant += sum(
                float(polynomial_kernel(part, real[b : b + BLOCK]).sum()) for b in range(0, len(real), BLOCK)
            )
        constant -= float((((real * real).sum(1) / real.shape[1] + 1) ** 3).sum())
        pairs = len(real) * (len(real) - 1)
        everything = np.ones(len(synthetic), np.bool_)
        return cls(within, within.sum(1), across / len(real), everything, constant / pairs)

    def floor(self) -> float:
        """0: it has no bias."""
        return 0.0

    def value(self) -> float:
        """The distance."""
        m = int(self.kept.sum())
        if m < 2:
            return float("inf")
        rows, across = float(self.rows[self.kept].sum()), float(self.across[self.kept].sum())
        return self.constant + rows / (m * (m - 1)) - 2 * across / m

    def changes(self) -> Features:
        """Exact."""
        m = int(self.kept.sum())
        if m < 3:
            return np.full(len(self.rows), np.inf)
        pairs, across = self.rows[self.kept].sum(), self.across[self.kept].sum()
        without = (pairs - 2 * self.rows) / ((m - 1) * (m - 2)) - 2 * (across - self.across) / (m - 1)
        return without - (pairs / (m * (m - 1)) - 2 * across / m)

    def without(self, rows: NDArray[np.intp]) -> "KernelDistance":
        """Without these rows."""
        kept = self.kept.copy()
        kept[rows] = False
        sums = self.rows - self.within[:, rows].sum(1)
        return KernelDistance(self.within, sums, self.across, kept, self.constant)


@dataclass(frozen=True)
class FrechetDistance:
    """The Fréchet distance (Heusel et al., arXiv 1706.08500) by mean and covariance of those that remain.

    Its derivative by the covariance B is I - T, where T is the optimal map from B to the real covariance A:
    A^½ (A^½ B A^½)^-½ A^½. `bias` is what each 1/N on either side adds (Chong and Forsyth, arXiv 1911.07023), `real`
    the number of real images.
    """

    features: Features = field(repr=False)
    kept: NDArray[np.bool_] = field(repr=False)
    real_mean: Features = field(repr=False)
    real_root: Features = field(repr=False)
    mean: Features = field(repr=False)
    covariance: Features = field(repr=False)
    values: Features = field(repr=False)
    vectors: Features = field(repr=False)
    bias: float
    real: int

    @classmethod
    def of(cls, synthetic: Features, real: Features, bias: float) -> "FrechetDistance":
        """All samples against the real images."""
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(real, rowvar=False)))
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        d = synthetic.shape[1]
        blank = cls(
            synthetic, np.ones(0, np.bool_), real.mean(0), root, np.zeros(d), root, values, vectors, bias, len(real)
        )
        return blank._of(np.ones(len(synthetic), np.bool_))

    def _of(self, kept: NDArray[np.bool_]) -> "FrechetDistance":
        rest = self.features[kept]
        covariance = np.atleast_2d(np.cov(rest, rowvar=False))
        values, vectors = np.linalg.eigh(self.real_root @ covariance @ self.real_root)
        mean = rest.mean(0)
        return replace(self, kept=kept, mean=mean, covariance=covariance, values=values.clip(0), vectors=vectors)

    def floor(self) -> float:
        """The bias at the present numbers."""
        return self.bias * (1 / int(self.kept.sum()) + 1 / self.real)

    def value(self) -> float:
        """The distance."""
        offset = self.mean - self.real_mean
        spread = np.trace(self.covariance) + (self.real_root**2).sum() - 2 * np.sqrt(self.values).sum()
        return float(offset @ offset + spread)

    def changes(self) -> Features:
        """To first order."""
        m = int(self.kept.sum())
        if m < 3:
            return np.full(len(self.features), np.inf)
        roots = np.sqrt(self.values)
        inverse = np.divide(1, roots, out=np.zeros_like(roots), where=roots > 1e-8 * max(roots[-1], 1e-300))
        half = self.real_root @ self.vectors
        slope = np.eye(len(roots)) - (half * inverse) @ half.T
        offset, centred = self.mean - self.real_mean, self.features - self.mean
        bent = np.einsum("ni,ij,nj->n", centred, slope, centred, optimize=True)
        moved = -2 / (m - 1) * (centred @ offset)
        return moved + ((slope * self.covariance).sum() - m / (m - 1) * bent) / (m - 2)

    def without(self, rows: NDArray[np.intp]) -> "FrechetDistance":
        """Without these rows."""
        kept = self.kept.copy()
        kept[rows] = False
        return self._of(kept)


def _bias(real: Features, groups: Sequence[str], seed: int) -> float:
    """By how much each 1/N on either side raises the Fréchet distance of images like these."""
    halves = group_halves(groups, len(real), _HALVES, np.random.default_rng([seed, 40]))
    found = [frechet_distance(real[a], real[b]) / (1 / len(a) + 1 / len(b)) for a, b in halves]
    return float(np.mean(found)) if found else 0.0
