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
from tasks.synthesis.diffusion.decoder import DecoderParams
from tasks.synthesis.diffusion.pretrain import UNetParams

TOY = PretrainParams(
    px=64,
    phantoms=33,
    held_out=11,
    autoencoder=AutoencoderParams(channels=(8, 8, 16), steps=2, batch=2, crop=32, checkpoint_every=1),
    decoder=DecoderParams(steps=2, batch=2, crop=32, warmup=1, checkpoint_every=1),
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
    assert [row["step"] for row in record["curves"]["unet"]] == [1, 2]
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


def test_training_goes_on_from_a_base_and_keeps_its_encoder(tmp_path: Path) -> None:
    first = train_base(tmp_path / "models", TOY, tmp_path / "work", extractor=False)
    onward = TOY.model_copy(update={"start": str(first)})
    second = train_base(tmp_path / "onward", onward, tmp_path / "work2", extractor=False)
    before, after = base.load(str(first)), base.load(str(second))
    for name, weight in before.vae.named_parameters():
        same = bool((weight == after.vae.get_parameter(name)).all())
        assert same or name.startswith(("decoder.", "post_quant_conv.")), name
    assert base.digest(first) in (second / "training.json").read_text()
    assert "from base" in (second / "README.md").read_text()
    assert not [
        file for file in second.rglob("*.json") if str(tmp_path) in file.read_text() and file.stem != "training"
    ]
