"""Radiomic statistics: grey levels and texture of a picture and, where it has a mask, of lesion and surrounding ring.

First-order statistics, grey-level co-occurrence (Haralick et al., IEEE Trans. SMC 3:610, 1973) and grey-level run
lengths (Galloway, CGIP 4:172, 1975), as the Image Biomarker Standardisation Initiative names them (Zwanenburg et al.,
doi 10.1148/radiol.2020191145). A Fréchet distance of such features follows downstream segmentation and readers'
ratings better than that of natural-image networks (Konz et al., arXiv 2412.01496).

The numbers are raw, in units as unlike as grey levels and shares: a score divides them by the spread of the real side
alone, so that a strange synthetic set cannot shrink its own distance. All are finite for every picture. Pictures that
are compared must be of one size: texture is measured between neighbouring pixels.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask
from tasks.quality.extractors import Extractor
from tasks.quality.extractors.regions import content, lesions

LEVELS = 16
"""Grey levels of co-occurrence and runs: bins of fixed width 16, not stretched to each picture."""

DISTANCES = (1, 4)
"""Pixels between the two of a pair: within one speckle, and beyond it at 128 px."""

_REGIONS = ("picture", "lesion", "ring")
_FIRST = ("mean", "deviation", "skewness", "kurtosis", "p10", "p90", "entropy")
_PAIRS = ("contrast", "homogeneity", "energy", "correlation")
_RUNS = ("short_runs", "long_runs", "run_share")
_STATISTICS = (*_FIRST, *(f"{name}_{d}" for d in DISTANCES for name in _PAIRS), *_RUNS)
NAMES = tuple(f"{region}_{statistic}" for region in _REGIONS for statistic in _STATISTICS)
"""Of the columns of `WITH_LESION`; those of `WHOLE` are the first third."""

_VERSION = 1
_PAIR_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


def features(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
    """Statistics (n, 54) of images (n, h, w) with masks, blank where healthy; (n, 18) of the pictures without any."""
    return (WHOLE if masks is None else WITH_LESION).features(images, masks)


def _of_pictures(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
    return statistics(images, content(images))


def _of_regions(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
    whole = content(images)
    inside, ring = lesions(images, np.zeros(images.shape, np.bool_) if masks is None else masks, whole)
    return np.concatenate([statistics(images, region) for region in (whole, inside, ring)], axis=1)


def statistics(images: Grey, region: Mask) -> NDArray[np.float64]:
    """The 18 statistics of each picture inside its region, (n, 18); no region may be empty."""
    coarse = images // (256 // LEVELS)
    pairs = [pair_statistics(pair_counts(coarse, region, distance)) for distance in DISTANCES]
    return np.concatenate([first_order(images, region), *pairs, run_lengths(coarse, region)], axis=1)


def first_order(images: Grey, region: Mask) -> NDArray[np.float64]:
    """Mean, deviation, skewness, excess kurtosis, 10th and 90th percentile and entropy (bits, of 32 bins), (n, 7).

    Skewness and kurtosis are 0 where all pixels are equal.
    """
    n = len(images)
    rows = np.repeat(np.arange(n), region.sum(axis=(1, 2)))
    histogram = np.bincount(rows * 256 + images[region], minlength=n * 256).reshape(n, 256)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    levels = np.arange(256.0)
    mean = share @ levels
    centred = levels[None] - mean[:, None]
    second, third, fourth = ((share * centred**power).sum(axis=1) for power in (2, 3, 4))
    flat = second < 1e-9
    spread = np.where(flat, 1, second)
    cumulated = share.cumsum(axis=1)
    low, high = ((cumulated < quantile - 1e-12).sum(axis=1) for quantile in (0.1, 0.9))
    bins = share.reshape(n, 32, 8).sum(axis=2)
    entropy = -(bins * np.log2(np.where(bins > 0, bins, 1))).sum(axis=1)
    skewness, kurtosis = third / spread**1.5, fourth / spread**2 - 3
    columns = mean, np.sqrt(second), np.where(flat, 0, skewness), np.where(flat, 0, kurtosis), low, high, entropy
    return np.stack(columns, axis=1)


def pair_counts(coarse: Grey, region: Mask, distance: int) -> NDArray[np.float64]:
    """How often level i lies `distance` pixels from level j in the four directions, symmetric, (n, 16, 16).

    Both pixels must lie in the region.
    """
    n, height, width = coarse.shape
    counts = np.zeros(n * LEVELS**2)
    place = np.arange(n)[:, None, None] * LEVELS**2
    for down, right in _PAIR_STEPS:
        dy, dx = down * distance, right * distance
        if dy >= height or abs(dx) >= width:
            continue
        here = np.s_[:, : height - dy, max(0, -dx) : width - max(0, dx)]
        there = np.s_[:, dy:, max(0, dx) : width + min(0, dx)]
        both = region[here] & region[there]
        codes = place + coarse[here].astype(np.int32) * LEVELS + coarse[there]
        counts += np.bincount(codes[both], minlength=len(counts))
    found = counts.reshape(n, LEVELS, LEVELS)
    return found + found.transpose(0, 2, 1)


def pair_statistics(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Contrast, homogeneity, energy and correlation of pair counts (n, 16, 16), (n, 4).

    Correlation is 1 where all levels are equal; without any pair the picture counts as uniform.
    """
    total = counts.sum(axis=(1, 2))
    counts[total == 0, 0, 0] = 1
    share = counts / counts.sum(axis=(1, 2), keepdims=True)
    i, j = np.mgrid[:LEVELS, :LEVELS]
    contrast = (share * (i - j) ** 2).sum(axis=(1, 2))
    homogeneity = (share / (1 + (i - j) ** 2)).sum(axis=(1, 2))
    energy = np.sqrt((share**2).sum(axis=(1, 2)))
    mean = (share * i).sum(axis=(1, 2))
    variance = (share * i**2).sum(axis=(1, 2)) - mean**2
    covariance = (share * i * j).sum(axis=(1, 2)) - mean**2
    flat = variance < 1e-9
    correlation = np.where(flat, 1, covariance / np.where(flat, 1, variance))
    return np.stack([contrast, homogeneity, energy, correlation], axis=1)


