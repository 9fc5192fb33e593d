"""Two anatomies as acoustic maps: a breast from skin to ribs, a fetal head in its uterus."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.sources.phantom.acoustics import Field, Tissue
from tasks.sources.phantom.texture import Real, curve, ridges, rough, smooth


@dataclass(frozen=True)
class BreastStyle:
    """What stays between two views of one patient. Depths are shares of the picture's height."""

    depth_mm: float
    fat_end: float
    gland_end: float
    muscle_thick: float
    undulation: float
    fat_db: float
    gland_streaks_db: float
    muscle_db: float
    lobule_px: float
    septa: float
    fibres: float
    deep_db: float
    tilt: float


def draw_breast(rng: np.random.Generator, calm: bool = False) -> BreastStyle:
    """A breast, fatty to dense. `calm`: older and fattier, with fewer and weaker surfaces, looked into deeper."""
    surfaces = float(rng.uniform(0.3, 1.4) if calm else rng.uniform(0.6, 1.8))
    fat_end = float(rng.uniform(0.1, 0.42))
    gland_end = float(np.clip(fat_end + rng.uniform(0.2, 0.6), 0.45, 1.05))
    return BreastStyle(
        depth_mm=float(rng.uniform(30, 50) if calm else rng.uniform(28, 48)),
        fat_end=fat_end,
        gland_end=gland_end,
        muscle_thick=float(rng.uniform(0.1, 0.3)),
        undulation=float(rng.uniform(0.01, 0.045)),
        fat_db=float(rng.uniform(-17, -4)),
        gland_streaks_db=float(rng.uniform(1.5, 4.5)) * (0.8 if calm else 1.0),
        muscle_db=float(rng.uniform(-12, -3)),
        lobule_px=float(rng.uniform(12, 34)),
        septa=surfaces * float(rng.uniform(0.5, 1.6)),
        fibres=surfaces * float(rng.uniform(0.5, 1.6)),
        deep_db=float(rng.uniform(-22, -6)),
        tilt=float(rng.normal(0, 0.06)),
    )


def breast(style: BreastStyle, rng: np.random.Generator, shape: tuple[int, int]) -> Tissue:
    """Maps of one view of a breast, `shape` simulation pixels."""
    height, width = shape
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]

    def edge(at: float, amount: float) -> Field:
        wave = amount * (curve(rng, width, 0.35 * width) + 0.4 * curve(rng, width, 0.12 * width))
        return (at + wave[None, :] + style.tilt * across).astype(np.float32)

    skin_end = edge(rng.uniform(0.025, 0.06), 0.003)
    fat_end = np.maximum(edge(style.fat_end, style.undulation), skin_end + 0.03)
    gland_end = np.maximum(edge(style.gland_end, style.undulation), fat_end + 0.1)
    muscle_end = gland_end + np.maximum(edge(style.muscle_thick, 0.6 * style.undulation), 0.05)

    lobule = style.lobule_px * height / 256
    fat_lobules = rough(rng, shape, (lobule, 2.8 * lobule), 3, 0.55)
    streaks = rough(rng, shape, (lobule * 0.4, lobule * 1.9), 3, 0.85)
    strands = _crossing(rng, shape)
    patches = rough(rng, shape, (lobule * 1.4, lobule * 1.9), 4, 0.6)
    fibre = rough(rng, shape, (6, 90), 3, 0.6)

    fat = style.fat_db + 2.4 * patches + 0.6 * streaks + 0.7 * style.gland_streaks_db * strands
    gland = style.gland_streaks_db * (0.45 * streaks + 0.9 * patches + 0.8 * strands) + 0.6 * style.fat_db * np.clip(
        patches, 0, 1.6
    )
    muscle = style.muscle_db + 3.0 * fibre
    deep = style.deep_db + 2.0 * fibre
    soft = 2.5 / height
    echo = _layer(fat, gland, down - fat_end, soft)
    echo = _layer(echo, muscle, down - gland_end, soft)
    echo = _layer(echo, deep, down - muscle_end, soft)
    echo = _layer(np.float32(6.0) + 0.0 * echo, echo, down - skin_end, soft)

    inside = _Inside(
        (down > skin_end) & (down < fat_end),
        (down >= fat_end) & (down < gland_end),
        (down >= gland_end) & (down < muscle_end),
    )
    septum = ridges(fat_lobules, 1.0, 0.75)
    thin = ridges(streaks + 0.4 * fat_lobules, 0.8, 0.8)
    fibres = style.fibres * ridges(fibre, 0.7, 0.9)
    fascias = ((skin_end, 2.8), (fat_end, 1.2), (gland_end, 2.0), (muscle_end, 1.8))
    specular = _surfaces(rng, inside, style.septa * septum, 0.7 * style.septa * thin, fibres, fascias)

    excess = np.where(inside.fat, -0.02, np.where(inside.gland, 0.03, np.where(inside.muscle, 0.05, 0.12)))
    contact = np.maximum(curve(rng, width, 0.12 * width) - 1.1, 0)[None, :] * rng.uniform(0, 0.45)
    excess = excess + contact + 0.12 * np.clip(septum * inside.fat, 0, 1)
    if rng.random() < 0.12:
        echo, specular, excess = _ribs(rng, echo, specular, excess, gland_end)
    bent = _bent_rows(rng, shape, down)
    echo, specular, excess = (
        np.take_along_axis(field.astype(np.float32), bent, 0) for field in (echo, specular, excess)
    )
    return Tissue(echo, specular, excess, style.depth_mm / height)


