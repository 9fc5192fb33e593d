"""How an ultrasound picture looks, in numbers that can be compared between sources: grey levels, speckle, depth,
layers, lesion. One dict of floats a picture; NaN where a picture cannot tell."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from tasks.imaging import Grey, Mask

Real = NDArray[np.float64]

BANDS = ((0.0, 0.125), (0.125, 0.25), (0.25, 0.375), (0.375, 0.5))
"""Radial frequency bands, cycles per pixel; speckle at 128 px lives in the upper three."""

ASSUMED_DB = 60.0
"""Dynamic range taken for every scanner when grey levels are turned back into amplitude: the true one is unknown."""

TISSUE = 20.0
"""Local mean grey level from which on speckle is measured: below, black clips it."""


@dataclass(frozen=True)
class Compared:
    """One statistic of ours against a reference.

    `ours` and `theirs` are the three quartiles. `distance` is the Wasserstein-1 distance over the reference's
    standard deviation, `low` and `high` its 90 % bootstrap interval, `covered` whether the reference's median lies
    inside our quartiles.
    """

    name: str
    ours: tuple[float, float, float]
    theirs: tuple[float, float, float]
    distance: float
    low: float
    high: float

    @property
    def covered(self) -> bool:
        return self.ours[0] <= self.theirs[1] <= self.ours[2]


def describe(image: Grey, mask: Mask | None) -> dict[str, float]:
    """Every statistic of one picture; those of the lesion are left out without a mask.

    Args:
        image: grey levels, (height, width), black where no sound went.
        mask: True inside the lesion or head.

    Raises:
        ValueError: the picture is black.
    """
    frame = content(image)
    grey = image[frame].astype(np.float64)
    found = {"frame: height over width": grey.shape[0] / grey.shape[1]}
    found |= _levels(grey) | _texture(grey) | _layers(grey)
    if mask is not None and mask.any():
        found |= _lesion(grey, mask[frame])
    return found


def content(image: Grey) -> tuple[slice, slice]:
    """The smallest box that holds everything brighter than padding (mean of a row or column above 2)."""
    rows, columns = (np.flatnonzero(image.mean(axis=axis) > 2) for axis in (1, 0))
    if not rows.size or not columns.size:
        raise ValueError("the picture is black; expected tissue somewhere")
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def fine(grey: Real) -> Real:
    """What is finer than about 5 px."""
    return grey - np.asarray(ndimage.gaussian_filter(grey, 2))


def band_power(residual: Real) -> list[float]:
    """Mean spectral power in each of BANDS, squared grey levels a pixel."""
    spectrum = np.abs(np.fft.fft2(residual)) ** 2 / residual.size
    radius = np.hypot(np.fft.fftfreq(residual.shape[0])[:, None], np.fft.fftfreq(residual.shape[1])[None, :])
    return [float(spectrum[(radius >= low) & (radius < high)].mean()) for low, high in BANDS]


def _levels(grey: Real) -> dict[str, float]:
    profile = grey.mean(axis=1)
    depth = np.linspace(0, 1, len(profile))
    slope = float(np.polyfit(depth[depth > 0.1], profile[depth > 0.1], 1)[0])
    deep, shallow = profile[depth > 0.75].mean(), profile[(depth > 0.1) & (depth < 0.5)].mean()
    return {
        "grey: mean": float(grey.mean()),
        "grey: sd": float(grey.std()),
        "grey: share black (< 8)": float((grey < 8).mean()),
        "grey: share saturated (> 247)": float((grey > 247).mean()),
        "depth: slope, levels per height": slope,
        "depth: deepest quarter over shallow half": float(deep / max(shallow, 1.0)),
    }


def _texture(grey: Real) -> dict[str, float]:
    """First-order statistics in homogeneous tissue, autocorrelation and spectrum of the fine residual.

    Homogeneous: the quarter of the tissue where the picture smoothed by 2.5 px changes least.
    """
    mean = np.asarray(ndimage.gaussian_filter(grey, 3))
    tissue = mean > TISSUE
    if tissue.sum() < 200:
        return {}
    residual = fine(grey)
    change = np.asarray(ndimage.gaussian_gradient_magnitude(grey, 2.5))
    even = tissue & (change <= np.quantile(change[tissue], 0.25))
    amplitude = 10 ** (grey / 255 * ASSUMED_DB / 20)
    local = _local(amplitude)
    spread = np.sqrt(np.maximum(_local(amplitude**2) - local**2, 1e-9))
    power = _local(amplitude**2)
    power_spread = np.maximum(_local(amplitude**4) - power**2, 1e-9)
    shares = np.array(band_power(residual * tissue))
    return {
        "speckle: sd in even tissue, levels": float(np.sqrt(np.median(_local(residual**2)[even]))),
        "speckle: amplitude SNR (60 dB)": float(np.median((local / spread)[even])),
        "speckle: Nakagami m (60 dB)": float(np.median((power**2 / power_spread)[even])),
        "texture: sd finer than 5 px": float(residual[tissue].std()),
        "texture: sd from 5 to 20 px": float((grey - residual - ndimage.gaussian_filter(grey, 8)).std()),
        "texture: half width down, px": _half_width(residual, tissue, 0),
        "texture: half width across, px": _half_width(residual, tissue, 1),
    } | {
        f"spectrum: share {low:g} to {high:g}": float(share)
        for (low, high), share in zip(BANDS, shares / shares.sum(), strict=True)
    }


def _local(values: Real) -> Real:
    return np.asarray(ndimage.uniform_filter(values, 7))


def _half_width(residual: Real, tissue: Mask, axis: int) -> float:
    """Lag, in pixels, at which the residual's autocorrelation falls to one half, between whole lags linearly."""
    kept = np.moveaxis(residual * tissue, axis, 0)
    energy = float((kept**2).sum())
    before = 1.0
    for lag in range(1, 6):
        now = float((kept[lag:] * kept[:-lag]).sum()) / energy
        if now <= 0.5:
            return lag - 1 + (before - 0.5) / (before - now)
        before = now
    return 5.0