def run_lengths(coarse: Grey, region: Mask) -> NDArray[np.float64]:
    """Mean of 1/length², log of the mean of length², and runs a pixel, over rows and columns, (n, 3).

    A run is a line of pixels of one level that stays in the region.
    """
    n = len(coarse)
    runs, short, long = np.zeros(n), np.zeros(n), np.zeros(n)
    level = np.where(region, coarse.astype(np.int16), -1)
    for lines in (level, level.transpose(0, 2, 1)):
        flat = np.pad(lines, ((0, 0), (0, 0), (0, 1)), constant_values=-1).ravel()  # a run ends where its line does
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        length = np.diff(starts, append=len(flat))
        inside = flat[starts] >= 0
        picture, length = starts[inside] // (len(flat) // n), length[inside].astype(np.float64)
        runs += np.bincount(picture, minlength=n)
        short += np.bincount(picture, 1 / length**2, minlength=n)
        long += np.bincount(picture, length**2, minlength=n)
    return np.stack([short / runs, np.log(long / runs), runs / (2 * region.sum(axis=(1, 2)))], axis=1)


def _digest(columns: tuple[str, ...]) -> str:
    return hashlib.sha256(f"radiomics {_VERSION} {LEVELS} {DISTANCES} {columns}".encode()).hexdigest()


WITH_LESION = Extractor("radiomics", _digest(NAMES), len(NAMES), _of_regions)
"""Of pictures with masks: 54 numbers."""

WHOLE = Extractor("radiomics-whole", _digest(NAMES[: len(_STATISTICS)]), len(_STATISTICS), _of_pictures)
"""Of pictures alone: 18 numbers."""
