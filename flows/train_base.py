"""Train the embedded base: simulate, autoencoder, UNet, extractor; a model card with what was measured."""

import hashlib
import json
import platform
import time
from pathlib import Path

import torch

from tasks import pretrain as steps
from tasks.pretrain import PretrainParams
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import pretrain as networks

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
    identity = hashlib.sha256(params.model_dump_json().encode()).hexdigest()[:16]
    work = work or Path("out") / "train-base" / identity
    work.mkdir(parents=True, exist_ok=True)
    corpus = steps.simulate(params, work)
    if extractor:
        steps.train_extractor(corpus, params, out / EXTRACTOR)
    vae, autoencoder_curve = steps.train_autoencoder(corpus, params, work)
    untrained = networks.untrained(vae, params.unet, params.px, params.seed)
    examples, held_out = steps.encode(untrained, corpus, params, work)
    trained, unet_curve = steps.train_unet(untrained, examples, held_out, params, work)
    return export(trained, params, out, steps.measure(trained, corpus, params), autoencoder_curve, unet_curve)


def export(
    trained: bases.Base,
    params: PretrainParams,
    out: Path,
    measured: dict[str, object],
    autoencoder_curve: list[dict[str, float]],
    unet_curve: list[dict[str, float]],
) -> Path:
    """Write the base with `training.json`: parameters, loss curves and measurements."""
    folder = out / BASE
    networks.export(trained, folder)
    record = {
        "params": params.model_dump(mode="json"),
        "autoencoder_curve": autoencoder_curve,
        "unet_curve": unet_curve,
        "reconstruction": measured,
        "parameters": {
            name: sum(p.numel() for p in getattr(trained, name).parameters())
            for name in ("vae", "unet", "text_encoder")
        },
        "trained_with": {"torch": torch.__version__, "python": platform.python_version()},
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    bases.check(folder)
    return folder


if __name__ == "__main__":
    print(train_base())
