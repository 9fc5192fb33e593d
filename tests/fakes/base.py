"""Random diffusion models in Stable Diffusion's folder layout, a few hundred kilobytes large."""

import json
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

_START, _END = "<|startoftext|>", "<|endoftext|>"


def make_base(
    folder: Path,
    channels: int = 4,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    px: int = 32,
    seed: int = 0,
    generation: Literal[1, 2] = 1,
) -> Path:
    """Write `folder` and return it.

    `channels` is 4 (text to image) or 9 (inpainting); latents are px / 4. As in Stable Diffusion 2.x, the second
    `generation` has a wider text encoder, linear projections around attention, and its own heads in each block.
    """
    width = 16 if generation == 1 else 24
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=px,
            scaling_factor=1.0,
        )
        unet = UNet2DConditionModel(
            sample_size=px // 4,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4 if generation == 1 else (2, 4),
            use_linear_projection=generation == 2,
            cross_attention_dim=width,
            norm_num_groups=4,
        )
        letters = make_tokenizer(folder / "tokenizer")
        text = CLIPTextConfig(
            vocab_size=letters,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=letters - 2,
            eos_token_id=letters - 1,
            pad_token_id=letters - 1,
        )
        text_encoder = CLIPTextModel(text)
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        steps_offset=1,
        clip_sample=False,
    )
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    text_encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    pipeline = "StableDiffusionInpaintPipeline" if channels == 9 else "StableDiffusionPipeline"
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_controlnet(folder: Path, text_width: int = 16, seed: int = 5) -> Path:
    """Write a ControlNet for the bases of `make_base`, one that has learned: its last convolutions are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        controlnet = ControlNetModel(
            in_channels=4,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(8, 8, 8),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=text_width,
            norm_num_groups=4,
        )
        last = [controlnet.controlnet_cond_embedding.conv_out, controlnet.controlnet_mid_block]
        for convolution in [*last, *controlnet.controlnet_down_blocks]:
            torch.nn.init.normal_(convolution.weight, std=0.5)
    controlnet.save_pretrained(folder, safe_serialization=True)
    return folder


def in_halves(folder: Path) -> Path:
    """Keep the weights in half precision alone, under the names that diffusers and transformers give those."""
    for part, kind in _MODELS.items():
        (whole,) = (folder / part).glob("*.safetensors")
        model = kind.from_pretrained(folder / part).half()
        whole.unlink()
        model.save_pretrained(folder / part, safe_serialization=True, variant="fp16")
    return folder


def in_shards(folder: Path) -> Path:
    """Spread the weights of each model over several files and an index."""
    for part, kind in _MODELS.items():
        (whole,) = (folder / part).glob("*.safetensors")
        model = kind.from_pretrained(folder / part)
        size = whole.stat().st_size // 3
        whole.unlink()
        model.save_pretrained(folder / part, safe_serialization=True, max_shard_size=size)
    return folder


def as_published(folder: Path) -> Path:
    """Give a folder what is particular to Stable Diffusion 1.5 as it was published in 2022: settings that were not
    written down yet, older names of tensors, a scheduler for sampling, a safety checker."""
    _edit(folder / "vae" / "config.json", scaling_factor=None)
    _edit(folder / "unet" / "config.json", use_linear_projection=None)
    _edit(
        folder / "scheduler" / "scheduler_config.json",
        _class_name="PNDMScheduler",
        prediction_type=None,
        set_alpha_to_one=False,
        skip_prk_steps=True,
    )
    _edit(
        folder / "model_index.json",
        scheduler=["diffusers", "PNDMScheduler"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    _rename(folder / "vae" / "diffusion_pytorch_model.safetensors", older)
    text = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in load_file(text).items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(named, text, metadata={"format": "pt"})
    return folder


_MODELS: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def _edit(file: Path, **changes: object) -> None:
    """Change fields of a JSON file; None takes one away."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def _rename(file: Path, names: dict[str, str]) -> None:
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = weight
    save_file(renamed, file, metadata={"format": "pt"})


def make_tokenizer(folder: Path) -> int:
    """Write a CLIP tokenizer that spells (ASCII letters, no merges) and return the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(letter + "</w>" for letter in letters), _START, _END]
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": _END})
    )
    return len(vocabulary)
