"""Pretrain: phantoms in, the embedded base model and the feature extractor out. No scan of a patient is seen.

Every step leaves a file in the working folder and is skipped where that file is there already; training goes on
from its last saved state. Nothing depends on which process, or how many attempts, it took.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file

from storage.records import Record
from tasks import track
from tasks.quality import features
from tasks.sources import phantom
from tasks.synthesis.diffusion import autoencoder, checkpoint, decoder, fidelity, latents, pretrain
from tasks.synthesis.diffusion.autoencoder import AutoencoderParams
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.diffusion.decoder import DecoderParams
from tasks.synthesis.diffusion.pretrain import Corpus, Examples, UNetParams

KINDS: tuple[phantom.Kind, ...] = (
    "benign",
    "malignant",
    "normal",
    "benign",
    "malignant",
    "head",
    "benign",
    "malignant",
    "normal",
    "malignant",
    "head",
)
"""What is simulated, over and over: 27 % benign, 36 % malignant, 18 % normal, 18 % fetal heads."""


class PretrainParams(Record):
    """Everything that decides the embedded base and the extractor."""

    px: int = Field(default=128, ge=32, le=512, multiple_of=16, description="Side of the pictures, pixels.")
    phantoms: int = Field(default=4400, ge=22, le=1_000_000, description="Pictures to simulate.")
    held_out: int = Field(default=400, ge=11, description="Of these, the last ones, never trained on.")
    phantom_seed: int = Field(default=20261, ge=0, lt=2**31, description="Same seed, same phantoms.")
    seed: int = Field(default=7, ge=0, lt=2**31, description="Same seed, same weights and noise in training.")
    start: str | None = Field(
        default=None,
        description="A base to go on from instead of from nothing: its encoder stays, the rest learns on.",
    )
    autoencoder: AutoencoderParams = Field(
        default=AutoencoderParams(), description="The autoencoder; not used with `start`."
    )
    decoder: DecoderParams = Field(
        default=DecoderParams(steps=600), description="How its decoder is tuned to the phantoms afterwards."
    )
    unet: UNetParams = Field(default=UNetParams(), description="The UNet and its text encoder.")
    extractor: features.Params = Field(
        default=features.Params.model_validate({}), description="The extractor of the set scores."
    )


def simulate(params: PretrainParams, work: Path) -> Corpus:
    """All phantoms, in order; kept in `phantoms.npz`."""
    file = work / "phantoms.npz"
    labels: list[phantom.Kind] = [KINDS[index % len(KINDS)] for index in range(params.phantoms)]

    def one(index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        drawn = phantom.draw(labels[index], params.phantom_seed, index, 0, params.px)
        track.advance("phantoms", 1)
        return drawn.image, np.zeros_like(drawn.seen) if drawn.mask is None else drawn.mask

    if not file.is_file():
        with track.track("phantoms", params.phantoms), ThreadPoolExecutor(os.cpu_count()) as pool:
            pairs = list(pool.map(one, range(params.phantoms)))
        scratch = file.with_name("phantoms.writing.npz")
        np.savez(scratch, images=np.stack([i for i, _ in pairs]), masks=np.stack([m for _, m in pairs]))
        os.replace(scratch, file)
    with np.load(file) as stored:
        images, masks = stored["images"], stored["masks"]
    organs = ["fetal head" if label == "head" else "breast" for label in labels]
    return Corpus(images, masks, [str(label) for label in labels], organs)


def train_autoencoder(
    corpus: Corpus, params: PretrainParams, work: Path
) -> tuple[AutoencoderKL, list[dict[str, float]]]:
    """The autoencoder, and its loss curve; its state is kept in `autoencoder.safetensors`."""
    with track.track("autoencoder", params.autoencoder.steps, "steps"):
        return autoencoder.train(
            _part(corpus, slice(0, -params.held_out)).images,
            params.autoencoder,
            params.seed,
            checkpoint.File(work / "autoencoder.safetensors"),
            device(),
            partial(track.advance, "autoencoder"),
        )


def tune_decoder(base: Base, corpus: Corpus, params: PretrainParams, work: Path) -> tuple[Base, list[dict[str, float]]]:
    """The base with its decoder tuned to the phantoms, and the losses; kept in `decoder.safetensors`."""
    images = _part(corpus, slice(0, -params.held_out)).images
    with track.track("decoder", params.decoder.steps, "steps"):
        advance: Callable[[int], None] = partial(track.advance, "decoder")
        checkpoints = checkpoint.File(work / "decoder.safetensors")
        tuned = decoder.tune(base, images, params.decoder, params.seed, checkpoints, advance)
    return decoder.apply(base, tuned.weights), tuned.curve


def encode(base: Base, corpus: Corpus, params: PretrainParams, work: Path) -> tuple[Examples, Examples]:
    """Examples to train on and held-out ones; kept in `examples.safetensors` and `held_out.safetensors`."""
    parts = {"examples": slice(0, -params.held_out), "held_out": slice(-params.held_out, None)}
    made: list[Examples] = []
    for name, rows in parts.items():
        file = work / f"{name}.safetensors"
        if not file.is_file():
            part = _part(corpus, rows)
            with track.track(name, len(part.images)):
                fresh = pretrain.prepare(base, part, params.unet, params.seed, partial(track.advance, name))
            _write(fresh, file)
        made.append(_read(file))
    return made[0], made[1]


def train_unet(
    base: Base, examples: Examples, held_out: Examples, params: PretrainParams, work: Path
) -> tuple[Base, list[dict[str, float]]]:
    """The finished base and its loss curve; the state is kept in `unet.safetensors`."""
    with track.track("unet", params.unet.steps, "steps"):
        return pretrain.train(
            base,
            examples,
            held_out,
            params.unet,
            params.seed,
            checkpoint.File(work / "unet.safetensors"),
            device(),
            partial(track.advance, "unet"),
        )


def measure(base: Base, corpus: Corpus, params: PretrainParams) -> dict[str, object]:
    """What the autoencoder does to held-out breasts and heads."""
    held = _part(corpus, slice(-params.held_out, None))
    report: dict[str, object] = {}
    for organ in sorted(set(held.organs)):
        images = held.images[[found == organ for found in held.organs]][:128]
        report[organ] = fidelity.reconstruction(images, decoded(base, images))
    return report


def decoded(base: Base, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures through the autoencoder and back, 16 at a time."""
    parts = [images[start : start + 16] for start in range(0, len(images), 16)]
    return np.concatenate([latents.decode(base, latents.encode(base, part)) for part in parts])


