"""Speckle statistics: is the grain of a picture that of ultrasound, and of this scanner?

Scanners show the logarithm of the echo envelope. In fully developed speckle the envelope is Rayleigh distributed, and
its natural logarithm then deviates by pi / sqrt(24) whatever the echogenicity, so that the deviation of grey levels in
small even blocks tells how many levels one neper takes (Dutt and Greenleaf, J. Acoust. Soc. Am. 99:3817, 1996; Prager
et al., Pattern Recognition Letters 24:705, 2003). With that slope grey levels are undone to an envelope, whose shape
is then tested: ratio of mean to deviation (1.91 for Rayleigh), Nakagami's m (1 for Rayleigh; Shankar, IEEE TUFFC
47:727, 2000) and distance from the Rayleigh law. Its scale is lost, since gain is unknown. The grain's size is the
width of its autocorrelation along and across the beam (Wagner et al., IEEE Trans. Sonics Ultrason. 30:156, 1983), its
fineness the slope of the power spectrum.

Compared pictures must be of one size. Resampling and filters of the scanner make no picture exactly Rayleigh: numbers
mean something beside those of real scans only.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Grey, Mask
from tasks.quality.extractors import Extractor
from tasks.quality.extractors.regions import content, lesions

BLOCK = 8
"""Side of the blocks, pixels: some ten speckles, little anatomy."""

_NAMES = (
    "log_levels_per_neper",
    "signal_to_noise",
    "log_nakagami_m",
    "rayleigh_distance",
    "width_down",
    "width_across",
)
NAMES = (*_NAMES, "spectral_slope", "fine_share", *(f"lesion_{name}" for name in _NAMES))
"""Of the columns of `WITH_LESION`; those of `WHOLE` are the first eight."""

_VERSION = 1
_RAYLEIGH_LOG_DEVIATION = np.pi / np.sqrt(24)  # of the natural logarithm of a Rayleigh variable
_DARK, _BRIGHT = 4, 251  # cut off by the display: levels at the ends are no samples of the law
_LAGS = 8
_NEPERS = 10.0  # from a block's mean: farther lie only blocks that do not count


def features(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
    """Statistics (n, 14) of images (n, h, w) with masks, blank where healthy; (n, 8) of the pictures without any."""
    return (WHOLE if masks is None else WITH_LESION).features(images, masks)


def _of_pictures(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
    whole, rough = content(images), roughness(images)
    return np.concatenate([grain(images, rough, whole), spectrum(rough, whole)], axis=1)


def _of_regions(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
    whole, rough = content(images), roughness(images)
    inside, _ = lesions(images, np.zeros(images.shape, np.bool_) if masks is None else masks, whole)
    parts = [grain(images, rough, whole), spectrum(rough, whole), grain(images, rough, inside)]
    return np.concatenate(parts, axis=1)


def roughness(images: Grey) -> NDArray[np.float64]:
    """What a mean over 9 × 9 pixels leaves of the grey levels, (n, h, w): grain without anatomy."""
    levels = images.astype(np.float64)
    return levels - ndimage.uniform_filter1d(ndimage.uniform_filter1d(levels, 9, axis=1), 9, axis=2)


def grain(images: Grey, rough: NDArray[np.float64], region: Mask) -> NDArray[np.float64]:
    """The six statistics of the grain inside a region of each picture, (n, 6).

    The first four are of blocks, each half inside the region at least and hardly cut off by the display, the first
    three their medians; 0 where there is no such block.
    """
    blocks = _blocks(images).astype(np.float64)
    shown = (blocks > _DARK) & (blocks < _BRIGHT)
    usable = (_blocks(region).mean(axis=2) >= 0.5) & (shown.mean(axis=2) >= 0.9)
    deviation = blocks.std(axis=2)
    usable &= deviation > 0.5
    slope = _median(deviation, usable) / _RAYLEIGH_LOG_DEVIATION  # grey levels per neper
    slope = np.where(usable.any(axis=1), np.maximum(slope, 1e-3), 1)
    nepers = (blocks - blocks.mean(axis=2, keepdims=True)) / slope[:, None, None]
    envelope = np.exp(nepers.clip(-_NEPERS, _NEPERS))
    power = envelope**2
    mean, mean_power = envelope.mean(axis=2), power.mean(axis=2)
    noise = mean / np.where(usable, envelope.std(axis=2), 1)
    nakagami = mean_power**2 / np.where(usable, power.var(axis=2), 1)  # inverse normalized variance
    columns = [np.log(slope), _median(noise, usable), _median(np.log(nakagami), usable)]
    distance = rayleigh_distance(power / mean_power[:, :, None], usable)
    return np.stack([*columns, distance, *widths(rough, region)], axis=1)


def rayleigh_distance(power: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Largest difference, 0..1, between the distribution of power over its mean and the exponential one, (n,).

    Of all usable blocks of a picture together, at fifteen quantiles; 0 without any.
    """
    samples = np.maximum(usable.sum(axis=1) * power.shape[2], 1)
    distance = np.zeros(len(power))
    for share in np.arange(1, 16) / 16:
        below = ((power <= -np.log(1 - share)).sum(axis=2) * usable).sum(axis=1) / samples
        distance = np.maximum(distance, np.abs(below - share))
    return np.where(usable.any(axis=1), distance, 0)


