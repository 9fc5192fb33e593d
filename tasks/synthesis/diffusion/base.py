"""The base model: any folder, s3 URL or hub id in diffusers' Stable Diffusion layout, pinned by digest.

The embedded base has the same layout as Stable Diffusion 1.5, only smaller, so one code path serves both.
Weights are read from safetensors only: a pickle runs whatever it likes when it is opened.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from storage import weights

EMBEDDED = Path(__file__).resolve().parents[3] / "models" / "sonoforge-base"
"""The base that ships with the repository; a recipe names it "embedded"."""

LAYOUT = weights.Layout(
    kind="base",
    expected="a folder in diffusers' Stable Diffusion layout: model_index.json, unet/, vae/, text_encoder/, "
    "tokenizer/, scheduler/, weights as .safetensors",
    models={
        "unet": ("diffusion_pytorch_model", "UNet2DConditionModel"),
        "vae": ("diffusion_pytorch_model", "AutoencoderKL"),
        "text_encoder": ("model", "CLIPTextModel"),
    },
    others=("model_index.json", "tokenizer/*.json", "tokenizer/*.txt", "scheduler/*.json"),
)

_FOREIGN = {"transformer", "text_encoder_2", "text_encoder_3", "image_encoder", "prior"}
_TOKENIZER = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
"""Either of them makes a CLIP tokenizer."""


_loading = threading.Lock()
"""Held while a base is read: transformers builds models on a device without memory, set for the whole process."""


@dataclass(frozen=True)
class Base:
    """A loaded base model, in float32 and evaluation mode, shared by everything in this process; on the GPU
    where there is one.

    Copy a module before changing it (`copy.deepcopy(base.unet)`): `load` hands out the same object again.

    `px` is the side of the square image that the UNet was made for; `digest` names the content of `path`.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, object]
    digest: str
    px: int
    path: Path


def load(path_or_id: str) -> Base:
    """The base named "embedded", by a folder, by an fsspec URL (`s3://bucket/prefix`) or by a hub id.

    Raises:
        ValueError: nothing is there, a component is missing, the weights are pickled only, or the model has
            another architecture (SDXL, SD 3, Flux, DiT ...).
    """
    folder = locate(path_or_id)
    with _loading:
        return _load(folder, digest(folder))


def locate(path_or_id: str) -> Path:
    """The local folder of a base, fetched first where it lives elsewhere, and checked to be one of ours."""
    if path_or_id.endswith((".safetensors", ".ckpt")):
        raise ValueError(
            f"base {path_or_id!r} is one file; expected {LAYOUT.expected}. diffusers makes one of the other: "
            f"StableDiffusionPipeline.from_single_file({path_or_id!r}).save_pretrained(FOLDER)"
        )
    folder = EMBEDDED if path_or_id == "embedded" else weights.fetch(path_or_id, LAYOUT)
    check(folder, path_or_id)
    return folder


def check(folder: Path, name: str = "") -> None:
    """Refuse, saying why, a folder that is not a Stable Diffusion model with safetensors weights."""
    name = name or str(folder)
    if not (folder / "model_index.json").is_file() and (
        (folder / "config.json").is_file() or any(folder.glob("*.safetensors"))
    ):
        raise ValueError(f"base {name!r} holds a single model, no pipeline; expected {LAYOUT.expected}")
    index = weights.read_json(folder, "model_index.json", name, LAYOUT)
    kind = str(index.get("_class_name", "nothing"))
    foreign = sorted(_FOREIGN & _named(index))
    other = kind.startswith(("StableDiffusionXL", "StableDiffusion3"))
    if not kind.startswith("StableDiffusion") or other or foreign:
        also = f" with {', '.join(foreign)}" if foreign else ""
        raise ValueError(
            f"base {name!r} is a {kind}{also}; expected the Stable Diffusion 1.x/2.x architecture "
            "(one UNet2DConditionModel, one CLIP text encoder, one AutoencoderKL)"
        )
    weights.check(folder, LAYOUT, name)
    weights.read_json(folder, "scheduler/scheduler_config.json", name, LAYOUT)
    there = {file.name for file in (folder / "tokenizer").glob("*")}
    if not any(files <= there for files in _TOKENIZER):
        raise ValueError(
            f"base {name!r}: tokenizer/ holds {', '.join(sorted(there)) or 'nothing'}; expected tokenizer.json, or "
            "vocab.json and merges.txt"
        )
    _check_fit(folder, name)


def _check_fit(folder: Path, name: str) -> None:
    """Refuse parts that do not belong together: of two models, or of one that was changed."""
    unet, vae, text = (
        weights.read_json(folder, f"{part}/config.json", name, LAYOUT) for part in ("unet", "vae", "text_encoder")
    )
    pairs = (
        ("cross_attention_dim", unet.get("cross_attention_dim"), "text_encoder is", text.get("hidden_size")),
        ("out_channels", unet.get("out_channels"), "vae has latent_channels", vae.get("latent_channels")),
    )
    for field, found, where, expected in pairs:
        if None not in (found, expected) and found != expected:
            raise ValueError(
                f"base {name!r}: its parts do not belong together: the unet's {field} is {found}, but its {where} "
                f"{expected}; copy all parts of one model"
            )


def licence(path: Path) -> str:
    """What a base folder states of its licence, in its own words; "not stated" where it states none.

    The header of its README.md (`license`, or `license_name` beside "other") counts before the first line of a
    LICENSE file.
    """
    card = path / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n") if card.is_file() else []
    try:
        header = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else None
    except yaml.YAMLError:
        header = None
    fields: dict[str, object] = dict(header) if isinstance(header, dict) else {}
    stated = fields.get("license")
    stated = fields.get("license_name", stated) if stated == "other" else stated
    if stated:
        return " AND ".join(str(name) for name in _list(stated) or [stated])
    for file in sorted(path.glob("LICENSE*")):
        lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        if any(lines):
            return next(line for line in lines if line)
    return "not stated"


def digest(path: Path) -> str:
    """sha256 over the relative paths and bytes of what `load` reads from a base folder."""
    return weights.digest(path, LAYOUT)


@lru_cache(maxsize=2)
def _load(folder: Path, content: str) -> Base:
    def stored(part: str) -> dict[str, Any]:
        return {"use_safetensors": True, "variant": weights.variant(folder / part, LAYOUT.models[part][0])}

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32, **stored("unet"))
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **stored("vae"))
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, **stored("text_encoder"))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in (unet, vae, text_encoder):
        torch.nn.Module.to(module.requires_grad_(False).eval(), device)  # diffusers hides the type of its own `to`
    downsampling = 2 ** (len(vae.config["block_out_channels"]) - 1)
    return Base(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config=weights.read_json(folder, "scheduler/scheduler_config.json", str(folder), LAYOUT),
        digest=content,
        px=int(unet.config["sample_size"]) * downsampling,
        path=folder,
    )


def _named(index: Mapping[str, object]) -> set[str]:
    """Components that a model_index.json really has: diffusers writes [null, null] for absent ones."""
    return {key for key, value in index.items() if not key.startswith("_") and any(_list(value))}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []
