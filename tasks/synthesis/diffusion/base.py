"""The base model: any folder, s3 URL or hub id in diffusers' Stable Diffusion layout, pinned by digest.

The embedded base has the same layout as Stable Diffusion 1.5, only smaller, so one code path serves both.
Weights are read from safetensors only: a pickle runs whatever it likes when it is opened.
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

EMBEDDED = Path(__file__).resolve().parents[3] / "models" / "sonoforge-base"
"""The base that ships with the repository; a recipe names it "embedded"."""

WEIGHTS: Mapping[str, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""The weight file of each component, in half precision also as `<stem>.fp16.safetensors`."""

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
_FOREIGN = {"transformer", "text_encoder_2", "text_encoder_3", "image_encoder", "prior"}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_LAYOUT = (
    "a folder in diffusers' Stable Diffusion layout: model_index.json, unet/, vae/, text_encoder/, "
    "tokenizer/, scheduler/, weights as .safetensors"
)


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
    if path_or_id == "embedded":
        folder = EMBEDDED
    elif "://" in path_or_id:
        folder = _fetch(path_or_id)
    elif Path(path_or_id).expanduser().exists():
        folder = Path(path_or_id).expanduser().resolve()
    elif path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise ValueError(f"base {path_or_id!r}: no such folder; expected {_LAYOUT}, an s3 URL or a hub id")
    else:
        folder = _hub(path_or_id)
    check(folder, path_or_id)
    return folder


def check(folder: Path, name: str = "") -> None:
    """Refuse, saying why, a folder that is not a Stable Diffusion model with safetensors weights."""
    name = name or str(folder)
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
            raise ValueError(f"base {name!r} holds a single model, no pipeline; expected {_LAYOUT}")
        raise ValueError(f"base {name!r}: {folder} has no model_index.json; expected {_LAYOUT}")
    index = _json(index_file, name)
    kind = str(index.get("_class_name", "nothing"))
    foreign = sorted(_FOREIGN & _named(index))
    other = kind.startswith(("StableDiffusionXL", "StableDiffusion3"))
    if not kind.startswith("StableDiffusion") or other or foreign:
        also = f" with {', '.join(foreign)}" if foreign else ""
        raise ValueError(
            f"base {name!r} is a {kind}{also}; expected the Stable Diffusion 1.x/2.x architecture "
            "(one UNet2DConditionModel, one CLIP text encoder, one AutoencoderKL)"
        )
    for component, weights in WEIGHTS.items():
        _check_component(folder / component, component, weights, name)
    for component in ("tokenizer", "scheduler"):
        if not (folder / component).is_dir():
            raise ValueError(f"base {name!r} has no {component}/ folder; expected {_LAYOUT}")


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
    stamp = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _files(path))
    return _digest(path, stamp)


@lru_cache(maxsize=8)
def _digest(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for file, _, _ in stamp:
        with Path(file).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{Path(file).relative_to(path).as_posix()} {content}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=2)
def _load(folder: Path, content: str) -> Base:
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet", use_safetensors=True, variant=_variant(folder / "unet"), torch_dtype=torch.float32
    )
    vae = AutoencoderKL.from_pretrained(
        folder / "vae", use_safetensors=True, variant=_variant(folder / "vae"), torch_dtype=torch.float32
    )
    text_encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder",
        use_safetensors=True,
        variant=_variant(folder / "text_encoder"),
        dtype=torch.float32,
    )
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
        scheduler_config=_json(folder / "scheduler" / "scheduler_config.json", str(folder)),
        digest=content,
        px=int(unet.config["sample_size"]) * downsampling,
        path=folder,
    )


def _variant(component: Path) -> str | None:
    """None where the plain weights are there, "fp16" where only `<stem>.fp16.safetensors` is."""
    return "fp16" if all(".fp16." in file.name for file in component.glob("*.safetensors")) else None


def _check_component(folder: Path, component: str, weights: str, name: str) -> None:
    if not (folder / "config.json").is_file():
        what = "UNet" if component == "unet" else component
        raise ValueError(f"base {name!r} has no {what}: no {component}/config.json; expected {_LAYOUT}")
    config = _json(folder / "config.json", name)
    found = config.get("_class_name") or next(iter(_list(config.get("architectures"))), None)
    if found is not None and found != _CLASSES[component]:
        raise ValueError(
            f"base {name!r}: its {component} is a {found}, another architecture; expected a {_CLASSES[component]}"
        )
    stem = weights.removesuffix(".safetensors")
    if any(folder.glob(f"{stem}*.safetensors")):
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickled:
        raise ValueError(
            f"base {name!r}: {component}/ holds pickled weights only ({', '.join(pickled)}), which run code "
            "when opened; expected .safetensors (save_pretrained(..., safe_serialization=True) converts them)"
        )
    raise ValueError(f"base {name!r}: {component}/ has no weights; expected {component}/{weights}")


def _named(index: Mapping[str, object]) -> set[str]:
    """Components that a model_index.json really has: diffusers writes [null, null] for absent ones."""
    return {key for key, value in index.items() if not key.startswith("_") and any(_list(value))}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _json(file: Path, name: str) -> dict[str, object]:
    if not file.is_file():
        raise ValueError(f"base {name!r}: {file} is missing; expected {_LAYOUT}")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"base {name!r}: {file} is no JSON object ({error}); copy it again") from error


def _files(folder: Path) -> list[Path]:
    parts = [folder / part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")]
    inside = [f for part in parts if part.is_dir() for f in part.rglob("*") if f.is_file()]
    kept = [f for f in inside if f.suffix in {".json", ".safetensors", ".txt"}]
    return sorted([folder / "model_index.json", *kept], key=lambda f: f.relative_to(folder).as_posix())


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "sonoforge" / "bases"


def _fetch(url: str) -> Path:
    """Copy a base from any fsspec URL into the user's cache; what is listed decides the name of the copy."""
    filesystem, root = fsspec.core.url_to_fs(url)
    listing = filesystem.find(root, detail=True) if filesystem.exists(root) else {}
    wanted = {
        key: info
        for key, info in dict(listing).items()
        if Path(key).suffix in {".json", ".safetensors", ".txt", *_PICKLES} or _states_licence(key, root)
    }
    if not wanted:
        raise ValueError(f"base {url!r}: nothing is there; expected {_LAYOUT}")
    identity = sorted([key, info["size"], str(info.get("ETag") or info.get("mtime"))] for key, info in wanted.items())
    target = _cache_folder() / hashlib.sha256(json.dumps([url, identity]).encode()).hexdigest()[:32]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        copy = Path(scratch) / "base"
        for key in wanted:
            file = copy / Path(key).relative_to(root)
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in _PICKLES:
                file.touch()  # named so that `check` can say what it found; never downloaded
            else:
                filesystem.get_file(key, str(file))
        try:
            copy.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same content
                raise
    return target


def _states_licence(key: str, root: str) -> bool:
    """Is it a model card or licence text, directly in the folder?"""
    name = Path(key).relative_to(root).as_posix()
    return name == "README.md" or (name.startswith("LICENSE") and "/" not in name)


def _hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    parts = [f"{part}/*{kind}" for part in WEIGHTS for kind in (".json", ".safetensors")]
    patterns = ["model_index.json", "tokenizer/*", "scheduler/*", "README.md", "LICENSE*", *parts]
    try:
        folder = snapshot_download(name, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"base {name!r}: no such folder here and the hub gave no such model ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); expected {_LAYOUT}"
        ) from error
    return Path(folder)
