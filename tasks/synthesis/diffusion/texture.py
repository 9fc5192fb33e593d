"""How far apart the textures of two sets of pictures are, as losses; and the crops that autoencoders learn from."""

import numpy as np
import torch
from numpy.typing import NDArray

WINDOW = 16
"""Side of the tiles whose spectra are compared, pixels."""


def spectral_distance(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of log amplitude between short-time spectra of (B, 1, H, W) pictures."""
    return (torch.log(_spectra(fake).abs() + 0.05) - torch.log(_spectra(real).abs() + 0.05)).abs().mean()


def power_distance(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of log power in four radial bands of short-time spectra.

    A band averages over many coefficients, so unlike single amplitudes its error does not favour too little power.
    """
    down = torch.fft.fftfreq(WINDOW, device=real.device)[:, None]
    radius = torch.hypot(down, torch.fft.rfftfreq(WINDOW, device=real.device)[None, :])
    bands = torch.stack([(radius >= low) & (radius < low + 0.125) for low in (0.0, 0.125, 0.25, 0.375)]).float()
    bands = (bands / bands.sum((1, 2), keepdim=True)).flatten(1).T
    power = [torch.log((_spectra(grey).abs() ** 2).flatten(-2) @ bands + 0.01) for grey in (fake, real)]
    return (power[0] - power[1]).abs().mean()


def crops(images: NDArray[np.uint8], side: int, batch: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops (batch, C, side, side) in -1..1 of images (N, H, W) or of images with their masks (N, H, W, 3),
    mirrored, with other gain and contrast: a decoder must not learn one scanner's."""
    side = min(side, *images.shape[1:3])
    planes = images[..., None] if images.ndim == 3 else images
    out = np.empty((batch, planes.shape[3], side, side), np.float32)
    for row, index in enumerate(rng.integers(0, len(images), batch)):
        top, left = rng.integers(0, images.shape[1] - side + 1), rng.integers(0, images.shape[2] - side + 1)
        crop = planes[index, top : top + side, left : left + side].astype(np.float32) / 255
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.5:
            grey = crop[..., :2]  # the third channel, where there is one, is a mask
            crop[..., :2] = np.clip(grey * rng.uniform(0.6, 1.4), 0, 1) ** rng.uniform(0.8, 1.25)
        out[row] = crop.transpose(2, 0, 1) * 2 - 1
    return torch.from_numpy(out)


def _spectra(grey: torch.Tensor) -> torch.Tensor:
    """Windowed spectra of half-overlapping tiles: complex (B, tiles down, tiles across, WINDOW, WINDOW/2 + 1)."""
    taper = torch.hann_window(WINDOW, device=grey.device)
    tiles = grey[:, 0].unfold(1, WINDOW, WINDOW // 2).unfold(2, WINDOW, WINDOW // 2)
    tiles = tiles - tiles.mean((-1, -2), keepdim=True)
    return torch.fft.rfft2(tiles * taper[:, None] * taper[None, :])
