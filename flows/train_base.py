"""Train the embedded base: simulate, autoencoder, UNet, extractor; a model card with what was measured."""

import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from tasks import pretrain as steps
from tasks.pretrain import PretrainParams
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import pretrain as networks

Curves = dict[str, list[dict[str, float]]]
"""Losses while training, by part."""

MODELS = Path(__file__).resolve().parents[1] / "models"
BASE, EXTRACTOR = "sonoforge-base", "extractor"


def train_base(
    out: Path = MODELS, params: PretrainParams | None = None, work: Path | None = None, extractor: bool = True
) -> Path:
    """Train on phantoms alone and write `out`/sonoforge-base and `out`/extractor.

    Args:
        out: where the finished models go; a model that is there already is replaced when the new one is whole.
        params: what to train; the defaults are what ships.
        work: where unfinished training is kept, by default `out/train-base/<digest of params>` in the current
            folder. The same call goes on where it was stopped, at any moment.
        extractor: also train the feature extractor.

    Returns:
        The folder of the base.
    """
    params = params or PretrainParams()
    start = None if params.start is None else bases.load(params.start)
    decisive = params.model_dump_json() + ("" if start is None else start.digest)
    identity = hashlib.sha256(decisive.encode()).hexdigest()[:16]
    work = work or Path("out") / "train-base" / identity
    work.mkdir(parents=True, exist_ok=True)
    corpus = steps.simulate(params, work)
    if extractor:
        steps.train_extractor(corpus, params, out / EXTRACTOR)
    curves: Curves = {}
    if start is None:
        vae, curves["autoencoder"] = steps.train_autoencoder(corpus, params, work)
        start = networks.untrained(vae, params.unet, params.px, params.seed)
    tuned, curves["decoder"] = steps.tune_decoder(start, corpus, params, work)
    examples, held_out = steps.encode(tuned, corpus, params, work)
    trained, curves["unet"] = steps.train_unet(tuned, examples, held_out, params, work)
    return export(trained, params, out, steps.measure(trained, corpus, params), curves, start.digest)


