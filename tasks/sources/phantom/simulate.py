"""One phantom: a patient, a view, a scanner, and the pictures with and without the lesion."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.sources.phantom import anatomy, lesions
from tasks.sources.phantom.acoustics import SUPERSAMPLING, Machine, Tissue, draw_machine, draw_obstetric, picture

Kind = Literal["normal", "benign", "malignant", "head"]


@dataclass(frozen=True)
class Phantom:
    """A simulated picture, uint8 (px, px), black where no sound went.

    `mask` is the exact lesion or head, None for normal tissue. `healthy` is the same tissue, scanner and noise
    without the lesion; None where it was not asked for, and for heads. `seen` is False on the black surround.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    healthy: NDArray[np.uint8] | None
    seen: NDArray[np.bool_]
    pixel_mm: float


def simulate(
    kind: Kind, patient: np.random.Generator, view: np.random.Generator, px: int, twin: bool = False
) -> Phantom:
    """A phantom of a kind.

    Args:
        kind: what is looked at.
        patient: decides what two views of a patient share: tissue and lesion.
        view: decides the rest: cut, scanner, scatterers, noise.
        px: side of the square picture.
        twin: also the healthy picture of the same tissue.
    """
    return _head(view, px) if kind == "head" else _breast(kind, patient, view, px, twin)


def _breast(
    kind: Literal["normal", "benign", "malignant"],
    patient: np.random.Generator,
    view: np.random.Generator,
    px: int,
    twin: bool,
) -> Phantom:
    style = anatomy.draw_breast(patient, calm=kind == "malignant")
    lesion = None if kind == "normal" else lesions.draw(kind, patient)
    ratio = float(np.clip(view.normal(0.81, 0.07), 0.52, 0.95) if view.random() < 0.85 else view.uniform(0.9, 1.15))
    height, width = round(px * min(1.0, ratio)), round(px / max(1.0, ratio))
    shape = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    tissue = anatomy.breast(style, view, shape)
    machine = draw_machine(view, style.depth_mm)
    seed = int(view.integers(2**31))
    frame, seen = _frame(view, px, (height, width), 0.06)
    pixel_mm = style.depth_mm / height
    if lesion is None:
        image = _placed(picture(tissue, machine, seed), frame, seen)
        return Phantom(image, None, image if twin else None, seen, pixel_mm)
    depth_px = _place(lesion, shape, frame, seen, view)
    with_lesion = lesions.insert(tissue, lesion, depth_px, view)
    mask = np.zeros((px, px), np.bool_)
    mask[frame] = np.asarray(Image.fromarray((depth_px > 0).astype(np.float32)).reduce(SUPERSAMPLING)) >= 0.5
    image = _placed(picture(with_lesion, machine, seed), frame, seen)
    healthy = _placed(picture(tissue, machine, seed), frame, seen) if twin else None
    return Phantom(image, mask, healthy, seen, pixel_mm)


def _place(
    lesion: lesions.Lesion,
    shape: tuple[int, int],
    frame: tuple[slice, slice],
    seen: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """A place below the skin, above the deep third and inside what is seen; smaller where it does not fit."""
    height, width = shape
    visible = seen[frame].repeat(SUPERSAMPLING, 0).repeat(SUPERSAMPLING, 1)
    for attempt in range(12):
        scaled = lesions.shrink(lesion, 0.92**attempt)
        wide = min(scaled.radius * np.sqrt(scaled.ratio) * 1.1, 0.45) * width
        tall = min(scaled.radius / np.sqrt(scaled.ratio) * 1.15 * width / height, 0.38) * height
        x = rng.uniform(min(max(0.15 * width, wide), 0.5 * width), max(min(0.85 * width, width - wide), 0.5 * width))
        shallow = 0.09 * height + tall
        y = shallow + rng.uniform() ** 1.5 * max(1.0, min(0.48 * height, 0.94 * height - tall) - shallow)
        depth_px = lesions.outline(scaled, shape, x, y, rng)
        core = depth_px > 0
        rows, columns = np.nonzero(core)
        fits = (
            rows.min() > 0.075 * height
            and rows.max() < 0.97 * height
            and columns.min() > 0.01 * width
            and columns.max() < 0.99 * width
        )
        if fits and visible[core].all():
            return depth_px
    return lesions.outline(lesions.shrink(lesion, 0.3), shape, width / 2, 0.45 * height, rng)


def _head(rng: np.random.Generator, px: int) -> Phantom:
    height = round(px * float(rng.uniform(0.66, 0.74)))
    depth_mm = float(rng.uniform(70, 130))
    shape = (height * SUPERSAMPLING, px * SUPERSAMPLING)
    tissue, skull = anatomy.fetal_head(rng, shape, depth_mm)
    machine = draw_obstetric(rng, depth_mm)
    frame, seen = _frame(rng, px, (height, px), 0.8)
    mask = np.zeros((px, px), np.bool_)
    mask[frame] = np.asarray(Image.fromarray(skull.astype(np.float32)).reduce(SUPERSAMPLING)) >= 0.5
    image = _placed(picture(tissue, machine, int(rng.integers(2**31))), frame, seen)
    return Phantom(image, mask, None, seen, depth_mm / height)


def _frame(
    rng: np.random.Generator, px: int, size: tuple[int, int], sector: float
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Where the picture sits in the square, and what of it the probe sees: with chance `sector` a trapezoid."""
    height, width = size
    top, left = (px - height) // 2, (px - width) // 2
    frame = (slice(top, top + height), slice(left, left + width))
    seen = np.zeros((px, px), np.bool_)
    seen[frame] = True
    if rng.random() < sector:
        down = np.linspace(0, 1, height)[:, None]
        across = np.linspace(-0.5, 0.5, width)[None, :]
        half = rng.uniform(0.28, 0.42) + rng.uniform(0.1, 0.3) * down
        seen[frame] = np.abs(across) <= half
    return frame, seen


def _placed(image: NDArray[np.uint8], frame: tuple[slice, slice], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    out = np.zeros(seen.shape, np.uint8)
    out[frame] = image
    out[~seen] = 0
    return out


__all__ = ["Kind", "Machine", "Phantom", "Tissue", "simulate"]
