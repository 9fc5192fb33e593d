"""The feature extractor that ships with the project: 32 numbers an image, trained on phantoms alone.

Set scores compare clouds of these features. 32 rather than InceptionV3's 2048 because the Fréchet distance
needs more images than dimensions, and medical sets have hundreds. The network learns label, lesion geometry
and how degraded the picture is, so that its features move when any of these does.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn
from torch.nn import functional as F

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.quality import fitting
from tasks.quality.degradation import DEGRADATIONS, degrade, draw_severities
from tasks.quality.extractors import Extractor

DIMENSION = 32
PX = 128
_GEOMETRY = 4  # centre y, centre x, root of the area share, log of height over width
_CONFIG = {"name": "sonoforge-features", "architecture": 1, "dimension": DIMENSION, "px": PX}


class Params(Record):
    """How the extractor is trained. The defaults take about a minute on two cores."""

    steps: int = Field(default=1200, ge=1, le=100_000, description="optimizer steps")
    batch: int = Field(default=32, ge=2, le=1024, description="images a step")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")


class Network(nn.Module):
    """Four strided convolution stages; means and deviations of the last three are mixed into 32 features.

    Deviations keep the texture that averages lose; two coordinate channels tell where things are.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 32, 64, 96]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    before,
                    after,
                    5 if before == 3 else 3,
                    stride=2,
                    padding=2 if before == 3 else 1,
                    bias=False,
                ),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.mix = nn.Linear(2 * sum(widths[2:]), DIMENSION, bias=False)
        self.scale = nn.BatchNorm1d(DIMENSION, affine=False)  # every feature has unit variance on the training set

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 32) of images (B, 1, 128, 128), 0..1."""
        line = torch.linspace(-1, 1, images.shape[-1])
        y, x = torch.meshgrid(line, line, indexing="ij")
        maps = torch.cat([images, torch.stack([y, x]).expand(len(images), -1, -1, -1)], dim=1)
        pooled: list[torch.Tensor] = []
        for level, stage in enumerate(self.stages):
            maps = stage(maps)
            if level:
                pooled += [maps.mean((2, 3)), (maps.var((2, 3)) + 1e-5).sqrt()]
        return self.scale(self.mix(torch.cat(pooled, dim=1)))


def build(seed: int = 0) -> nn.Module:
    """The untrained network."""
    return fitting.initialise(Network, seed)


def train(
    images: Grey,
    masks: Mask,
    labels: Sequence[str],
    params: Params,
    seed: int,
    advance: fitting.Advance = lambda done: None,
) -> bytes:
    """Train on images (n, h, w) with masks (blank where healthy) and labels; returns the weights.

    Three linear heads share the features: label (cross-entropy), lesion geometry (squared error, lesions
    only) and the severities of a random `degrade` (squared error). They are thrown away afterwards.
    """
    names = sorted(set(labels))
    label_N = np.array([names.index(label) for label in labels])
    geometry = torch.from_numpy(_geometry(masks))
    drawn = np.asarray(masks.any(axis=(1, 2)))
    network = build(seed)
    outputs = len(names) + _GEOMETRY + len(DEGRADATIONS)
    heads = fitting.initialise(lambda: nn.Linear(DIMENSION, outputs), seed + 1)

    def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> torch.Tensor:
        severities = np.stack([draw_severities(rng) for _ in rows])
        mirrored = rng.random(len(rows)) < 0.5
        pictures = np.stack(
            [
                degrade(images[row][:, ::-1] if mirror else images[row], severity, rng)
                for row, mirror, severity in zip(rows, mirrored, severities, strict=True)
            ]
        )
        wanted = geometry[rows].clone()
        wanted[torch.from_numpy(mirrored), 1] *= -1
        seen = network(fitting.to_tensor(pictures, PX))
        answers = heads(seen)
        label, shape, severity = answers.split([len(names), _GEOMETRY, len(DEGRADATIONS)], dim=1)
        loss = F.cross_entropy(label, torch.from_numpy(label_N[rows]))
        lesions = torch.from_numpy(drawn[rows])
        if lesions.any():
            loss = loss + F.mse_loss(shape[lesions], wanted[lesions])
        return loss + 5 * F.mse_loss(severity, torch.from_numpy(severities)) + 0.5 * _redundancy(seen)

    rng = np.random.default_rng([seed, 0])
    batches = fitting.balanced_batches(label_N, params.batch, np.random.default_rng([seed, 1]))
    both = nn.ModuleList([network, heads])
    fitting.fit(both, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    return fitting.dump(network, _CONFIG)


def save(folder: Path, weights: bytes, about: dict[str, Any] | None = None) -> str:
    """Write `model.safetensors` and `config.json`, with `about` (its training); returns the digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    config = _CONFIG | {"sha256": digest, "about": about or {}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return digest


def load(folder: Path) -> Extractor:
    """The extractor saved in `folder`.

    Raises:
        ValueError: files missing, of another architecture, or weights that are not those of the config.
    """
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no extractor: {' and '.join(missing)} missing; train one with `sonoforge train-base`"
        )
    config = json.loads((folder / "config.json").read_text())
    if {key: config.get(key) for key in _CONFIG} != _CONFIG:
        found = {key: config.get(key) for key in _CONFIG}
        raise ValueError(f"{folder} holds the extractor {found}, this version reads {_CONFIG}")
    weights = (folder / "model.safetensors").read_bytes()
    return loads(weights, expected=config["sha256"])


def loads(weights: bytes, expected: str | None = None) -> Extractor:
    """The extractor of the bytes that `train` returns, checked against the sha256 `expected`.

    Raises:
        ValueError: they are others, or of another network.
    """
    digest = hashlib.sha256(weights).hexdigest()
    if expected not in (None, digest):
        raise ValueError(f"extractor weights have sha256 {digest}, their config records {expected}")
    network = build()
    try:
        network.load_state_dict(load_tensors(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"these weights are not those of a {_CONFIG['name']} network: {error}") from error
    network.eval()

    def compute(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
        return fitting.predict(network, fitting.to_tensor(images, PX)).double().numpy()

    return Extractor(str(_CONFIG["name"]), digest, DIMENSION, compute)


def _redundancy(features: torch.Tensor) -> torch.Tensor:
    """Sum of squared covariances between different features, over their number (VICReg, arXiv 2105.04906)."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (len(features) - 1)
    return (covariance - covariance.diag().diag()).square().sum() / features.shape[1]


def _geometry(masks: Mask) -> NDArray[np.float32]:
    """Centre (−1..1, y and x), root of the area share and log aspect of every mask; zeros where blank."""
    out = np.zeros((len(masks), _GEOMETRY), np.float32)
    for row, mask in enumerate(masks):
        if not mask.any():
            continue
        y, x = np.nonzero(mask)
        centre = 2 * y.mean() / mask.shape[0] - 1, 2 * x.mean() / mask.shape[1] - 1
        out[row] = *centre, np.sqrt(mask.mean()), np.log(np.ptp(y) + 1) - np.log(np.ptp(x) + 1)
    return out
