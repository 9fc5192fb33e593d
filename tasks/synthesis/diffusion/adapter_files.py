"""Adapter files: ours, diffusers' and peft's, all LoRA matrices in safetensors under different names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key

UNET, TEXT_ENCODER = "unet.", "text_encoder."

_PEFT = "base_model.model."
_KOHYA = ("lora_unet_", "lora_te_")
_CONFIG = "lora_adapter_metadata"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
MAGNITUDE = ".lora_magnitude_vector.weight"
"""Without the `.weight`, as peft itself writes it, diffusers 0.42 loses it on its way into a text encoder."""

_EXPECTED = (
    "a LoRA adapter as safetensors, written by sonoforge, by diffusers' save_lora_weights or by peft's save_pretrained"
)


@dataclass(frozen=True)
class Change:
    """What an adapter adds to one weight: `scale` · `up` · `down`; see `adapters.merged`."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None


def write(weights: Mapping[str, torch.Tensor], scales: Mapping[str, float]) -> bytes:
    """An adapter's safetensors, for diffusers' `load_lora_weights`.

    Args:
        weights: by name: `unet.` or `text_encoder.`, the module, `lora_A.weight`, `lora_B.weight` or
            `lora_magnitude_vector.weight`.
        scales: of each B by its name. They are multiplied in: loaders that are told no alpha take it to equal
            the rank, and know nothing of rsLoRA.
    """
    plain = {name: weight.detach().float() * scales.get(name, 1.0) for name, weight in weights.items()}
    return safetensors.torch.save({name: weight.cpu().contiguous() for name, weight in plain.items()}, {"format": "pt"})


def load(path: Path) -> bytes:
    """An adapter from a file, or from the folder that peft's `save_pretrained` writes; in the form of `write`.

    Raises:
        ValueError: nothing is there, or it is no LoRA adapter.
    """
    config = None
    file = path
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} safetensors files; expected one, {_EXPECTED}")
        file = found[0]
    if not file.is_file():
        raise ValueError(f"{path}: nothing is there; expected {_EXPECTED}")
    beside = file.parent / "adapter_config.json"
    if beside.is_file():
        config = cast(dict[str, Any], json.loads(beside.read_text(encoding="utf-8")))
    weights: dict[str, torch.Tensor] = {}
    scales: dict[str, float] = {}
    for name, change in read(file.read_bytes(), config).items():
        weights[name + DOWN], weights[name + UP] = change.down, change.up
        scales[name + UP] = change.scale
        if change.magnitude is not None:
            weights[name + MAGNITUDE] = change.magnitude
    return write(weights, scales)


def read(data: bytes, config: Mapping[str, Any] | None = None) -> dict[str, Change]:
    """What an adapter changes, by module: `unet.mid_block.attentions.0. ... .to_q`.

    Args:
        config: the content of the `adapter_config.json` that peft writes beside its weights; without it peft's
            alpha is unknown, and its file is refused.

    Raises:
        ValueError: it is no LoRA adapter.
    """
    tensors, header = _opened(data)
    alphas: Mapping[str, float] = {}
    if all(name.startswith(_PEFT) for name in tensors):
        if config is None:
            raise ValueError(
                "the adapter was written by peft, whose alpha is in adapter_config.json; expected the folder that "
                "save_pretrained wrote, read with adapter_files.load"
            )
        tensors = {name.removeprefix(_PEFT): tensor for name, tensor in tensors.items()}
    else:
        config = json.loads(header[_CONFIG]) if _CONFIG in header else None
        if all(name.startswith(_KOHYA) for name in tensors):
            found = cast(tuple[Any, Any], StableDiffusionLoraLoaderMixin.lora_state_dict(cast(Any, dict(tensors))))
            tensors, alphas = found[0], found[1] or {}
    named = _plainly_named(tensors)
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in named})
    return {module: _change(module, named, _settings(config, module), alphas) for module in modules}


def module_of(unet: torch.nn.Module, text_encoder: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module of a base that a name in an adapter means.

    Raises:
        ValueError: there is none, or it has no plain weight.
    """
    if name.startswith(TEXT_ENCODER):
        inner = name.removeprefix(TEXT_ENCODER)
        if not hasattr(text_encoder, "text_model"):  # transformers 5 has one level less
            inner = inner.removeprefix("text_model.")
        modules = dict(text_encoder.named_modules())
    else:
        inner, modules = name.removeprefix(UNET), dict(unet.named_modules())
    module = modules.get(inner)
    if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
        found = "no such module" if module is None else f"a {type(module).__name__} there"
        raise ValueError(
            f"the adapter changes {name}, but the base has {found}; expected an adapter of linear layers and "
            "convolutions, trained for this base"
        )
    return module


def _opened(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"the adapter is no safetensors file ({error}); expected {_EXPECTED}") from error
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    foreign = sorted(name for name in tensors if "lora" not in name)
    if foreign or not tensors:
        found = f"holds {foreign[0]}" if foreign else "is empty"
        raise ValueError(f"the adapter {found}; expected {_EXPECTED}")
    return tensors, header


def _plainly_named(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All names as `write` has them: diffusers' older names are translated by diffusers itself."""
    unet: dict[str, torch.Tensor] = {}
    text: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(TEXT_ENCODER)
        if inner != name or inner.startswith(("text_model.", "encoder.layers.")):
            text[inner] = tensor
        else:
            unet[name.removeprefix(UNET)] = tensor
    unet = convert_unet_state_dict_to_peft(unet)
    if any("lora_linear_layer" in name or "to_out_lora" in name for name in text):
        text = convert_state_dict_to_peft(text)
    named: dict[str, torch.Tensor] = {}
    for prefix, part in (UNET, unet), (TEXT_ENCODER, text):
        for name, tensor in part.items():
            plain = prefix + name
            if plain.endswith(".lora_magnitude_vector"):
                plain += ".weight"
            if not plain.endswith((DOWN, UP, MAGNITUDE)):
                raise ValueError(
                    f"the adapter holds {plain}; expected A and B of LoRA, and magnitudes of DoRA, and nothing else"
                )
            named[plain] = tensor
    return named


def _settings(config: Mapping[str, Any] | None, module: str) -> Mapping[str, Any]:
    """The part of a configuration that is about a module's network; diffusers keeps both in one."""
    if config is None:
        return {}
    prefix = module.split(".")[0] + "."
    own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    return own or config


def _change(
    module: str, named: Mapping[str, torch.Tensor], settings: Mapping[str, Any], alphas: Mapping[str, float]
) -> Change:
    down, up = named.get(module + DOWN), named.get(module + UP)
    if down is None or up is None:
        raise ValueError(f"the adapter holds only a part of A and B for {module}; expected {_EXPECTED}")
    rank = down.shape[0]
    alpha = alphas.get(module + ".alpha")
    if "lora_alpha" in settings:
        inner = module.split(".", 1)[1]
        patterns = cast(Mapping[str, float], settings.get("alpha_pattern") or {})
        alpha = patterns.get(get_pattern_key(list(patterns), inner), settings["lora_alpha"])
    scale = 1.0 if alpha is None else float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
    return Change(down, up, scale, named.get(module + MAGNITUDE))
