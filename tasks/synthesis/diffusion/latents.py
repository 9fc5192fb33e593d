"""Between pictures and what the UNet sees: latents, inpainting conditions, prompt embeddings.

Training and inference use the same functions, so a mask means the same in both.
Shapes: B batch, H W pixels, C latent channels, h w latent pixels, L tokens, D width of the text encoder.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from tasks.synthesis.diffusion.base import Base

UNCONDITIONAL = ""
"""The prompt of classifier-free guidance's second branch, and of captions dropped in training."""

HOLE_MARGIN_PX = 3
"""How far the hole to fill is grown beyond the mask of its lesion, so that the margin is drawn too.

The embedded base is trained with exactly this margin at 128 px: a hole made the same way is filled with a
lesion that ends `HOLE_MARGIN_PX` inside it, which is what makes the declared mask true.
"""

_TAILS = {"normal": "normal tissue", "head": "standard plane"}


def prompt(organ: str, label: str, attributes: Sequence[str] = ()) -> str:
    """What the text encoder reads about an organ, a label and what else is known of a picture.

    >>> prompt("breast", "benign", ["oval", "parallel"])
    'ultrasound of breast, benign lesion, oval, parallel'
    >>> prompt("breast", "normal")
    'ultrasound of breast, normal tissue'
    """
    return ", ".join([f"ultrasound of {organ}", _TAILS.get(label, f"{label} lesion"), *attributes])


def joint(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """One image (..., 3) of a grey image and its mask, both (...): R = G = image, B = 255 inside the mask.

    So one latent holds both (Wang et al., arXiv 2506.23664, 2025).
    """
    return np.stack([image, image, mask.astype(np.uint8) * 255], axis=-1)


@torch.no_grad()
def encode(base: Base, images: NDArray[np.uint8]) -> torch.Tensor:
    """Scaled latents (B, C, h, w), float32, of images (B, H, W) or (B, H, W, 3): the posterior's mode, no noise."""
    return _encode(base, _signed(base, images))


@torch.no_grad()
def decode(base: Base, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Grey images (B, H, W) of scaled latents (B, C, h, w)."""
    return _levels(_decode(base, latents).mean(dim=1))


@torch.no_grad()
def decode_joint(base: Base, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Image and mask level (B, H, W, 2) of scaled latents (B, C, h, w) of pictures that hold both (`joint`).

    The image is the mean of the first two channels, taken before grey levels are cut off: a tuned decoder is right in
    the mean alone.
    """
    decoded = _decode(base, latents)
    return _levels(torch.stack([decoded[:, :2].mean(dim=1), decoded[:, 2]], dim=-1))


@torch.no_grad()
def decode_colour(base: Base, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Images (B, H, W, 3) of scaled latents (B, C, h, w), as other programs decode them."""
    return _levels(_decode(base, latents).permute(0, 2, 3, 1))


def latent_mask(base: Base, masks: NDArray[np.bool_]) -> torch.Tensor:
    """Masks (B, H, W) at latent resolution (B, 1, h, w), 1 inside: nearest, as diffusers' inpainting does."""
    factor = downsampling(base)
    soft = torch.from_numpy(masks.astype(np.float32))[:, None]
    size = (masks.shape[1] // factor, masks.shape[2] // factor)
    return torch.nn.functional.interpolate(soft, size=size)


@torch.no_grad()
def condition(base: Base, images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> torch.Tensor:
    """The 1 + C channels that an inpainting UNet reads beside the noisy latent: (B, 1+C, h, w), float32.

    Images are (B, H, W) or (B, H, W, 3), masks (B, H, W). First comes the mask, then the latent of the image whose
    masked pixels are set to mid-grey (0 between -1 and 1), in the order and with the fill of diffusers'
    StableDiffusionInpaintPipeline.
    """
    if images.shape[:3] != masks.shape:
        raise ValueError(f"images are {images.shape}, masks {masks.shape}; expected equal (B, H, W)")
    signed = _signed(base, images)
    hole = torch.from_numpy(masks).to(signed.device)[:, None]
    masked = _encode(base, signed.masked_fill(hole, 0.0))
    return torch.cat([latent_mask(base, masks).to(masked.device), masked], dim=1)


@torch.no_grad()
def embed(base: Base, prompts: Sequence[str]) -> torch.Tensor:
    """Hidden states (B, L, D), float32, of prompts padded or cut to the text encoder's length."""
    return hidden_states(base.tokenizer, base.text_encoder, prompts)


def hidden_states(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str]) -> torch.Tensor:
    """As `embed`, of a text encoder that may be in training."""
    device = next(text_encoder.parameters()).device
    hidden: torch.Tensor = text_encoder(tokens(tokenizer, prompts).to(device))[0]
    return hidden.float()


def tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Numbers of tokens (B, L), padded or cut to the text encoder's length."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )["input_ids"]


def downsampling(base: Base) -> int:
    """Pixels per latent pixel along a side."""
    return 2 ** (len(base.vae.config["block_out_channels"]) - 1)


def _signed(base: Base, images: NDArray[np.uint8]) -> torch.Tensor:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (B, H, W) or (B, H, W, 3)")
    factor = downsampling(base)
    if images.shape[1] % factor or images.shape[2] % factor:
        raise ValueError(f"images have {images.shape[1:]} px; expected multiples of {factor}")
    weight = next(base.vae.parameters())
    signed = torch.from_numpy(np.ascontiguousarray(images)).to(weight.device).to(torch.float32) / 127.5 - 1
    return (signed[:, None] if images.ndim == 3 else signed.permute(0, 3, 1, 2)).to(weight.dtype)


def _levels(signed: torch.Tensor) -> NDArray[np.uint8]:
    """Grey levels of what lies between -1 and 1."""
    return ((signed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _decode(base: Base, latents: torch.Tensor) -> torch.Tensor:
    weight = next(base.vae.parameters())
    unscaled = latents.to(weight.device, weight.dtype) / float(base.vae.config["scaling_factor"])
    decoded_BCHW: torch.Tensor = base.vae.decode(cast(torch.FloatTensor, unscaled), return_dict=False)[0]
    return decoded_BCHW.float()


def _encode(base: Base, signed: torch.Tensor) -> torch.Tensor:
    posterior = base.vae.encode(signed.expand(-1, 3, -1, -1), return_dict=False)[0]
    latent: torch.Tensor = posterior.mode()
    return (latent * float(base.vae.config["scaling_factor"])).float()
