"""`train_base` from phantoms to a folder, at toy size."""

import json
from pathlib import Path

import pytest

from flows.train_base import train_base
from tasks import pretrain
from tasks.pretrain import PretrainParams
from tasks.quality import features
from tasks.synthesis.diffusion import base
from tasks.synthesis.diffusion import pretrain as networks
from tasks.synthesis.diffusion.autoencoder import AutoencoderParams
from tasks.synthesis.diffusion.pretrain import UNetParams

TOY = PretrainParams(
    px=64,
    phantoms=33,
    held_out=11,
    autoencoder=AutoencoderParams(channels=(8, 8, 16), steps=2, polish=1, batch=2, crop=32, checkpoint_every=1),
    unet=UNetParams(
        channels=(16, 16, 16), text_width=16, text_length=12, steps=2, batch=2, warmup=1, checkpoint_every=1
    ),
    extractor=features.Params(steps=2, batch=6, learning_rate=1e-3),
)


def test_one_call_makes_base_and_extractor_and_another_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = train_base(tmp_path / "models", TOY)
    made = base.load(str(folder))
    assert made.px == 64
    assert features.load(tmp_path / "models" / "extractor").name == "sonoforge-features"
    record = json.loads((folder / "training.json").read_text())
    assert record["params"]["unet"]["steps"] == 2
    assert [row["step"] for row in record["unet_curve"]] == [1, 2]
    assert set(record["reconstruction"]) == {"breast", "fetal head"}
    [work] = (tmp_path / "out" / "train-base").iterdir()
    (work / "unet.safetensors").unlink()
    again = train_base(tmp_path / "again", TOY, extractor=False)
    assert base.digest(again) == base.digest(folder)


def test_held_out_phantoms_are_never_trained_on(tmp_path: Path) -> None:
    corpus = pretrain.simulate(TOY, tmp_path)
    assert len(corpus.images) == 33
    vae, _ = pretrain.train_autoencoder(corpus, TOY, tmp_path)
    untrained = networks.untrained(vae, TOY.unet, TOY.px, TOY.seed)
    examples, held_out = pretrain.encode(untrained, corpus, TOY, tmp_path)
    assert len(examples.latent) == 22
    assert len(held_out.latent) == 11