def widths(rough: NDArray[np.float64], region: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lag in pixels at which the autocorrelation of the grain falls to one half, down and across, each (n,).

    Interpolated between lags; at most 8.
    """
    rough, inside = np.where(region, rough, 0), region.astype(np.float64)
    found: list[NDArray[np.float64]] = []
    for axis in (1, 2):
        correlation = [np.ones(len(rough))]
        power = (rough**2).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
        for lag in range(1, _LAGS + 1):
            here, there = _shifted(rough, axis, lag), _shifted(inside, axis, lag)
            pairs = (there[0] * there[1]).sum(axis=(1, 2))
            product = (here[0] * here[1]).sum(axis=(1, 2)) / np.maximum(pairs, 1)
            correlation.append(product / np.where(power > 1e-9, power, 1))
        found.append(_half_width(np.stack(correlation, axis=1)))
    return found[0], found[1]


def spectrum(rough: NDArray[np.float64], region: Mask) -> NDArray[np.float64]:
    """Slope of log power against log frequency, and log of the power share above a quarter cycle a pixel, (n, 2).

    Of the grain under a Hann window, from 1/16 cycle a pixel to the Nyquist frequency, averaged over directions.
    """
    n, height, width = rough.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.rfft2(np.where(region, rough, 0) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    bands = np.linspace(1 / 16, 1 / 2, 15)
    band = np.digitize(frequency, bands).ravel()
    flat = power.reshape(n, -1)
    of_band = np.stack([flat[:, band == k].mean(axis=1) for k in range(1, len(bands))], axis=1) + 1e-6
    x = np.log((bands[1:] + bands[:-1]) / 2)
    x -= x.mean()
    slope = (np.log(of_band) @ x) / (x @ x)
    total = flat[:, band > 0].sum(axis=1) + 1e-6
    return np.stack([slope, np.log((flat[:, frequency.ravel() > 0.25].sum(axis=1) + 1e-9) / total)], axis=1)


def _blocks(stack: NDArray[np.uint8] | Mask) -> NDArray[np.uint8] | Mask:
    """Blocks of 8 × 8 pixels, (n, blocks, 64); what does not fill one at the right and lower border is left out."""
    n, height, width = stack.shape
    down, across = height // BLOCK, width // BLOCK
    cut = stack[:, : down * BLOCK, : across * BLOCK].reshape(n, down, BLOCK, across, BLOCK)
    return cut.transpose(0, 1, 3, 2, 4).reshape(n, down * across, BLOCK**2)


def _median(values: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Median of the usable values of each row, 0 where there is none."""
    ordered = np.sort(np.where(usable, values, np.inf), axis=1)
    count, row = usable.sum(axis=1), np.arange(len(values))
    low, high = ordered[row, np.maximum(count - 1, 0) // 2], ordered[row, np.minimum(count // 2, values.shape[1] - 1)]
    return np.where(count > 0, (np.where(count > 0, low, 0) + np.where(count > 0, high, 0)) / 2, 0)


def _shifted(stack: NDArray[np.float64], axis: int, lag: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if axis == 1:
        return stack[:, :-lag], stack[:, lag:]
    return stack[:, :, :-lag], stack[:, :, lag:]


def _half_width(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where rows that begin at 1 first pass below one half, between their columns."""
    below = correlation < 0.5
    row = np.arange(len(correlation))
    after = np.where(below.any(axis=1), below.argmax(axis=1), 0)
    before = np.maximum(after - 1, 0)
    high, low = correlation[row, before], correlation[row, after]
    width = before + (high - 0.5) / np.where(after > 0, high - low, 1)
    return np.where(after > 0, width, correlation.shape[1] - 1.0)


def _digest(columns: tuple[str, ...]) -> str:
    return hashlib.sha256(f"speckle {_VERSION} {BLOCK} {columns}".encode()).hexdigest()


WITH_LESION = Extractor("speckle", _digest(NAMES), len(NAMES), _of_regions)
"""Of pictures with masks: 14 numbers."""

WHOLE = Extractor("speckle-whole", _digest(NAMES[:8]), 8, _of_pictures)
"""Of pictures alone: 8 numbers."""
