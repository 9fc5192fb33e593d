"""Set scores here against torchmetrics, scipy and prdc: same features, same machine, one after the other.

Fréchet distance at InceptionV3's 2,048 dimensions: ours against `FrechetInceptionDistance.compute` of torchmetrics
(eigenvalues of the product of the covariances) and against the formula of pytorch-fid with scipy's matrix square root.
The peers are given the moments, and the time they take to make them is not counted; nor is ours for 5,000 images, but
it is for 1,000, where no covariance is made at all. Extraction: InceptionV3 with random weights, one module for all:
our extractor, torchmetrics' wrapper with the module as `feature`, and a loop over single images. Precision, recall,
density and coverage against prdc; KID over all pairs against torchmetrics' `poly_mmd`. Memory: peak of a fresh process
for ten times the images.
"""

import contextlib
import io
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from prdc import compute_prdc
from rich.console import Console
from safetensors.torch import save
from scipy import linalg
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from benchmarks import quality_memory
from benchmarks.quality_memory import What
from benchmarks.ratios import Ratio, main, paired
from tasks.quality.extractors import inception
from tasks.quality.frechet import Moments, distance_of_moments, frechet_distance, moments
from tasks.quality.kernel import kernel_distance
from tasks.quality.neighbours import precision_recall

DIMENSION = 2048
Features = NDArray[np.float64]
Result = TypeVar("Result")


class Given(nn.Module):
    """Images that are their own features."""

    num_features = DIMENSION

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class Wrapped(nn.Module):
    """InceptionV3 with the input of the FID reference, as torchmetrics asks for features: images (n, 3, h, w)."""

    num_features = DIMENSION

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = images.float() / 127.5 - 1
        side = inception.PX
        return self.network(nn.functional.interpolate(levels, (side, side), mode="bilinear", align_corners=False))


def measure(quick: bool) -> list[Ratio]:
    """All comparisons."""
    warnings.filterwarnings("ignore", module="torchmetrics")
    repeats = 1 if quick else 3
    return [
        *frechet(5000, repeats),
        *frechet(1000, repeats),
        *extraction(16 if quick else 64, repeats),
        *neighbourhoods(1000 if quick else 4000, 3),
        *kernels(1000 if quick else 4000, 3),
        *memory(10_000 if quick else 20_000),
    ]


def frechet(images: int, repeats: int) -> list[Ratio]:
    """Distances a second, and how far ours is from the peers'."""
    real, made = clouds(images)
    known = moments([real]), moments([made])
    peer = FrechetInceptionDistance(feature=Given(), compute_with_cache=False).set_dtype(torch.float64)
    peer.update(torch.from_numpy(real), real=True)
    peer.update(torch.from_numpy(made), real=False)
    few = images < DIMENSION
    own, value = timed(lambda: frechet_distance(real, made) if few else distance_of_moments(*known), 3 * repeats)
    theirs, by_torchmetrics = timed(lambda: float(peer.compute()), repeats)
    scipys, by_scipy = timed(lambda: square_root(*known), repeats)
    explain(
        f"Fréchet distance of {images} + {images} images, 2,048 features", ours=own, torchmetrics=theirs, scipy=scipys
    )
    explain("its value", ours=[value], torchmetrics=[by_torchmetrics], scipy=[by_scipy])
    what = f"Fréchet distances/s at d = 2048 from {'features' if few else 'moments'} of {images} images, ours / "
    return [
        paired(f"{what}torchmetrics", 10, [seconds / min(own) for seconds in theirs]),
        paired(f"{what}scipy's sqrtm", 10, [seconds / min(own) for seconds in scipys]),
    ]


def clouds(images: int) -> tuple[Features, Features]:
    """Two sets whose spectrum falls as that of a network's features does."""
    rng = np.random.default_rng(0)
    spectrum = 0.3 * (1 + np.arange(DIMENSION)) ** -0.5
    mix = rng.normal(size=(DIMENSION, DIMENSION)) / DIMENSION**0.5
    real, made = (rng.normal(size=(images, DIMENSION)) * spectrum @ mix for _ in range(2))
    return real, 1.1 * made + 0.01


def square_root(real: Moments, made: Moments) -> float:
    """As pytorch-fid writes it."""
    root = linalg.sqrtm(real.covariance @ made.covariance)
    offset = real.mean - made.mean
    spread = np.trace(real.covariance) + np.trace(made.covariance)
    return float(offset @ offset + spread - 2 * np.trace(root.real))


