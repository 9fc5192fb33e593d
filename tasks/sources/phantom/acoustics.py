"""From tissue to picture: scatterers, point spread, attenuation, envelope, log compression.

A linear array looking straight down. Everything happens at baseband: a scatterer at depth z contributes with
phase 4 pi f z / c, which is what demodulating the echo of a carrier f leaves, and the pulse is the Gaussian
envelope around it (Jensen's Field II in the limit of a Gaussian pulse and aperture).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

SOUND_MM_PER_US = 1.54
SUPERSAMPLING = 2
"""Simulation pixels per picture pixel along a side: speckle is finer than a picture pixel, as on real scanners."""

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Tissue:
    """Maps of one cut through the body, float32 (h, w), and their spacing.

    `echo_db`: backscatter of diffuse scatterers, dB against glandular tissue.
    `specular`: amplitude of surfaces that mirror the pulse (fascia, skin, skull), 0 upwards.
    `attenuation_db`: one-way loss against what the machine compensates for, dB per cm per MHz; negative enhances.
    """

    echo_db: Field
    specular: Field
    attenuation_db: Field
    pixel_mm: float


@dataclass(frozen=True)
class Machine:
    """Settings of the scanner.

    `focus` is the depth of the lateral focus as a share of the picture's height, `lateral_mm` the standard
    deviation of the beam there, `widening` how much that grows over one picture height away from it.
    `looks` independent views are averaged (spatial compounding). `tgc_db` is the error of the time gain
    compensation at five depths. `noise_db` is electronic noise at the surface before compensation.
    `grey_gamma` bends the grey map; `smoothing_px` is the scanner's own filter on the compressed picture, and
    `despeckling`, 0 to 1, how much of the speckle its edge-preserving filter takes out of even tissue;
    `sharpening` is how much its edge enhancement adds along the beam, `toe` the level where black fades in.
    """

    centre_mhz: float
    bandwidth: float
    focus: float
    lateral_mm: float
    widening: float
    looks: int
    gain_db: float
    dynamic_range_db: float
    tgc_db: tuple[float, float, float, float, float]
    noise_db: float
    grey_gamma: float
    smoothing_px: float
    despeckling: float
    sharpening: float
    toe: float


def draw_machine(rng: np.random.Generator, depth_mm: float) -> Machine:
    """A breast scanner and its operator, within what is seen in practice."""
    return Machine(
        centre_mhz=float(rng.uniform(7.0, 12.0)),
        bandwidth=float(rng.uniform(0.65, 0.95)),
        focus=float(rng.uniform(0.25, 0.6)),
        lateral_mm=float(rng.uniform(0.18, 0.27) * max(1.0, depth_mm / 60)),
        widening=float(rng.uniform(0.3, 1.3)),
        looks=int(rng.integers(2, 5)),
        gain_db=float(rng.normal(-4.0, 5.0)),
        dynamic_range_db=float(rng.uniform(58, 86)),
        # Centred on what leaves deep tissue darker: most operators compensate too little.
        tgc_db=(
            float(rng.normal(6, 2.5)),
            float(rng.normal(5, 3.0)),
            float(rng.normal(-3, 3.0)),
            float(rng.normal(-15, 5.0)),
            float(rng.normal(-29, 8.0)),
        ),
        noise_db=float(rng.uniform(-70, -54)),
        grey_gamma=float(rng.uniform(0.85, 1.35)),
        smoothing_px=float(rng.uniform(0.0, 0.5)),
        despeckling=float(rng.uniform(0.15, 0.95)),
        sharpening=float(rng.uniform(0.25, 0.6)),
        toe=float(rng.uniform(0.03, 0.1)),
    )


def draw_obstetric(rng: np.random.Generator, depth_mm: float) -> Machine:
    """A curved probe on an abdomen: low frequencies, hard contrast, deep echoes lifted as much as shallow ones."""
    return replace(
        draw_machine(rng, depth_mm),
        centre_mhz=float(rng.uniform(3.0, 5.5)),
        gain_db=float(rng.normal(-1.0, 4.0)),
        dynamic_range_db=float(rng.uniform(48, 66)),
        tgc_db=(
            float(rng.normal(-3, 3.0)),
            float(rng.normal(-1, 3.0)),
            float(rng.normal(0, 3.0)),
            float(rng.normal(-3, 3.5)),
            float(rng.normal(-6, 5.0)),
        ),
        despeckling=float(rng.uniform(0.1, 0.7)),
        sharpening=float(rng.uniform(0.0, 0.4)),
        toe=float(rng.uniform(0.01, 0.07)),
    )


def picture(tissue: Tissue, machine: Machine, seed: int) -> NDArray[np.uint8]:
    """The B-mode picture, uint8, of half the size of the tissue's maps.

    The same `seed` gives the same scatterers and the same noise, so two tissues that differ in one lesion give
    two pictures that differ in that lesion, and in what it does to the sound behind it.
    """
    rng = np.random.default_rng([seed, 7])
    height, width = tissue.echo_db.shape
    amplitude = np.exp(tissue.echo_db * np.float32(np.log(10) / 20))
    loss_db = _loss_db(tissue, machine)
    received = np.exp(-loss_db * np.float32(np.log(10) / 20))
    depth_mm = np.arange(height, dtype=np.float32)[:, None] * tissue.pixel_mm
    carrier = np.exp(np.complex64(-1j) * (4 * np.pi * machine.centre_mhz / SOUND_MM_PER_US * depth_mm))
    noise = _noise_amplitude(machine, height, width, tissue.pixel_mm)
    power = np.zeros((height, width), np.float32)
    for _ in range(machine.looks):
        draws = rng.standard_normal((4, height, width), dtype=np.float32)
        mirrors = tissue.specular * (1 + np.float32(0.5) * draws[1])
        echo = (amplitude * draws[0] * carrier + mirrors) * received
        line = _point_spread(echo.astype(np.complex64), machine, tissue.pixel_mm)
        power += np.abs(line + noise * (draws[2] + np.complex64(1j) * draws[3])) ** 2
    level_db = 10 * np.log10(power / machine.looks + 1e-9) + machine.gain_db
    grey = _grey_map((level_db / machine.dynamic_range_db + 0.58).astype(np.float32), machine)
    grey = _despeckled(grey, machine)
    if machine.smoothing_px > 0:
        grey = ndimage.gaussian_filter(grey, machine.smoothing_px, truncate=3)
    small = Image.fromarray(grey.astype(np.float32)).reduce(SUPERSAMPLING)
    lines = np.asarray(small)
    lines = lines + np.float32(machine.sharpening) * (lines - ndimage.gaussian_filter1d(lines, 1.0, axis=0, truncate=3))
    return (lines * 255).round().clip(0, 255).astype(np.uint8)


def _grey_map(level: Field, machine: Machine) -> Field:
    """Levels 0 to 1 with a soft toe and knee, since scanners keep weak echoes off pure black, strong ones off white."""
    toe, knee = np.float32(machine.toe), np.float32(0.06)
    lifted = toe * np.logaddexp(np.float32(0), np.maximum(level, -1) / toe)
    bent = lifted - knee * np.logaddexp(np.float32(0), (lifted - np.float32(0.93)) / knee)
    return np.clip(bent, 0, 1) ** np.float32(machine.grey_gamma)


def _despeckled(grey: Field, machine: Machine) -> Field:
    """Lee's filter (1980) on the compressed picture: the mean where the spread is that of speckle, edges kept.

    Fully developed speckle deviates by 5.57 dB after log compression, less by the root of the looks.
    """
    mean = ndimage.uniform_filter(grey, 7)
    spread = np.maximum(ndimage.uniform_filter(grey * grey, 7) - mean * mean, 1e-6)
    speckle = 5.57**2 / machine.looks / machine.dynamic_range_db**2
    structure = np.clip(1 - np.float32(speckle) / spread, 0, 1)
    kept = 1 - np.float32(machine.despeckling) * (1 - structure)
    return np.asarray(mean + kept * (grey - mean), np.float32)


def _loss_db(tissue: Tissue, machine: Machine) -> Field:
    """Two-way loss down to each pixel, plus the operator's error in compensating it."""
    height = tissue.echo_db.shape[0]
    per_pixel = tissue.attenuation_db * np.float32(2 * machine.centre_mhz * tissue.pixel_mm / 10)
    loss = np.cumsum(per_pixel, axis=0, dtype=np.float32)
    knots = np.linspace(0, height - 1, len(machine.tgc_db))
    tgc = np.interp(np.arange(height), knots, machine.tgc_db).astype(np.float32)
    return loss - tgc[:, None]


