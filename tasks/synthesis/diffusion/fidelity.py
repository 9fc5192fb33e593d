"""What an autoencoder, or any other machine, does to speckle: error, spectrum, correlation, first-order statistics."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging.appearance import BANDS, band_power, fine


@dataclass(frozen=True)
class Speckle:
    """Texture of a set of pictures once everything coarser than about 5 px is taken away.

    `power`: mean spectral power in each of BANDS, grey levels squared a pixel. `down`, `across`: correlation with
    the picture shifted by one pixel. `deviation`: median local standard deviation, grey levels. `contrast`: median
    of local deviation over local mean, the inverse of the speckle's signal-to-noise ratio on the grey scale.
    """

    power: tuple[float, ...]
    down: float
    across: float
    deviation: float
    contrast: float


def speckle(images: NDArray[np.uint8]) -> Speckle:
    """Texture of pictures (N, H, W), measured where the local mean is above 20 grey levels."""
    rows: list[list[float]] = []
    for image in images:
        grey = image.astype(np.float64)
        mean = ndimage.gaussian_filter(grey, 4)
        residual = fine(grey)
        tissue = mean > 20
        if tissue.sum() < 500:
            continue
        deviation = np.sqrt(ndimage.gaussian_filter(residual**2, 4))
        energy = (residual[tissue] ** 2).mean()
        lag_down = (residual * np.roll(residual, 1, 0))[tissue].mean() / energy
        lag_across = (residual * np.roll(residual, 1, 1))[tissue].mean() / energy
        local, ratio = np.median(deviation[tissue]), np.median(deviation[tissue] / mean[tissue])
        rows.append([*band_power(residual * tissue), lag_down, lag_across, float(local), float(ratio)])
    if not rows:
        raise ValueError(f"none of {len(images)} pictures shows tissue; expected grey levels above 20 somewhere")
    mean_row = np.mean(rows, axis=0)
    bands = len(BANDS)
    return Speckle(tuple(float(p) for p in mean_row[:bands]), *(float(v) for v in mean_row[bands:]))


def reconstruction(images: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> dict[str, object]:
    """How pictures (N, H, W) came back: error, and speckle before and after."""
    before, after = speckle(images), speckle(decoded)
    error = images.astype(np.float64) - decoded.astype(np.float64)
    squared = max(float((error**2).mean()), 1e-12)  # equal pictures: 168 dB rather than infinity
    return {
        "n": len(images),
        "absolute_error": round(float(np.abs(error).mean()), 3),
        "psnr_db": round(float(10 * np.log10(255**2 / squared)), 2),
        "power_ratio": [round(b / a, 3) for a, b in zip(before.power, after.power, strict=True)],
        "before": _rounded(before),
        "after": _rounded(after),
    }


def _rounded(texture: Speckle) -> dict[str, object]:
    return {
        name: [round(v, 3) for v in value] if isinstance(value, tuple) else round(float(value), 4)
        for name, value in asdict(texture).items()
    }