def train_extractor(corpus: Corpus, params: PretrainParams, folder: Path) -> str:
    """Train and save the extractor of the set scores, or keep the one that the same call made; its digest."""
    part = _part(corpus, slice(0, -params.held_out))
    about = {
        "data": f"{len(part.images)} phantoms, seed {params.phantom_seed}, {params.px} px; no scan of a patient",
        "params": params.extractor.model_dump(),
    }
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("about") == about:
        return features.load(folder).digest
    masks = part.masks & (np.array(part.labels) != "head")[:, None, None]
    with track.track("extractor", params.extractor.steps, "steps"):
        advance: Callable[[int], None] = partial(track.advance, "extractor")
        weights = features.train(part.images, masks, part.labels, params.extractor, params.seed, advance)
    return features.save(folder, weights, about)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _part(corpus: Corpus, rows: slice) -> Corpus:
    return Corpus(corpus.images[rows], corpus.masks[rows], corpus.labels[rows], corpus.organs[rows])


def _write(examples: Examples, file: Path) -> None:
    tensors = {k: v.contiguous() for k, v in vars(examples).items() if isinstance(v, torch.Tensor)}
    scratch = file.with_name(file.name + ".writing")
    save_file(tensors, scratch, metadata={"prompts": json.dumps(examples.prompts)})
    os.replace(scratch, file)


def _read(file: Path) -> Examples:
    with safe_open(file, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
        return Examples(**tensors, prompts=json.loads(stored.metadata()["prompts"]))