def _layers(grey: Real) -> dict[str, float]:
    """Layers are bands across the picture: the lateral mean changes down, and edges lie flat."""
    profile = ndimage.gaussian_filter1d(grey.mean(axis=1), 1)
    depth = np.linspace(-1, 1, len(profile))
    bands = profile - np.polyval(np.polyfit(depth, profile, 3), depth)
    down, across = (
        np.asarray(ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(grey, 1.5, axis, order=1), 1.5, 1 - axis))
        for axis in (0, 1)
    )
    xx, yy, xy = (
        np.asarray(ndimage.gaussian_filter(a * b, 4)) for a, b in ((across, across), (down, down), (across, down))
    )
    energy = xx + yy
    coherence = np.hypot(yy - xx, 2 * xy) / np.maximum(energy, 1e-9)
    return {
        "layers: gradient of the lateral mean": float(np.sqrt((np.diff(profile[3:-3]) ** 2).mean())),
        "layers: sd of the detrended lateral mean": float(bands.std()),
        "layers: coherence of the structure tensor": float((coherence * energy).sum() / energy.sum()),
        "layers: flatness, -1 upright to 1 flat": float((yy - xx).sum() / energy.sum()),
    }  # fmt: skip


def _lesion(grey: Real, mask: Mask) -> dict[str, float]:
    """The largest lesion of a picture: outline, contrast with tissue beside it at its own depth, what lies behind."""
    labels = np.asarray(measure.label(mask))
    mask = np.asarray(labels == 1 + int(np.bincount(labels.ravel())[1:].argmax()))
    region = measure.regionprops(mask.astype(np.uint8))[0]
    top, left, bottom, right = region.bbox
    perimeter = max(float(measure.perimeter(mask)), 1.0)
    found = {
        "lesion: share of the frame": float(mask.mean()),
        "lesion: width over height": (right - left) / (bottom - top),
        "lesion: depth of its centre": float(region.centroid[0]) / grey.shape[0],
        "lesion: compactness, 1 is a disc": float(4 * np.pi * mask.sum() / perimeter**2),
        "lesion: solidity": float(region.solidity),
    }
    signed = np.asarray(ndimage.distance_transform_edt(mask)) - np.asarray(ndimage.distance_transform_edt(~mask))
    width = max(4.0, 0.6 * float(np.sqrt(mask.sum() / np.pi)))
    rows = np.arange(grey.shape[0])[:, None]
    ring = (signed < -2) & (signed > -2 - width) & (rows >= top) & (rows < bottom)
    core = signed > 1
    if ring.sum() < 12 or core.sum() < 6:
        return found
    inside, outside = grey[core], grey[ring]
    near_in, near_out = grey[(signed > 0) & (signed <= 2)].mean(), grey[(signed < 0) & (signed >= -2)].mean()
    found |= {
        "lesion: grey inside": float(inside.mean()),
        "lesion: contrast, levels": float(inside.mean() - outside.mean()),
        "lesion: sd inside": float(inside.std()),
        "lesion: sd inside over beside": float(inside.std() / max(outside.std(), 1.0)),
        "lesion: step at the outline, levels": float(near_out - near_in),
    }
    end = min(grey.shape[0], bottom + max(4, (bottom - top) // 2))
    third = (right - left) // 4
    behind = grey[bottom + 1 : end, left + third : right - third]
    pad = max(3, (right - left) // 2)
    beside = np.hstack([grey[bottom + 1 : end, max(0, left - pad) : left], grey[bottom + 1 : end, right : right + pad]])
    if behind.size >= 9 and beside.size >= 9:
        found["lesion: behind against beside, levels"] = float(behind.mean() - beside.mean())
    return found


def compare(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], seed: int = 0, resamples: int = 200
) -> list[Compared]:
    """Statistic by statistic; those that fewer than 8 pictures of either side have are left out."""
    rng = np.random.default_rng([seed, 19])
    out: list[Compared] = []
    for name in dict.fromkeys(name for row in theirs for name in row):
        a, b = (np.array([row[name] for row in side if np.isfinite(row.get(name, np.nan))]) for side in (ours, theirs))
        if min(a.size, b.size) < 8:
            continue
        scale = max(float(b.std()), 1e-6)
        drawn = [_wasserstein(rng.choice(a, a.size), rng.choice(b, b.size)) / scale for _ in range(resamples)]
        low, high = (float(v) for v in np.quantile(drawn, (0.05, 0.95)))
        out.append(Compared(name, _quartiles(a), _quartiles(b), _wasserstein(a, b) / scale, low, high))
    return out


def _quartiles(values: Real) -> tuple[float, float, float]:
    low, middle, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
    return low, middle, high


def _wasserstein(a: Real, b: Real) -> float:
    """Mean distance of the quantile functions, at 199 levels."""
    levels = np.linspace(0.005, 0.995, 199)
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).mean())
