"""A learned model of lesion outlines: size, orientation, lobes and margin of one class.

An outline is taken apart into what radiologists name apart (ACR BI-RADS, 5th edition, 2013, Ultrasound):

- **size**: square root of the area;
- **orientation**: second moments of the mask, "parallel" to the skin (wider than tall) or "not parallel";
- **lobes**: the low Fourier modes of the log radius over the angle, once size and second moments are taken out;
- **margin**: the energy of the high modes, "circumscribed" to "spiculated" as far as a mask can tell.

The model of a class is a Gaussian copula over these numbers. A lesion and its mirror image are equally likely. The
radius is read from the mask's centroid, the outermost crossing where a ray meets the outline more than once: 98 % of
BUSI's masks at 128 px overlap with their own outline by 0.9 or more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imaging import Mask
from tasks.synthesis import copula
from tasks.synthesis.copula import Copula
from tasks.synthesis.tissue import Place

Margin = Literal["circumscribed", "microlobulated", "spiculated"]
Orientation = Literal["parallel", "not parallel"]
MARGINS: tuple[Margin, ...] = ("circumscribed", "microlobulated", "spiculated")

ANGLES = 128
"""Directions in which the radius is read, counted from the right-hand side, clockwise on the screen."""
LOW, HIGH = 7, 24
"""Modes 1 to LOW are lobes, LOW + 1 to HIGH are the margin."""
MINIMUM = 12
"""Fewest masks that a class is learned from."""
SMALLEST_PX = 9
"""Fewest pixels that have an outline."""

_FINEST_PX = 3.0  # a wave along the outline that is shorter than this is the pixel grid, not the margin
_ROUGHNESS_OFFSET = 0.005  # roughness is learned on a log scale that starts here: 0 is common
_SCALARS = 4  # log size, two of stretch, log roughness; then the lobes; then depth and lateral, where known


@dataclass(frozen=True)
class Outline:
    """One outline, free of the pixel grid.

    `size` is the square root of the area in pixels. `stretch` is log(major / minor axis) · (cos 2φ, sin 2φ), φ the
    major axis from the horizontal: the first above 0 is wider than tall. `modes` (HIGH + 1,) are the complex
    Fourier modes of the log radius once size and stretch are taken out. `roughness` is the root mean square of
    its high modes less what rasterising a smooth outline of that size gives: 0.05 is 5 % of the radius.
    """

    size: float
    stretch: NDArray[np.float64]
    modes: NDArray[np.complex128]
    roughness: float

    @property
    def orientation(self) -> Orientation:
        """Parallel to the skin where it is at least as wide as tall."""
        return "parallel" if self.stretch[0] >= 0 else "not parallel"


@dataclass(frozen=True)
class Example:
    """A training outline, its size in the model's unit, and where it lay, if that is known."""

    outline: Outline
    size: float
    place: Place | None


@dataclass(frozen=True)
class Margins:
    """Roughness up to which a margin is circumscribed, and up to which it is microlobulated.

    Learned: the median and the 0.85 quantile over all training masks, every class counting the same. A class of
    smooth lesions is therefore mostly circumscribed, and the words mean the same for every class.
    """

    circumscribed: float = 0.02
    microlobulated: float = 0.04

    def name(self, roughness: float) -> Margin:
        """What a roughness is called.

        >>> Margins(0.02, 0.04).name(0.03)
        'microlobulated'
        """
        return MARGINS[int(roughness > self.circumscribed) + int(roughness > self.microlobulated)]

    def bounds(self, margin: Margin) -> tuple[float, float]:
        """The roughness that a margin spans."""
        edges = (-np.inf, self.circumscribed, self.microlobulated, np.inf)
        at = MARGINS.index(margin)
        return edges[at], edges[at + 1]


@dataclass(frozen=True)
class Model:
    """What outlines of a class look like.

    `numbers` is their joint distribution, `power` (HIGH - LOW,) how the margin's energy spreads over its modes,
    `placed` whether depth and place across are among the numbers.
    """

    numbers: Copula
    power: NDArray[np.float64]
    margins: Margins
    placed: bool


@dataclass(frozen=True)
class Drawn:
    """A sampled outline, its `size` in the model's unit, and where a lesion like it lies, if that was learned."""

    size: float
    stretch: NDArray[np.float64]
    modes: NDArray[np.complex128]
    roughness: float
    place: Place | None


def outline(mask: Mask) -> Outline:
    """The outline of the largest part of a mask.

    Raises:
        ValueError: the mask covers fewer than 9 pixels.
    """
    if int(mask.sum()) < SMALLEST_PX:
        raise ValueError(f"the mask covers {int(mask.sum())} px; expected {SMALLEST_PX} or more to have an outline")
    shape = largest_part(mask)
    size = float(np.sqrt(shape.sum()))
    stretch, modes = _modes(shape)
    smooth = np.where(np.arange(HIGH + 1) <= LOW, modes, 0)
    _, floor = _modes(render(size, stretch, smooth))
    band = _band(size)
    excess = _energy(modes[band]) - _energy(floor[band])
    return Outline(size, stretch, modes, float(np.sqrt(max(0.0, excess))))


