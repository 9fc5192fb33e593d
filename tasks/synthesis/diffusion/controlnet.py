"""A ControlNet beside the UNet: a copy of its encoder that sees a mask and adds what it makes of it, layer by layer.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", 2023. The file is that of a folder in
diffusers' layout, `diffusion_pytorch_model.safetensors`, with the content of its `config.json` in the header, so that
its bytes alone say all.
"""

import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from storage import weights
from tasks.synthesis.diffusion import latents
from tasks.synthesis.diffusion.adapters import Precision
from tasks.synthesis.diffusion.base import Base

LAYOUT = weights.Layout(
    kind="ControlNet",
    expected="a folder in diffusers' ControlNet layout: config.json, diffusion_pytorch_model.safetensors",
    models={"": ("diffusion_pytorch_model", "ControlNetModel")},
)
FILE = "diffusion_pytorch_model.safetensors"

_HEADER = "controlnet"
_CHANNELS = (16, 32, 96, 256)  # of the convolutions that see the mask, halving it between two; as published
_FITTING = ("cross_attention_dim", "block_out_channels", "down_block_types", "layers_per_block", "in_channels")
_KEPT = 2
_loaded: "OrderedDict[tuple[str, str, str], ControlNetModel]" = OrderedDict()
_lock = threading.Lock()


def fresh(base: Base, unet: UNet2DConditionModel, seed: int) -> ControlNetModel:
    """A ControlNet that adds nothing yet: the encoder of `unet`, in float32, behind convolutions set to zero.

    Args:
        unet: the base's, with or without an adapter merged in. Of an inpainting one the copy sees the latent alone;
            what mask and masked image add to it where the whole picture is to be drawn becomes part of its bias.
        seed: of the convolutions that see the mask.
    """
    halvings = round(math.log2(latents.downsampling(base)))
    channels = (*_CHANNELS, *_CHANNELS[-1:] * halvings)[: halvings + 1]
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    made = int(unet.config["out_channels"])
    if int(unet.config["in_channels"]) != made:
        _read_latent_alone(network, base, made)
    generator = torch.Generator().manual_seed(seed)
    embedding = network.controlnet_cond_embedding
    for convolution in (embedding.conv_in, *embedding.blocks):
        assert isinstance(convolution, torch.nn.Conv2d)
        size = 1 / math.sqrt(convolution.weight[0].numel())
        for weight in (convolution.weight, convolution.bias):
            assert weight is not None
            weight.data = (2 * torch.rand(weight.shape, generator=generator) - 1) * size
    return network


def pack(network: ControlNetModel) -> bytes:
    """Its file, in half precision."""
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # One entry alone: safetensors writes several in an order that changes from process to process.
    return safetensors.torch.save(tensors, {_HEADER: json.dumps(_config(network), sort_keys=True)})


