"""How every judge is trained and read: one loop, one augmentation, one file format.

Needs torch at import, so judges import it inside functions: the command line starts without it. Nothing here
touches or depends on torch's global random state, because judges train in threads beside other work.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tasks.imaging import Grey, Mask

Advance = Callable[[int], None]
Rng = np.random.Generator

_CONSTRUCTION = threading.Lock()


def device() -> torch.device:
    """Where networks too large for a judge are trained: on the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_tensor(images: Grey, px: int) -> torch.Tensor:
    """Images (n, h, w), 0..255, as float32 (n, 1, px, px), 0..1: area-averaged or, upwards, bilinear."""
    return _resized(torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).float().div_(255), px)


def to_mask_tensor(masks: Mask, px: int) -> torch.Tensor:
    """Masks (n, h, w) as float32 (n, 1, px, px): the share of each pixel that is covered."""
    return _resized(torch.from_numpy(np.ascontiguousarray(masks)).unsqueeze(1).float(), px)


def normalised(tensor: torch.Tensor) -> torch.Tensor:
    """Grey levels 0..1 brought to about zero mean and unit variance, the same for every image."""
    return (tensor - 0.25) / 0.2


def concatenate(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """`torch.cat`, so that judges need not import torch."""
    return torch.cat(list(tensors), dim=dim)


def initialise(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network and draw all its weights from `seed` alone.

    MONAI's constructors draw from the global generator; that draw is thrown away and the state put back.
    """
    with _CONSTRUCTION, torch.random.fork_rng(devices=[]):
        network = make()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim >= 2 and not name.endswith(("cls_token", "position_embeddings")):
                nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
            elif name.endswith(("cls_token", "position_embeddings")):
                weight.normal_(0, 0.02, generator=generator)
            elif name.endswith("bias"):
                weight.zero_()
            elif weight.numel() == 1:  # PReLU's slope
                weight.fill_(0.25)
            else:
                weight.fill_(1)
    return network


def fit(
    network: nn.Module,
    loss_of: Callable[[NDArray[np.intp], Rng], torch.Tensor],
    batches: Iterator[NDArray[np.intp]],
    steps: int,
    learning_rate: float,
    rng: Rng,
    advance: Advance,
) -> None:
    """AdamW under a one-cycle schedule, gradients clipped at norm 1. `loss_of` gets the rows of one batch."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.15)
    for _ in range(steps):
        loss = loss_of(next(batches), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        advance(1)
    network.eval()


def balanced_batches(classes: NDArray[np.intp], size: int, rng: Rng) -> Iterator[NDArray[np.intp]]:
    """Endless batches of row numbers in which every class is equally likely, however rare."""
    members = [np.flatnonzero(classes == k) for k in np.unique(classes)]
    while True:
        picked = rng.integers(len(members), size=size)
        yield np.array([rng.choice(members[k]) for k in picked])


def augment(
    images: torch.Tensor, masks: torch.Tensor | None, rng: Rng, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One random view of every pair: mirror, shift, zoom, a little shear; gain and gamma for the image.

    Image and mask share the geometry. Never upside down: shadows fall. At `strength` 1 sizes change by up to 15 %;
    it multiplies all ranges.
    """
    n = len(images)
    zoom = rng.uniform(1 - 0.15 * strength, 1 + 0.15 * strength, n)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0] = zoom * rng.choice([-1.0, 1.0], n)
    theta[:, 1, 1] = zoom * rng.uniform(0.93 - 0.07 * (strength - 1), 1.07 + 0.07 * (strength - 1), n)
    theta[:, 0, 1] = rng.uniform(-0.1 * strength, 0.1 * strength, n)
    theta[:, :, 2] = rng.uniform(-0.08 * strength, 0.08 * strength, (n, 2))
    gain = torch.from_numpy(rng.uniform(1 - 0.2 * strength, 1 + 0.2 * strength, (n, 1, 1, 1)).astype(np.float32))
    gamma = torch.from_numpy(rng.uniform(0.8**strength, 1.25**strength, (n, 1, 1, 1)).astype(np.float32))
    grid = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    moved = (moved.clamp(0, 1) ** gamma * gain).clamp(0, 1)
    if masks is None:
        return moved, None
    return moved, F.grid_sample(masks, grid, align_corners=False)


def predict(network: nn.Module, inputs: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Outputs of `network` on all `inputs`, in fixed batches: the same rows give the same numbers."""
    network.eval()
    where = next(network.parameters()).device
    with torch.inference_mode():
        return torch.cat([network(inputs[at : at + batch].to(where)).cpu() for at in range(0, len(inputs), batch)])


def dump(network: nn.Module, config: Mapping[str, object]) -> bytes:
    """Weights and what is needed to rebuild the network, as safetensors. Same weights, same bytes."""
    # One metadata key only: safetensors writes several in no fixed order.
    metadata = {"config": json.dumps(config, sort_keys=True)}
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(weights, metadata)


def read_config(data: bytes) -> dict[str, Any]:
    """The config that `dump` stored beside the weights; empty where there is none.

    Raises:
        ValueError: the bytes are not safetensors.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header.get("__metadata__", {}).get("config", "{}"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"expected the safetensors bytes of a judge, found {len(data)} other bytes") from error


def restore(data: bytes, kind: str, make: Callable[[dict[str, Any]], nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """Network and config of `dump`; `make` builds the empty network from the config.

    Raises:
        ValueError: the bytes are no judge, or a judge of another kind.
    """
    config = read_config(data)
    if config.get("kind") != kind:
        raise ValueError(f"these weights are a {config.get('kind', 'stranger')}, expected a {kind}")
    with _CONSTRUCTION, torch.random.fork_rng(devices=[]):
        network = make(config)
    network.load_state_dict(safetensors.torch.load(data))
    return network.eval(), config


def _resized(tensor: torch.Tensor, px: int) -> torch.Tensor:
    if tensor.shape[-2:] == (px, px):
        return tensor
    if min(tensor.shape[-2:]) >= px:
        return F.interpolate(tensor, size=(px, px), mode="area")
    return F.interpolate(tensor, size=(px, px), mode="bilinear", align_corners=False)