def extraction(images: int, repeats: int) -> list[Ratio]:
    """Images a second of one and the same InceptionV3."""
    torch.manual_seed(0)
    network = inception.Inception().eval()
    extractor = inception.loads(save(network.state_dict()))
    seen = np.random.default_rng(0).integers(0, 256, (images, 128, 128), np.uint8)
    colour = torch.from_numpy(seen)[:, None].expand(-1, 3, -1, -1).contiguous()
    peer, wrapped = FrechetInceptionDistance(feature=Wrapped(network)), Wrapped(network)

    def single() -> None:
        for at in range(images):
            wrapped(colour[at : at + 1])

    def updated() -> None:
        for at in range(0, images, extractor.batch):
            peer.update(colour[at : at + extractor.batch], real=True)

    extractor.features(seen[:2]), wrapped(colour[:2])
    own, theirs, loop = [], [], []
    for _ in range(max(2, repeats)):  # in turn, so that a busy machine disturbs all alike
        own += timed(lambda: extractor.features(seen), 1)[0]
        theirs += timed(updated, 1)[0]
        loop += timed(single, 1)[0]
    known = wrapped(colour[:4]).double().numpy()
    off = np.abs(extractor.features(seen[:4]) - known).max() / np.abs(known).max()
    explain(
        f"InceptionV3 on {images} images, largest relative difference {off:.1e}",
        ours=own,
        torchmetrics=theirs,
        loop=loop,
    )
    return [
        paired("InceptionV3 images/s, ours / torchmetrics' wrapper", 1, pairs(theirs, own)),
        paired("InceptionV3 images/s, ours / one image at a time", 1, pairs(loop, own)),
    ]


def neighbourhoods(images: int, repeats: int) -> list[Ratio]:
    """Precision, recall, density and coverage."""
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(images, 64)), 0.9 * rng.normal(size=(images, 64))

    def peer() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return compute_prdc(real, made, 5)

    own, theirs = [], []
    for _ in range(repeats):
        seconds, ours = timed(lambda: precision_recall(real, made), 1)
        own += seconds
        seconds, found = timed(peer, 1)
        theirs += seconds
        assert max(abs(ours[name] - found[name]) for name in ours) < 1e-9
    explain(f"precision, recall, density, coverage of {images} + {images} images", ours=own, prdc=theirs)
    return [paired(f"precision/recall/density/coverage of {images} images/s, ours / prdc", 1, pairs(theirs, own))]


def kernels(images: int, repeats: int) -> list[Ratio]:
    """KID over all pairs."""
    real, made = (side[:images] for side in clouds(images))
    a, b = torch.from_numpy(real), torch.from_numpy(made)
    own, theirs = [], []
    for _ in range(repeats):
        seconds, ours = timed(lambda: kernel_distance(real, made), 1)
        own += seconds
        seconds, found = timed(lambda: float(poly_mmd(a, b)), 1)
        theirs += seconds
        assert abs(ours - found) < 1e-9
    explain(f"KID of all pairs of {images} + {images} images, 2,048 features", ours=own, torchmetrics=theirs)
    return [paired(f"KID of all pairs of {images} images/s, ours / torchmetrics", 1, pairs(theirs, own))]


def memory(images: int) -> list[Ratio]:
    """Peak of a fresh process for ten times the images."""
    found: list[Ratio] = []
    goals: dict[What, float | None] = {"frechet": 1.05, "set scores": 1.05, "frechet of all in memory": None}
    for what, goal in goals.items():
        few, many = quality_memory.peak(what, images), quality_memory.peak(what, 10 * images)
        name = f"peak memory, {what}: {10 * images} / {images} images (less is better)"
        found.append(paired(name, goal, [many / few]))
        Console(stderr=True).print(f"{what}: {few / 2**20:.0f} MiB for {images}, {many / 2**20:.0f} for {10 * images}")
    return found


def timed(work: Callable[[], Result], repeats: int) -> tuple[list[float], Result]:
    """Seconds of every repetition, and what came out."""
    seconds: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begin)
    return seconds, found


def pairs(theirs: list[float], own: list[float]) -> list[float]:
    """How many times as fast, by repetition."""
    return [peer / mine for peer, mine in zip(theirs, own, strict=True)]


def explain(what: str, **numbers: list[float]) -> None:
    """Print what a ratio is made of, on standard error."""
    text = ", ".join(f"{name} {min(values):.4g}" for name, values in numbers.items())
    Console(stderr=True).print(f"{what}: {text}")


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
