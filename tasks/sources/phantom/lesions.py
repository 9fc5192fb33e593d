"""Lesions: shape, margin, echo and what they do to the sound behind them (ACR BI-RADS ultrasound descriptors)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from tasks.sources.phantom.acoustics import Field, Tissue
from tasks.sources.phantom.texture import rough

ENHANCED_DB, TYPICAL_MHZ = 20.0, 9.5
"""Most that fluid brightens what lies behind it, two ways, and the carrier this is reckoned at."""

LesionKind = Literal["benign", "malignant"]


@dataclass(frozen=True)
class Lesion:
    """One lesion. Lengths are shares of the picture's width.

    `ratio` is width over height: above 1 it lies parallel to the skin. `lobes` are the amplitudes of the
    outline's harmonics from the second on; `spicules` the number and `spike` the length of its rays; `ragged`
    how far the outline wanders otherwise, as a share of its radius.
    `echo_db` is against the tissue around it, `attenuation_db` per cm per MHz: positive casts a shadow.
    """

    kind: LesionKind
    radius: float
    ratio: float
    tilt: float
    lobes: tuple[float, ...]
    phases: tuple[float, ...]
    spicules: int
    spike: float
    ragged: float
    echo_db: float
    texture_db: float
    attenuation_db: float
    rim: float
    halo_db: float
    soft_px: float


def draw(kind: LesionKind, rng: np.random.Generator) -> Lesion:
    """A lesion of a kind, with the overlap between kinds that real ones have."""
    benign = kind == "benign"
    cyst = benign and rng.random() < 0.35
    orders = np.arange(2, 12)
    if benign:
        amplitudes = rng.normal(0, 1, orders.size) * rng.uniform(0.05, 0.15) / (orders - 1) ** 1.6
    else:
        amplitudes = rng.normal(0, 1, orders.size) * rng.uniform(0.05, 0.15) / (orders - 1) ** 0.8
    return Lesion(
        kind=kind,
        radius=float(
            np.exp(rng.normal(np.log(0.09), 0.55) if benign else rng.normal(np.log(0.175), 0.4)).clip(0.04, 0.31)
        ),
        ratio=float(np.exp(rng.normal(np.log(1.7 if benign else 1.45), 0.27)).clip(0.62, 3.0)),
        tilt=float(rng.normal(0, 0.15 if benign else 0.3)),
        lobes=tuple(float(a) for a in amplitudes),
        phases=tuple(float(p) for p in rng.uniform(0, 2 * np.pi, orders.size)),
        spicules=0 if benign else int(rng.integers(4, 12)),
        spike=0.0 if benign else float(rng.uniform(0.05, 0.35)),
        ragged=float(rng.uniform(0.0, 0.035) if benign else rng.uniform(0.03, 0.14)),
        echo_db=float(rng.uniform(-48, -26) if cyst else rng.uniform(-24, -8) if benign else rng.uniform(-21, -8)),
        texture_db=float(rng.uniform(0.5, 6.0) if benign else rng.uniform(5.0, 11.0)),
        attenuation_db=float(
            rng.uniform(-1.9, -0.7) if cyst else rng.uniform(-1.2, 0.05) if benign else rng.uniform(-0.1, 0.65)
        ),
        rim=float(rng.uniform(0.0, 1.6) if benign else rng.uniform(0, 0.5)),
        halo_db=float(rng.uniform(0, 2) if benign else rng.uniform(0, 6)),
        soft_px=float(rng.uniform(0.4, 2.5) if benign else rng.uniform(4.0, 14.0)),
    )


def outline(lesion: Lesion, shape: tuple[int, int], x: float, y: float, rng: np.random.Generator) -> Field:
    """Distance in pixels to the outline of a lesion centred at (x, y), positive inside.

    `rng` places the spicules, so two views of a lesion are alike and not equal.
    """
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    size = lesion.radius * width
    dx = columns - x + lesion.ragged * size * rough(rng, shape, (0.6 * size, 0.6 * size), 3, 0.55)
    dy = rows - y + lesion.ragged * size * rough(rng, shape, (0.6 * size, 0.6 * size), 3, 0.55)
    across = dx * np.cos(lesion.tilt) + dy * np.sin(lesion.tilt)
    down = dy * np.cos(lesion.tilt) - dx * np.sin(lesion.tilt)
    a, b = size * np.sqrt(lesion.ratio), size / np.sqrt(lesion.ratio)
    angle = np.arctan2(down / b, across / a)
    reach = np.ones_like(angle)
    for order, (lobe, phase) in enumerate(zip(lesion.lobes, lesion.phases, strict=True), start=2):
        reach += np.float32(lobe) * np.cos(order * angle + np.float32(phase))
    for _ in range(lesion.spicules):
        at, narrow = rng.uniform(-np.pi, np.pi), rng.uniform(0.05, 0.2)
        turn = np.angle(np.exp(1j * (angle - at)).astype(np.complex64))
        reach += np.float32(lesion.spike * rng.uniform(0.3, 1.0)) * np.exp(-((turn / np.float32(narrow)) ** 2))
    inside = _largest(np.hypot(across / a, down / b) <= np.maximum(reach, 0.35))
    within = np.asarray(ndimage.distance_transform_edt(inside))
    return (within - np.asarray(ndimage.distance_transform_edt(~inside))).astype(np.float32)


def _largest(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One piece without holes: a ragged outline may cut off an islet."""
    labels = np.asarray(measure.label(inside, connectivity=1))
    sizes = np.bincount(labels.ravel())[1:]
    if len(sizes) > 1:
        inside = np.asarray(labels == 1 + int(sizes.argmax()))
    return np.asarray(ndimage.binary_fill_holes(inside))


