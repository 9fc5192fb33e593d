"""Networks with low-rank matrices to train beside frozen weights.

The matrices are merged into the weight before every call (`adapters.merged`) instead of running beside it: two
small products a step, where running beside costs six passes over the activations, which on a CPU is what takes
the time. What is trained is then also exactly what sampling runs.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn.utils import parametrize
from transformers import CLIPTextModel

from tasks.synthesis.diffusion import adapters, controlnet
from tasks.synthesis.diffusion.adapter_files import DOWN, MAGNITUDE, TEXT_ENCODER, UNET, UP
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.lora_params import TEXT_TARGETS, LoraParams

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LowRank(torch.nn.Module):
    """The weight of a module as a function of the frozen one: W + scale · B · A, or its DoRA form."""

    def __init__(self, frozen: torch.Tensor, rank: int, scale: float, dora: bool, generator: torch.Generator) -> None:
        super().__init__()
        inside, window = frozen.shape[1], frozen.shape[2:]
        down = torch.randn((rank, inside, *window), generator=generator) / rank
        up = torch.zeros((frozen.shape[0], rank, *(1 for _ in window)))
        self.down = torch.nn.Parameter(down.to(frozen.device))
        self.up = torch.nn.Parameter(up.to(frozen.device))
        length = torch.linalg.vector_norm(frozen.flatten(1), dim=1).view(1, -1, *(1 for _ in window))
        self.magnitude = torch.nn.Parameter(length if window else length[0]) if dora else None
        self.scale = scale
        # Half precision would round the change away: the sum is rounded, as it is when an adapter is merged.
        self.frozen = frozen

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight to compute with, in the precision and memory layout of `weight`."""
        changed = adapters.merged(self.frozen, self.down, self.up, self.scale, self.magnitude)
        changed = changed.to(weight.dtype)
        if weight.ndim == 4:
            return changed.contiguous(memory_format=torch.channels_last)
        return changed


class ExactAttention:
    """Attention computed in float32 where everything else runs in half precision: for processors, whose backward
    pass through attention takes twice as long in bfloat16 as in float32."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor:
        """As diffusers' AttnProcessor2_0 does for the transformer blocks of a UNet, (B, tokens, D)."""
        assert attention_mask is None
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts = attn.to_q(hidden_states), attn.to_k(seen), attn.to_v(seen)
        heads = [part.float().unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in parts]
        with torch.autocast(hidden_states.device.type, enabled=False):
            mixed = torch.nn.functional.scaled_dot_product_attention(*heads)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2).to(hidden_states.dtype))


@dataclass(frozen=True)
class Trainable:
    """Copies of a base's networks, and what is trained of them, named as in an adapter's file.

    `text_encoder` is the base's own where it is not trained. `controlnet`, where there is one, keeps its weights in
    float32 and computes in the UNet's precision.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    weights: Mapping[str, torch.nn.Parameter]
    scales: Mapping[str, float]
    controlnet: ControlNetModel | None = None

    @property
    def trains_text(self) -> bool:
        """Whether prompts have to be embedded anew at every step."""
        return any(name.startswith(TEXT_ENCODER) for name in self.weights)

    def predict(
        self, seen: torch.Tensor, times: torch.Tensor, text: torch.Tensor, control: torch.Tensor | None
    ) -> torch.Tensor:
        """What the UNet makes of noisy latents with their condition, if any, and of prompts (B, L, D).

        `control` (B, px, px) are the masks for the ControlNet.
        """
        if self.controlnet is None or control is None:
            return self.unet(seen, times, text, return_dict=False)[0]
        computes = seen.dtype != torch.float32
        with torch.autocast(seen.device.type, seen.dtype if computes else torch.bfloat16, enabled=computes):
            added = controlnet.residuals(self.controlnet, seen, times, text, controlnet.shown(control, seen.dtype))
        return self.unet(seen, times, text, return_dict=False, **added)[0]


def with_lora(base: Base, params: LoraParams, seed: int) -> Trainable:
    """Copies of the base's networks with fresh matrices; the base itself is not touched.

    Raises:
        ValueError: no module of the UNet has a name that `params.targets` asks for.
    """
    generator = torch.Generator().manual_seed(seed)
    unet = copy.deepcopy(base.unet).requires_grad_(False)
    weights, scales = _adapt(unet, base.unet, UNET, params.endings(), params.rank, params, generator)
    if params.precision == "bf16" and base.unet.device.type == "cpu":
        unet.set_attn_processor(ExactAttention())  # pyright: ignore[reportArgumentType]
    torch.nn.Module.train(unet)  # only gradient checkpointing reads this: there is no dropout
    if params.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    text_encoder = base.text_encoder
    if params.text_encoder_rank:
        text_encoder = copy.deepcopy(base.text_encoder).requires_grad_(False)
        prefix = TEXT_ENCODER if hasattr(text_encoder, "text_model") else TEXT_ENCODER + "text_model."
        more = _adapt(
            text_encoder, base.text_encoder, prefix, TEXT_TARGETS, params.text_encoder_rank, params, generator
        )
        weights, scales = weights | more[0], scales | more[1]
    return Trainable(unet, text_encoder, weights, scales)


def _adapt(
    network: torch.nn.Module,
    original: torch.nn.Module,
    prefix: str,
    endings: Sequence[str],
    rank: int,
    params: LoraParams,
    generator: torch.Generator,
) -> tuple[dict[str, torch.nn.Parameter], dict[str, float]]:
    """Give modules whose names end like that their matrices: the parameters by name, and B's scales."""
    if prefix == UNET:
        torch.nn.Module.to(network, DTYPES[params.precision])  # diffusers wraps `to` in a way that hides its type
    chosen = [
        (name, module)
        for name, module in network.named_modules()
        if any(name == ending or name.endswith("." + ending) for ending in endings)
        and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    if not chosen:
        raise ValueError(f"no linear layer or convolution of the base ends in {', '.join(endings)}; choose others")
    frozen = dict(original.named_parameters())
    weights: dict[str, torch.nn.Parameter] = {}
    scales: dict[str, float] = {}
    for name, module in chosen:
        exact = frozen[name + ".weight"].detach()
        matrices = LowRank(exact, rank, params.scale_of(rank), params.dora, generator)
        parametrize.register_parametrization(module, "weight", matrices)
        weights[prefix + name + DOWN] = matrices.down
        weights[prefix + name + UP] = matrices.up
        scales[prefix + name + UP] = matrices.scale
        if matrices.magnitude is not None:
            weights[prefix + name + MAGNITUDE] = matrices.magnitude
    for weight in network.parameters():
        if weight.ndim == 4 and not weight.requires_grad:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return weights, scales
