"""Latents and prompt embeddings that were computed once, under a digest of everything that decides them.

Kept is the mode of the autoencoder's posterior, not its moments: training and inference both read the mode
(`latents.encode`), so a sample of the posterior would train on something that inference never sees; and the mode
is half as large.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from tasks.synthesis.diffusion import latents
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.lora_state import digest_of

_VERSION = 1


class Latents(Protocol):
    """Where bytes are kept by key, 64 hexadecimal digits."""

    def get(self, key: str) -> bytes | None:
        """What was put there, or None."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Keep `data`; whoever else puts something under this key puts the same."""
        ...


class Forgetful:
    """A cache that keeps nothing."""

    def get(self, key: str) -> bytes | None:
        """Nothing."""
        return None

    def put(self, key: str, data: bytes) -> None:
        """Forget it."""


@dataclass(frozen=True)
class View:
    """Latents (V, C, h, w) of a stack of images: whole, flawed, and with the mask the condition (V, 1+C, h, w)."""

    clean: torch.Tensor
    condition: torch.Tensor | None
    flawed: torch.Tensor | None


class EncodedViews:
    """A base's autoencoder behind a cache."""

    def __init__(self, base: Base, cache: Latents) -> None:
        self._base, self._cache = base, cache
        self._name = f"latents {_VERSION} {digest(base.vae)}"

    def key(self, images: NDArray[np.uint8], holes: NDArray[np.bool_] | None, flawed: NDArray[np.uint8] | None) -> str:
        """Digest of the pixels, their resolution, the autoencoder's weights and its precision."""
        weight = next(self._base.vae.parameters())
        parts: list[object] = [self._name, weight.dtype, weight.device.type]
        for array in (images, holes, flawed):
            parts += ["none"] if array is None else [array.shape, array.dtype.str, array.tobytes()]
        return digest_of(*parts)

    def encode(
        self,
        images: NDArray[np.uint8],
        holes: NDArray[np.bool_] | None = None,
        flawed: NDArray[np.uint8] | None = None,
    ) -> View:
        """Latents of images (V, H, W). One call encodes one example's views and no other's, so that what is in
        the cache already never changes the bits of what is not."""
        key = self.key(images, holes, flawed)
        device = next(self._base.vae.parameters()).device
        saved = self._cache.get(key)
        if saved is None:
            shown = images if flawed is None else flawed
            parts = {"clean": latents.encode(self._base, images)}
            if flawed is not None:
                parts["flawed"] = latents.encode(self._base, flawed)
            if holes is not None:
                parts["condition"] = latents.condition(self._base, shown, holes)
            saved = safetensors.torch.save({name: part.cpu().contiguous() for name, part in parts.items()})
            self._cache.put(key, saved)
        found = {name: part.to(device) for name, part in safetensors.torch.load(saved).items()}
        return View(found["clean"], found.get("condition"), found.get("flawed"))


def embed(base: Base, prompts: Sequence[str], cache: Latents) -> torch.Tensor:
    """`latents.embed` behind a cache: (P, L, D)."""
    weight = next(base.text_encoder.parameters())
    name = [f"prompt {_VERSION} {digest(base.text_encoder)}", weight.dtype, weight.device.type]
    embedded: list[torch.Tensor] = []
    for prompt in prompts:
        key = digest_of(*name, latents.tokens(base.tokenizer, [prompt]).tolist())
        saved = cache.get(key)
        if saved is None:
            saved = safetensors.torch.save({"prompt": latents.embed(base, [prompt]).cpu()})
            cache.put(key, saved)
        embedded.append(safetensors.torch.load(saved)["prompt"])
    return torch.cat(embedded).to(weight.device)


def digest(network: torch.nn.Module) -> str:
    """sha256 over a network's configuration and weights."""
    total = hashlib.sha256(_text(getattr(network, "config", None)).encode())
    for name, tensor in network.state_dict().items():
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(raw.tobytes())
    return total.hexdigest()


def _text(config: Any) -> str:
    plain: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    return json.dumps({key: value for key, value in plain.items() if not key.startswith("_")}, default=str)
