"""An extractor of any torch module."""

import hashlib
import json
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tasks.imaging import Grey, Mask
from tasks.quality import fitting
from tasks.quality.extractors import Extractor

Resize = Literal["area", "bilinear"]


def of_module(
    module: nn.Module,
    name: str,
    dimension: int,
    px: int,
    *,
    channels: int = 3,
    mean: float = 0.5,
    std: float = 0.5,
    resize: Resize = "area",
    batch: int = 64,
    digest: str | None = None,
) -> Extractor:
    """Features that a module gives of pictures (batch, channels, px, px), the grey levels repeated as channels.

    Args:
        module: answers (batch, dimension), or (batch, dimension, 1, 1). Put into evaluation mode; runs where it lies.
        name: of the extractor.
        dimension: numbers an image.
        px: side of the square that it sees.
        channels: 1 or 3.
        mean: taken off grey levels 0..1 ...
        std: ... which are then divided by this; the defaults give -1..1.
        resize: area: averaged downwards, bilinear upwards; bilinear: four neighbours, without antialiasing.
        batch: images at once.
        digest: of the weights where one is known; else the sha256 of its state and of these arguments.
    """
    module.eval()
    asked: dict[str, object] = {"name": name, "dimension": dimension, "px": px, "channels": channels}
    asked |= {"mean": mean, "std": std, "resize": resize}
    place = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))

    def compute(images: Grey, masks: Mask | None) -> NDArray[np.float64]:
        with torch.inference_mode():
            seen = (resized(images, px, resize) - mean) / std
            inputs = seen.expand(-1, channels, -1, -1).to(place).contiguous(memory_format=torch.channels_last)
            answer: torch.Tensor = module(inputs)
        if answer.ndim == 4 and answer.shape[2:] == (1, 1):
            answer = answer.flatten(1)
        return answer.double().cpu().numpy()

    return Extractor(name, digest or state_digest(module, asked), dimension, compute, batch)


def resized(images: Grey, px: int, resize: Resize) -> torch.Tensor:
    """Images (n, h, w) as (n, 1, px, px), 0..1."""
    if resize == "area":
        return fitting.to_tensor(images, px)
    levels = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).float().div_(255)
    return F.interpolate(levels, size=(px, px), mode="bilinear", align_corners=False)


def state_digest(module: nn.Module, asked: dict[str, object]) -> str:
    """sha256 of how a module is asked, and of the names, types, shapes and bytes of its weights."""
    total = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for key, tensor in sorted(module.state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