def _crossing(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Strands of two families that run slightly up and slightly down: the net of connective tissue."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for way in (-1, 1):
        slope = way * rng.uniform(0.05, 0.6)
        rows = np.arange(height)[:, None] + np.rint(slope * np.arange(width)).astype(np.intp)[None, :]
        total += np.take_along_axis(smooth(rng, shape, (2.4, 13)), rows % height, 0)
    return total * np.float32(0.7)


def _bent_rows(rng: np.random.Generator, shape: tuple[int, int], down: Field) -> NDArray[np.intp]:
    """Where each pixel's tissue is taken from: layers rise and fall across the picture, skin stays put."""
    height, width = shape
    amount = rng.uniform(0.015, 0.06) * height
    shift = amount * smooth(rng, shape, (0.35 * height, 0.32 * width)) * np.clip(down * 6 - 0.3, 0, 1)
    rows = np.arange(height, dtype=np.float32)[:, None] + shift
    return np.clip(np.rint(rows), 0, height - 1).astype(np.intp)


@dataclass(frozen=True)
class _Inside:
    """Where each layer of a breast lies."""

    fat: NDArray[np.bool_]
    gland: NDArray[np.bool_]
    muscle: NDArray[np.bool_]


def _surfaces(
    rng: np.random.Generator,
    inside: _Inside,
    septum: Real,
    thin: Real,
    fibres: Real,
    fascias: tuple[tuple[Field, float], ...],
) -> Real:
    """Everything that mirrors sound: Cooper's ligaments, fibres of muscle, fascias, the skin."""
    height, width = septum.shape
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    specular: Real = septum * np.where(inside.fat, 1.0, np.where(inside.gland, 0.8, 0.3))
    specular = specular + thin * np.where(inside.gland, 1.0, np.where(inside.fat, 0.35, 0.1))
    specular = specular + fibres * np.where(inside.muscle, 1.0, 0.12)
    for where, strength in fascias:
        line = np.exp(-(((down - where) * height / 1.6) ** 2))
        drawn = strength * rng.uniform(0.3, 1.3)
        specular = specular + drawn * line * np.clip(0.6 + 0.8 * curve(rng, width, 0.09 * width), 0, 2)
    specular = specular + 4.0 * np.exp(-((down * height / 2.5) ** 2))
    # A surface is a line of varying strength, never evenly drawn.
    return specular * np.clip(0.7 + 0.7 * rough(rng, (height, width), (14, 40), 2), 0.03, 2.5)


def _layer(above: Real, below: Real, signed_depth: Real, soft: float) -> Field:
    share = 1 / (1 + np.exp(-np.clip(signed_depth / soft, -30, 30)))
    return (above * (1 - share) + below * share).astype(np.float32)


def _ribs(
    rng: np.random.Generator, echo: Real, specular: Real, excess: Real, gland_end: Real
) -> tuple[Real, Real, Real]:
    """One or two ribs under the muscle: a bright cap and darkness behind it."""
    height, width = echo.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(int(rng.integers(1, 3))):
        x = rng.uniform(0.05, 0.95) * width
        y = (float(gland_end.mean()) + rng.uniform(0.05, 0.2)) * height
        a, b = rng.uniform(0.08, 0.16) * width, rng.uniform(0.04, 0.08) * height
        radius = np.sqrt(((columns - x) / a) ** 2 + ((rows - y) / b) ** 2)
        cap = np.exp(-(((radius - 1) * b / 2.0) ** 2)) * (rows < y)
        specular = specular + 1.8 * cap
        excess = excess + np.where(radius < 1, 1.0, 0.0)
        echo = np.where(radius < 1, echo - 6, echo)
    return echo, specular, excess


@dataclass(frozen=True)
class Ellipse:
    """Centre, half axes in pixels, angle in radians."""

    x: float
    y: float
    a: float
    b: float
    angle: float

    def radius(self, shape: tuple[int, int]) -> Field:
        """1 on the outline, less inside."""
        rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
        dx, dy = columns - self.x, rows - self.y
        along = dx * np.cos(self.angle) + dy * np.sin(self.angle)
        aside = dy * np.cos(self.angle) - dx * np.sin(self.angle)
        return np.sqrt((along / self.a) ** 2 + (aside / self.b) ** 2).astype(np.float32)


def draw_head(rng: np.random.Generator, shape: tuple[int, int]) -> Ellipse:
    """The outer outline of a skull, inside the frame."""
    height, width = shape
    a = rng.uniform(0.16, 0.36) * width
    b = a * rng.uniform(0.7, 0.85)
    reach = max(a, b)
    return Ellipse(
        x=float(rng.uniform(0.42, 0.58) * width),
        y=float(
            np.clip(rng.uniform(0.45, 0.6) * height, min(reach, 0.45 * height), height - min(reach, 0.45 * height))
        ),
        a=float(min(a, 0.46 * height)),
        b=float(min(b, 0.42 * height)),
        angle=float(rng.normal(0, 0.35)),
    )


def fetal_head(rng: np.random.Generator, shape: tuple[int, int], depth_mm: float) -> tuple[Tissue, NDArray[np.bool_]]:
    """Maps of a head in its uterus, and the filled outline of the skull."""
    height, width = shape
    head = draw_head(rng, shape)
    radius = head.radius(shape)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    warp = 0.05 * smooth(rng, shape, (50, 50))
    wall = rough(rng, shape, (22, 120), 2)
    outside = float(rng.uniform(-18, -4)) + 4.0 * rough(rng, shape, (40, 90), 4) + 2.0 * wall
    fluid = replace(
        head,
        a=head.a * rng.uniform(1.15, 1.7),
        b=head.b * rng.uniform(1.15, 1.6),
        x=head.x + rng.normal(0, 0.06) * width,
    )
    bag = 1 / (1 + np.exp(-np.clip((fluid.radius(shape) + 2 * warp - 1) * 40, -30, 30)))
    dark = float(rng.uniform(-38, -22))
    echo = dark + (outside - dark) * bag

    brain = float(rng.uniform(-32, -16)) + 3.5 * smooth(rng, shape, (12, 18)) + 2.5 * smooth(rng, shape, (5, 8))
    inside = 1 / (1 + np.exp(-np.clip((1 - radius) * 60, -30, 30)))
    echo = echo + (brain - echo) * inside

    along = (columns - head.x) * np.cos(head.angle) + (rows - head.y) * np.sin(head.angle)
    aside = (rows - head.y) * np.cos(head.angle) - (columns - head.x) * np.sin(head.angle)
    for side in (-1, 1):  # choroid plexus in each ventricle
        blob = Ellipse(0, 0, 0.3 * head.a, 0.14 * head.b, 0)
        r2 = ((along - rng.uniform(-0.3, 0.3) * head.a) / blob.a) ** 2 + ((aside - side * 0.38 * head.b) / blob.b) ** 2
        echo = echo + rng.uniform(2, 13) * np.exp(-(np.clip(r2, 0, 30) ** 1.5)) * inside
    gyri = (
        ridges(smooth(rng, shape, (14, 20)), 1.0, 0.95) * (radius < 0.9) * np.clip(smooth(rng, shape, (20, 20)), 0, 2)
    )
    midline = np.exp(-(((aside + 1.5 * warp * head.b) / 1.6) ** 2)) * (np.abs(along) < 0.9 * head.a)
    midline = midline * np.clip(0.5 + 0.8 * smooth(rng, shape, (16, 16)), 0, 2)

    # The skull mirrors where it faces the probe; towards its sides the sound slides past.
    slope_y, slope_x = np.gradient(radius)
    facing = np.abs(slope_y) / (np.hypot(slope_y, slope_x) + 1e-6)
    thick_px = rng.uniform(1.8, 3.8) * height / 256
    distance = (1 - radius) / (np.hypot(slope_y, slope_x) + 1e-6)  # pixels inwards from the outline
    skull = np.exp(-(((distance + 4 * warp - 1.5 * thick_px) / thick_px) ** 2))
    arcs = np.clip(0.9 + rng.uniform(0.3, 0.8) * smooth(rng, shape, (40, 40)), 0.05, 2)
    arcs = arcs * np.clip(0.8 + 0.5 * smooth(rng, shape, (9, 9)), 0.05, 2)
    strength = (rng.uniform(0.05, 0.35) + facing ** rng.uniform(1, 3)) * arcs
    echo = echo + 15 * skull * (0.3 + 0.7 * facing) * arcs
    specular = (
        rng.uniform(1.0, 2.8) * skull * strength + rng.uniform(0.15, 0.8) * midline + rng.uniform(0.05, 0.5) * gyri
    )
    broken = np.clip(0.4 + 0.8 * smooth(rng, shape, (20, 50)), 0, 2)
    specular = specular + rng.uniform(0.1, 0.9) * ridges(wall, 1.2, 0.95) * bag * broken

    excess = np.where(bag > 0.5, 0.06, -0.1) + rng.uniform(0.2, 0.9) * skull * (1.2 - facing)
    tissue = Tissue(echo.astype(np.float32), specular.astype(np.float32), excess.astype(np.float32), depth_mm / height)
    return tissue, np.asarray(radius <= 1)