def insert(tissue: Tissue, lesion: Lesion, depth_px: Field, rng: np.random.Generator) -> Tissue:
    """The tissue with a lesion where `depth_px` is positive."""
    shape = tissue.echo_db.shape
    # A margin is sharp on one side and lost on another.
    soft = lesion.soft_px * np.clip(1 + 0.5 * rough(rng, shape, (50, 60), 1), 0.3, 2.5)
    inside = 1 / (1 + np.exp(-np.clip(depth_px / soft * 2, -30, 30)))
    core = depth_px > 0
    around = float(np.median(tissue.echo_db[_ring(core)]))
    texture = lesion.texture_db * rough(rng, shape, (24, 30), 3)
    echo = tissue.echo_db + (around + lesion.echo_db + texture - tissue.echo_db) * inside
    echo = echo + lesion.halo_db * np.exp(-(((depth_px + 5) / 5) ** 2)) * (1 - inside)

    slope_y, slope_x = np.gradient(depth_px)
    facing = (np.abs(slope_y) / (np.hypot(slope_y, slope_x) + 1e-6)) ** 2
    capsule = np.exp(-(((depth_px + 1.0) / 1.4) ** 2)) * facing
    specular = tissue.specular * (1 - inside) + lesion.rim * capsule * np.clip(
        0.8 + 0.7 * rough(rng, shape, (20, 20), 2), 0, 2
    )
    # The aperture looks past a lesion's flanks, so what it does to the sound fades in from the side.
    beam = ndimage.gaussian_filter1d(inside, 0.02 * shape[1], axis=1, truncate=2)
    attenuation = tissue.attenuation_db * (1 - inside) + _bounded(lesion, core, tissue.pixel_mm) * beam
    if lesion.kind == "benign":  # a smooth edge bends the beam aside: thin shadows below both flanks
        flank = np.exp(-((depth_px / 2.0) ** 2)) * (1 - facing) ** 2
        attenuation = attenuation + 0.35 * flank
    return replace(
        tissue,
        echo_db=echo.astype(np.float32),
        specular=specular.astype(np.float32),
        attenuation_db=attenuation.astype(np.float32),
    )


def _bounded(lesion: Lesion, core: NDArray[np.bool_], pixel_mm: float) -> float:
    """The lesion's attenuation, so that its thickest part brightens what lies behind by no more than ENHANCED_DB."""
    path_cm = float(core.sum(axis=0).max()) * pixel_mm / 10
    return max(lesion.attenuation_db, -ENHANCED_DB / (2 * TYPICAL_MHZ * path_cm))


def _ring(core: NDArray[np.bool_]) -> NDArray[np.bool_]:
    distance = np.asarray(ndimage.distance_transform_edt(~core))
    return (distance > 2) & (distance < 14)


def shrink(lesion: Lesion, factor: float) -> Lesion:
    """The same lesion, smaller."""
    return replace(lesion, radius=lesion.radius * factor)