def config(data: bytes) -> str:
    """The text of the `config.json` that lies beside the file.

    Raises:
        ValueError: the bytes are no ControlNet's.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.dumps(json.loads(header["__metadata__"][_HEADER]), indent=2, sort_keys=True) + "\n"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the ControlNet's file says nothing of its architecture ({error}); train it again") from error


def load(data: bytes, base: Base, precision: Precision = "fp32") -> ControlNetModel:
    """A ControlNet from its bytes, ready to be called beside the base's UNet; one a process and precision.

    Raises:
        ValueError: the bytes are no ControlNet's, or it was made for another architecture.
    """
    key = (hashlib.sha256(data).hexdigest(), base.digest, precision)
    with _lock:
        if key not in _loaded:
            network = cast(ControlNetModel, ControlNetModel.from_config(json.loads(config(data))))
            check(network, base, "of this build")
            try:
                network.load_state_dict(safetensors.torch.load(data))
            except (safetensors.SafetensorError, RuntimeError) as error:
                raise ValueError(f"the ControlNet's file is torn ({error}); train it again") from error
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            _loaded[key] = _ready(network, base, dtype)
            while len(_loaded) > _KEPT:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return _loaded[key]


def read(folder: Path, base: Base, name: str) -> ControlNetModel:
    """A ControlNet to go on from, in float32, out of a folder in diffusers' layout; `name` is what a recipe calls it.

    Raises:
        ValueError: it was made for another architecture.
    """
    network = ControlNetModel.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        variant=weights.variant(folder, "diffusion_pytorch_model"),
        torch_dtype=torch.float32,
    )
    check(network, base, repr(name))
    return network


def check(network: ControlNetModel, base: Base, name: str) -> None:
    """Refuse, saying why, a ControlNet that does not fit beside a base's UNet.

    >>> from tasks.synthesis.diffusion import base as bases
    >>> base = bases.load("embedded")
    >>> check(fresh(base, base.unet, 0), base, "fresh")
    """
    wanted = {field: base.unet.config[field] for field in _FITTING}
    wanted["in_channels"] = base.unet.config["out_channels"]
    found = {field: network.config[field] for field in _FITTING}
    halvings = len(network.config["conditioning_embedding_out_channels"]) - 1
    wanted["pixels a latent one"], found["pixels a latent one"] = latents.downsampling(base), 2**halvings
    for field, value in wanted.items():
        if _plain(value) != _plain(found[field]):
            raise ValueError(
                f"ControlNet {name} does not fit the base: its {field} is {_plain(found[field])}, the base's "
                f"{_plain(value)}; expected a ControlNet made for this base, or start: null"
            )
    if int(network.config["conditioning_channels"]) != 3:
        raise ValueError(
            f"ControlNet {name} is shown {network.config['conditioning_channels']} channels; expected 3, in each of "
            "which a mask is drawn"
        )


def shown(masks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a ControlNet sees of masks (B, px, px): pictures (B, 3, px, px), 1 inside and 0 outside."""
    return masks[:, None].expand(-1, 3, -1, -1).to(dtype, memory_format=torch.channels_last)


def residuals(
    network: ControlNetModel,
    seen: torch.Tensor,
    times: torch.Tensor,
    text: torch.Tensor,
    pictures: torch.Tensor,
    scale: float = 1.0,
) -> dict[str, Any]:
    """What a UNet is called with, beside its own input, so that it heeds the pictures (B, 3, px, px).

    Of `seen`, the UNet's input (B, C or 1 + 2C, h, w), the ControlNet gets the noisy latent alone.
    """
    latent = seen[:, : int(network.config["in_channels"])]
    down, middle = network(latent, times, text, pictures, scale, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _read_latent_alone(network: ControlNetModel, base: Base, channels: int) -> None:
    whole = network.conv_in
    px = base.px
    alone = torch.nn.Conv2d(channels, whole.out_channels, whole.kernel_size, padding=whole.padding)  # pyright: ignore
    grey = torch.zeros((1, px, px), dtype=torch.uint8).numpy()
    condition = latents.condition(base, grey, grey == 0).mean(dim=(2, 3)).cpu()
    weight = whole.weight.detach().float().cpu()
    bias = 0.0 if whole.bias is None else whole.bias.detach().float().cpu()
    alone.weight.data = weight[:, :channels].clone()
    assert alone.bias is not None
    alone.bias.data = bias + (weight[:, channels:].sum(dim=(2, 3)) @ condition[0])
    network.conv_in = alone
    network.register_to_config(in_channels=channels)


def _ready(network: ControlNetModel, base: Base, dtype: torch.dtype) -> ControlNetModel:
    torch.nn.Module.to(network.requires_grad_(False).eval(), base.unet.device, dtype)
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def _config(network: ControlNetModel) -> dict[str, object]:
    said = cast(dict[str, object], json.loads(network.to_json_string()))
    said.pop("_name_or_path", None)  # where it was read from is not what it is
    return said


def _plain(value: object) -> object:
    """Tuples and lists alike."""
    return json.loads(json.dumps(value)) if isinstance(value, Mapping | list | tuple) else value