def _noise_amplitude(machine: Machine, height: int, width: int, pixel_mm: float) -> Field:
    """Electronic noise is constant; the time gain that lifts deep echoes lifts it with them."""
    depth_cm = np.arange(height, dtype=np.float32)[:, None] * pixel_mm / 10
    lifted_db = machine.noise_db + 0.4 * machine.centre_mhz * depth_cm
    return np.broadcast_to(10 ** (np.minimum(lifted_db, -18) / 20), (height, width)).astype(np.float32)


def _point_spread(echo: NDArray[np.complex64], machine: Machine, pixel_mm: float) -> NDArray[np.complex64]:
    """Convolve with a pulse that lengthens with depth (high frequencies are lost first) and a beam that widens.

    Laterally each row is filtered in the Fourier domain by its own Gaussian; unit energy keeps the level.
    """
    height, width = echo.shape
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    pulse_mm = 0.44 * SOUND_MM_PER_US / (machine.centre_mhz * machine.bandwidth)
    short, long = pulse_mm / pixel_mm, 1.5 * pulse_mm / pixel_mm
    axial = _axial(echo, short) * (1 - share) + _axial(echo, long) * share
    sigma = machine.lateral_mm * (1 + machine.widening * np.abs(share - machine.focus)) / pixel_mm
    angular = 2 * np.pi * fft.fftfreq(width).astype(np.float32)[None, :]
    gain = np.sqrt(2 * np.sqrt(np.pi) * sigma)
    beam = gain * np.exp(-0.5 * (sigma * angular) ** 2)
    spectrum = np.asarray(fft.fft(axial, axis=1)) * beam.astype(np.float32)
    return np.asarray(fft.ifft(spectrum, axis=1), np.complex64)


def _axial(echo: NDArray[np.complex64], sigma: float) -> NDArray[np.complex64]:
    gain = np.float32(np.sqrt(2 * np.sqrt(np.pi) * max(sigma, 0.3)))
    real = ndimage.gaussian_filter1d(echo.real, sigma, axis=0, truncate=3, mode="nearest")
    imaginary = ndimage.gaussian_filter1d(echo.imag, sigma, axis=0, truncate=3, mode="nearest")
    return (real + np.complex64(1j) * imaginary) * gain