def export(
    trained: bases.Base,
    params: PretrainParams,
    out: Path,
    measured: dict[str, object],
    curves: Curves,
    start: str,
) -> Path:
    """Write the base with `training.json`: parameters, loss curves and measurements."""
    folder, fresh = out / BASE, out / f".{BASE}.writing"
    shutil.rmtree(fresh, ignore_errors=True)
    networks.export(trained, fresh)
    record: dict[str, Any] = {
        "params": params.model_dump(mode="json"),
        "start": start,
        "curves": curves,
        "reconstruction": measured,
        "parameters": {
            name: sum(p.numel() for p in getattr(trained, name).parameters())
            for name in ("vae", "unet", "text_encoder")
        },
        "trained_with": {"torch": torch.__version__, "python": platform.python_version()},
    }
    (fresh / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (fresh / "README.md").write_text(card(record), encoding="utf-8")
    bases.check(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def card(record: dict[str, Any]) -> str:
    """The model card of a `training.json`: only what was set, counted or measured."""
    params, found = record["params"], record["reconstruction"]
    held_out = params["held_out"]
    parts = "".join(f"| {name} | {count:,} |\n" for name, count in record["parameters"].items())
    first = "".join(
        f"| {row['step']} | {row['absolute']:.4f} | {row['spectrum']:.4f} | {row.get('critic', '')} |\n"
        for row in record["curves"].get("autoencoder", [])
    )
    tuning = "".join(
        f"| {row['step']} | {row['absolute']:.4f} | {row['spectrum']:.4f} | {row['power']:.4f} | {row['critic']:.3f} "
        "|\n"
        for row in _thinned(record["curves"]["decoder"])
    )
    second = "".join(
        f"| {row['step']} | {row['train']:.4f} | {row['held_out']:.4f} |\n"
        for row in _thinned(record["curves"]["unet"])
    )
    third = "".join(_card_row(organ, measured) for organ, measured in found.items())
    return CARD.format(
        px=params["px"],
        phantoms=params["phantoms"],
        trained=params["phantoms"] - held_out,
        held_out=held_out,
        seeds=f"{params['phantom_seed']} and {params['seed']}",
        parts=parts,
        first=first or "| | (kept from the start) | | |\n",
        start="from nothing" if params["start"] is None else f"from base {record['start'][:12]} ({params['start']})",
        tuning=tuning,
        second=second,
        third=third,
        vae=f"{params['autoencoder']['steps']} steps of {params['autoencoder']['batch']} crops",
        decoder=f"{params['decoder']['steps']} steps of {params['decoder']['batch']} crops",
        unet=f"{params['unet']['steps']} steps of {params['unet']['batch']} examples",
        **record["trained_with"],
    )


def _thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """About a dozen of the rows, with the last."""
    return [row for index, row in enumerate(rows) if index % max(1, len(rows) // 12) == 0 or row is rows[-1]]


def _card_row(organ: str, measured: dict[str, Any]) -> str:
    before, after = measured["before"], measured["after"]
    ratios = " / ".join(f"{ratio:.2f}" for ratio in measured["power_ratio"])
    return (
        f"| {organ} | {measured['n']} | {measured['absolute_error']} | {measured['psnr_db']} | {ratios} "
        f"| {before['down']:.2f} to {after['down']:.2f} | {before['across']:.2f} to {after['across']:.2f} "
        f"| {before['contrast']:.3f} to {after['contrast']:.3f} |\n"
    )


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
tags: [ultrasound, inpainting, synthetic]
---
# sonoforge-base

A small latent diffusion model of ultrasound in diffusers' Stable Diffusion inpainting layout, {px} x {px} px,
made to be fine-tuned with LoRA. `StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None,
feature_extractor=None)` opens it.

## Data

{phantoms} simulated pictures (`tasks/sources/phantom`): breasts with benign, malignant and no lesion, and fetal
heads. {trained} to train on, the last {held_out} held out. Seeds {seeds}. **No scan of a patient was used.**

## Training

`sonoforge train-base` (the defaults of `tasks.pretrain.PretrainParams`; `training.json` holds all of them and the
whole curves). It stops and resumes at any moment. Same machine and thread count, same weights; another machine
rounds differently.

| part | parameters |
|---|---|
{parts}
Training started {start}.
Autoencoder: {vae}, absolute error + log amplitude of short-time spectra + patch
discriminator + a trace of KL.
Decoder alone, latents untouched: {decoder}, also on spectral power in bands, against a discriminator with
spectral normalisation.
UNet and text encoder, together: {unet}, velocity prediction, min-SNR weights, averaged weights.
Half of the examples fill the hole around a lesion (the lesion ends 3 px inside it), a fifth fill holes with healthy
tissue, the rest draw whole pictures and lesions with their surroundings. Trained with torch {torch}, Python {python}.

Autoencoder, mean of the steps before (errors on the scale -1 to 1):

| step | absolute error | spectral distance | discriminator hinge |
|---|---|---|---|
{first}
Decoder, single steps:

| step | absolute error | spectral distance | band power distance | discriminator hinge |
|---|---|---|---|---|
{tuning}
UNet, weighted squared error of the velocity; held-out phantoms with fixed noise and averaged weights:

| step | training | held out |
|---|---|---|
{second}
## Through the autoencoder and back, held-out phantoms

Spectral power ratio in four radial bands up to 0.125, 0.25, 0.375 and 0.5 cycles per pixel (1 keeps speckle, 0 wipes
it out); correlation with the picture shifted by one pixel down and across; local deviation over local mean.

| organ | n | absolute error, grey levels | PSNR, dB | power ratio | down | across | contrast |
|---|---|---|---|---|---|---|---|
{third}
## Limits

- It has only seen phantoms: straight-down beams, one lesion a picture, no reverberation, vessels or implants.
- The finest speckle comes back weaker than it was (last band above); pasted back, a filled hole is a little smoother
  than what surrounds it.
- Burned-in marks and text do not survive the autoencoder: composite outside the hole, as the pipeline here does.
- Prompts it knows: "ultrasound of breast, benign lesion", "..., malignant lesion", "..., normal tissue",
  "ultrasound of fetal head, standard plane". Other words tokenize but mean nothing to it yet.
- Not a medical device; not for diagnosis.
"""


if __name__ == "__main__":
    print(train_base())