def render(size: float, stretch: NDArray[np.float64], modes: NDArray[np.complex128]) -> Mask:
    """The mask, cut to its bounding box and one pixel more, of an outline whose area is `size`² pixels."""
    spread = _spread(stretch)
    reach = size * float(np.exp(np.abs(modes[1:]).sum() * 2 + np.hypot(*stretch) / 2)) / np.sqrt(np.pi)
    half = int(np.ceil(min(reach, 3 * size))) + 2
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    across, down = np.einsum("ij,jrc->irc", np.linalg.inv(spread), np.stack([columns, rows]).astype(np.float64))
    spectrum = np.zeros(ANGLES // 2 + 1, np.complex128)
    spectrum[1 : HIGH + 1] = modes[1 : HIGH + 1]
    radius = np.exp(np.fft.irfft(spectrum, ANGLES, norm="forward"))
    radius *= size / np.sqrt(np.pi * (radius**2).mean())
    turn = np.arctan2(down, across) % (2 * np.pi) / (2 * np.pi) * ANGLES
    limit = np.interp(turn, np.arange(ANGLES + 1), np.append(radius, radius[0]))
    return tight(np.hypot(across, down) <= limit)


def realise(drawn: Drawn, size_px: float) -> Mask:
    """The mask of a drawn outline at a size, the margin scaled until it measures as rough as it was drawn."""
    modes = drawn.modes.copy()
    mask = render(size_px, drawn.stretch, modes)
    for _ in range(2):  # the pixel grid swallows what is finer than itself
        found = outline(mask).roughness if mask.sum() >= SMALLEST_PX else 0.0
        if found == 0 or drawn.roughness == 0:
            break
        modes[LOW + 1 :] *= min(2.0, max(0.5, drawn.roughness / found))
        mask = render(size_px, drawn.stretch, modes)
    return mask


def learn_margins(outlines: Sequence[tuple[str, Outline]]) -> Margins:
    """Thresholds of the margin from (label, outline) of all training masks; the defaults below MINIMUM of them."""
    if len(outlines) < MINIMUM:
        return Margins()
    labels = np.array([label for label, _ in outlines])
    roughness = np.array([one.roughness for _, one in outlines])
    weight = 1 / np.array([(labels == label).sum() for label in labels])
    order = np.argsort(roughness, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    low, high = (float(roughness[order][np.searchsorted(reached, share)]) for share in (0.5, 0.85))
    return Margins(low, max(high, low + 1e-6))


def learn(examples: Sequence[Example], margins: Margins) -> Model:
    """The model of a class from its training outlines, each also mirrored.

    Raises:
        ValueError: fewer than MINIMUM examples.
    """
    if len(examples) < MINIMUM:
        raise ValueError(
            f"{len(examples)} masks to learn the shape of a class from; expected {MINIMUM} or more: "
            "add scans of it, or set shapes to donors"
        )
    placed = all(example.place is not None for example in examples)
    rows = np.array([_numbers(example, mirrored, placed) for example in examples for mirrored in (False, True)])
    # Lobes have signs, and a mirror image: they go with size, margin and place in strength at most.
    lobes = (np.arange(rows.shape[1]) >= _SCALARS) & (np.arange(rows.shape[1]) < _SCALARS + 2 * LOW)
    numbers = copula.learn(rows, len(examples), (np.flatnonzero(lobes), np.flatnonzero(~lobes)))
    energy = np.mean([np.abs(example.outline.modes[LOW + 1 :]) ** 2 for example in examples], axis=0)
    power = energy / max(float(energy.sum()), 1e-12)
    return Model(numbers, power, margins, placed)


def draw(
    model: Model, rng: np.random.Generator, margin: Margin | None = None, orientation: Orientation | None = None
) -> Drawn | None:
    """A new outline, of this margin and orientation where they are given; None if the class shows no such one."""
    for _ in range(64):
        numbers = copula.draw(model.numbers, rng)
        roughness = max(0.0, float(np.exp(numbers[3])) - _ROUGHNESS_OFFSET)
        low, high = (-np.inf, np.inf) if margin is None else model.margins.bounds(margin)
        lies: Orientation = "parallel" if numbers[1] >= 0 else "not parallel"
        if low < roughness <= high and orientation in (None, lies):
            lobes = numbers[_SCALARS : _SCALARS + 2 * LOW]
            modes = np.zeros(HIGH + 1, np.complex128)
            modes[1 : LOW + 1] = lobes[:LOW] + 1j * lobes[LOW:]
            wild = np.sqrt(model.power) * (rng.standard_normal((2, HIGH - LOW)) * [[1], [1j]]).sum(axis=0)
            modes[LOW + 1 :] = wild * roughness / max(np.sqrt(_energy(wild)), 1e-12)
            place = Place(float(numbers[-2]), float(numbers[-1])) if model.placed else None
            return Drawn(float(np.exp(numbers[0])), numbers[1:3], modes, roughness, place)
    return None


def largest_part(mask: Mask) -> Mask:
    """The largest connected part of a mask, its holes filled, cut to its bounding box and one pixel more."""
    parts, count = cast(tuple[NDArray[np.int32], int], ndimage.label(mask))
    if count > 1:
        mask = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return tight(np.asarray(ndimage.binary_fill_holes(mask)))


def tight(mask: Mask) -> Mask:
    """A mask cut to its bounding box, with one pixel of border all around; (2, 2) where it is blank."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros((2, 2), np.bool_)
    return np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)


def is_whole(mask: Mask) -> bool:
    """Whether a mask is large enough and not cut off by the image's edge, which leaves straight sides."""
    inside = mask[1:-1, 1:-1]
    return int(inside.sum()) >= SMALLEST_PX and int(inside.sum()) == int(mask.sum())


def _modes(shape: Mask) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Stretch (2,) and modes (HIGH + 1,) of a mask that is one part without holes."""
    rows, columns = np.nonzero(shape)
    centre = np.array([rows.mean(), columns.mean()])
    # a pixel is a square, not a point: 1/12 of spread each way
    c = np.cov(np.stack([columns, rows]), bias=True) + np.eye(2) / 12
    values, vectors = np.linalg.eigh(c)
    ratio, angle = 0.5 * np.log(values[1] / values[0]), np.arctan2(vectors[1, 1], vectors[0, 1])
    stretch = ratio * np.array([np.cos(2 * angle), np.sin(2 * angle)])
    # Smoothed a little, so that the zero crossing of the distance is a line rather than a staircase.
    padded = np.pad(shape, 2)
    inside, outside = (np.asarray(ndimage.distance_transform_edt(part)) for part in (padded, ~padded))
    distance = ndimage.gaussian_filter(inside - outside, 0.7)
    radius = np.sqrt(shape.sum() / np.pi)
    turns = np.arange(ANGLES) * 2 * np.pi / ANGLES
    rays = _spread(stretch) @ np.stack([np.cos(turns), np.sin(turns)])  # (x, y) on the unit ellipse
    lengths = np.arange(0, 2.5, 0.5 / radius) * radius
    where = centre[:, None, None] + 2 + rays[::-1][:, :, None] * lengths
    seen = ndimage.map_coordinates(distance, where, order=1, mode="nearest")  # (ANGLES, lengths)
    last = lengths.size - 1 - (seen[:, ::-1] > 0).argmax(axis=1)
    last = np.where((seen > 0).any(axis=1), np.minimum(last, lengths.size - 2), 0)
    at = np.arange(ANGLES)
    before, after = seen[at, last], seen[at, last + 1]
    share = np.clip(before / np.maximum(before - after, 1e-9), 0, 1)
    found = np.maximum(lengths[last] + share * (lengths[1] - lengths[0]), 0.2 * radius)
    return stretch, np.fft.rfft(np.log(found / radius), norm="forward")[: HIGH + 1]


def _spread(stretch: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric 2 × 2 matrix of determinant 1 that takes a disc to the ellipse of a stretch, in (x, y)."""
    ratio = float(np.hypot(*stretch))
    if ratio < 1e-12:
        return np.eye(2)
    half = np.array([[stretch[0], stretch[1]], [stretch[1], -stretch[0]]]) / ratio
    return np.cosh(ratio / 2) * np.eye(2) + np.sinh(ratio / 2) * half


def _band(size: float) -> slice:
    finest = int(2 * np.pi * size / np.sqrt(np.pi) / _FINEST_PX)
    return slice(LOW + 1, max(LOW + 1, min(HIGH, finest)) + 1)


def _energy(modes: NDArray[np.complex128]) -> float:
    """Mean square of the real signal that these modes (none of them the constant one) make up."""
    return float(2 * (np.abs(modes) ** 2).sum())


def _numbers(example: Example, mirrored: bool, placed: bool) -> NDArray[np.float64]:
    one = example.outline
    side = -1.0 if mirrored else 1.0
    modes = one.modes[1 : LOW + 1]
    if mirrored:  # the angle a becomes pi - a
        modes = np.conj(modes) * (-1.0) ** np.arange(1, LOW + 1)
    scalars = [
        np.log(example.size),
        one.stretch[0],
        side * one.stretch[1],
        np.log(one.roughness + _ROUGHNESS_OFFSET),
    ]
    where = [example.place.depth, side * example.place.lateral] if placed and example.place else []
    return np.concatenate([scalars, modes.real, modes.imag, where])
