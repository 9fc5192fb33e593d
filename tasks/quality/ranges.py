"""Are grey levels and speckle where those of real training images are?

A handful of statistics of the picture, of its lesion and of the ring around it, and the distance of each picture from
the real training images in all of them together. Limits of each statistic alone, as in NVIDIA's NV-Generate, let
pass what no real picture combines, such as smooth grain at the grey level at which real lesions are grainy.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.quality.extractors.regions import content, lesions
from tasks.quality.judge import Pictures
from tasks.quality.judged import Evidence, is_lesion

_LEAST = 8
"""Fewer real training images than this have no range."""
_MOST = 2000
"""More are thinned out evenly: a range is no surer for them, only slower."""
_SHRINKAGE = 0.1
_EDGE = 0.99
"""The range holds this share of real training images."""
_FINEST = 0.01
"""Least scale of a statistic: a pixel in ten thousand, a hundredth of a grey level, a logarithm's hundredth."""
_BATCH = 64
_LEVEL = 0.3  # grey levels: what 8 bits can tell of a deviation

Real = NDArray[np.float64]


def intensity_range(evidence: Evidence) -> NDArray[np.float32]:
    """Distance of an image's grey levels from those of real training images; above 1 it is farther than 99 % of them.
    NaN where fewer than 8 of its kind, with or without lesion, are known."""
    return _distance(evidence, levels)


def speckle_range(evidence: Evidence) -> NDArray[np.float32]:
    """Distance of an image's grain from that of real training images; above 1 it is farther than 99 % of them.
    NaN where fewer than 8 of its kind, with or without lesion, are known."""
    return _distance(evidence, grain)


def levels(images: Grey, masks: Mask) -> Real:
    """Grey levels, (n, 14): mean, deviation, and shares that are almost black and almost white, of the picture, its
    lesion and the ring; mean of the lesion less that of the ring; deepest third less the shallowest."""
    found: list[Real] = []
    grey, regions = images.astype(np.float64), _regions(images, masks)
    for region in regions:
        mean = _mean(grey, region)
        deviation = np.sqrt(np.maximum(_mean(grey**2, region) - mean**2, 0))
        found += [mean, deviation, np.sqrt(_mean(images < 8, region)), np.sqrt(_mean(images > 247, region))]
    whole, lesion, ring = regions
    depth = np.cumsum(whole.any(axis=2), axis=1) / np.maximum(whole.any(axis=2).sum(axis=1), 1)[:, None]
    deep, shallow = (whole & (third & whole.any(axis=2))[:, :, None] for third in (depth > 2 / 3, depth <= 1 / 3))
    found += [_mean(grey, lesion) - _mean(grey, ring), _mean(grey, deep) - _mean(grey, shallow)]
    return np.stack(found, axis=1)


def grain(images: Grey, masks: Mask) -> Real:
    """Fine structure, (n, 18): of the picture, its lesion and the ring each the logarithms of the deviation finer than
    3 px, of that from 3 to 9 px, and of their ratio; of the steps across over the steps down; of the kurtosis of the
    finest; and of the mean grey level, because dark tissue has little grain."""
    grey = images.astype(np.float64)
    smooth = _smooth(grey, 3)
    finest, finer = grey - smooth, smooth - _smooth(grey, 9)
    across = np.abs(np.diff(grey, axis=2, prepend=grey[:, :, :1]))
    down = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    found: list[Real] = []
    for region in _regions(images, masks):
        power = _mean(finest**2, region)
        first, second = np.sqrt(power) + _LEVEL, np.sqrt(_mean(finer**2, region)) + _LEVEL
        steps = (_mean(across, region) + _LEVEL) / (_mean(down, region) + _LEVEL)
        kurtosis = _mean(finest**4, region) / np.maximum(power, _LEVEL**2) ** 2
        found += [np.log(first), np.log(second), np.log(first / second), np.log(steps), np.log1p(kurtosis)]
        found.append(np.log(_mean(grey, region) + 2))
    return np.stack(found, axis=1)


def distances(values: Real, reference: Real) -> Real:
    """Mahalanobis distance of each row of `values` (n, d) from the rows of `reference` (m, d), over the distance that
    99 % of those keep.

    Centre and scales are median and quantiles, and the covariance is shrunk towards independence, so that a few odd
    training images do not stretch the range and a few dozen suffice. What is the same in nearly all of them, such as
    no white at all, is scaled by its deviation: the few others would be the whole range.
    """
    low, centre, high = np.quantile(reference, (0.16, 0.5, 0.84), axis=0)
    least = np.maximum(_FINEST, 1e-3 * np.abs(centre))
    spread = (high - low) / 2
    scale = np.maximum(np.where(spread > least, spread, reference.std(axis=0)), least)
    known, asked = ((rows - centre) / scale for rows in (reference, values))
    covariance = np.cov(known.clip(-6, 6).T)  # an outlier counts as one, not as its square
    size = np.trace(covariance) / len(covariance)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * size * np.eye(len(covariance))
    inverse = np.linalg.inv(shrunk + 1e-9 * np.eye(len(covariance)))
    edge = np.quantile(_length(known, inverse), _EDGE)
    return _length(asked, inverse) / max(float(edge), 1e-9)


def _distance(evidence: Evidence, statistics: Callable[[Grey, Mask], Real]) -> NDArray[np.float32]:
    scored, train = evidence.scored, evidence.train
    out = np.full(len(scored), np.nan, np.float32)
    for kind in (True, False):
        asked, known = (np.flatnonzero(is_lesion(side.labels) == kind) for side in (scored, train))
        if len(known) > _MOST:
            known = known[np.linspace(0, len(known) - 1, _MOST).astype(np.intp)]
        if len(asked) and len(known) >= _LEAST:
            rows, reference = (_described(side, at, statistics) for side, at in ((scored, asked), (train, known)))
            out[asked] = distances(rows, reference)
    return out


def _described(pictures: Pictures, rows: NDArray[np.intp], statistics: Callable[[Grey, Mask], Real]) -> Real:
    def parts() -> Iterator[Real]:
        for at in range(0, len(rows), _BATCH):
            batch = rows[at : at + _BATCH]
            yield statistics(pictures.images[batch], pictures.masks[batch])

    return np.concatenate(list(parts()))


def _regions(images: Grey, masks: Mask) -> tuple[Mask, Mask, Mask]:
    whole = content(images)
    return whole, *lesions(images, masks, whole)


def _smooth(grey: Real, px: int) -> Real:
    """Mean of each pixel's square of this side."""
    return np.asarray(ndimage.uniform_filter1d(ndimage.uniform_filter1d(grey, px, axis=1), px, axis=2))


def _mean(values: NDArray[np.floating] | Mask, region: Mask) -> Real:
    """Mean of each image's values inside its region, (n,)."""
    return np.where(region, values, 0).sum(axis=(1, 2)) / np.maximum(region.sum(axis=(1, 2)), 1)


def _length(rows: Real, inverse: Real) -> Real:
    return np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", rows, inverse, rows), 0))
