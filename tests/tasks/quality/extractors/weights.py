"""Weights in the layout of the FID weights, drawn from their names alone: every machine has the same."""

import zlib

import numpy as np
import torch


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A tensor of each shape: convolutions that keep the scale of what passes, norms near 1, means near 0."""
    return {name: torch.from_numpy(_drawn(name, shape)) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return values * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    if name.endswith(("bn.weight", "running_var")):
        return np.float32(1) + np.float32(0.2) * np.tanh(values)
    return np.float32(0.1) * values
