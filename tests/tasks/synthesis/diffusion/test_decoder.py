"""A decoder tuned to other pictures: encoder untouched, resumed bit for bit, texture nearer to theirs."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from scipy import ndimage

from tasks.synthesis.diffusion import checkpoint, decoder, latents
from tasks.synthesis.diffusion.base import EMBEDDED, Base, load
from tasks.synthesis.diffusion.decoder import DecoderParams
from tests.fakes.base import make_base
from tests.fakes.drafts import ellipse

QUICK = DecoderParams(steps=4, batch=2, crop=32, warmup=1, checkpoint_every=2)


def ignore(done: int) -> None:
    pass


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load(str(make_base(tmp_path_factory.mktemp("base"), px=64)))


def textured(count: int, px: int, seed: int) -> NDArray[np.uint8]:
    """Smooth pictures under a texture two pixels wide."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(rng.standard_normal((count, px, px)), (0, 12, 12))
    fine = ndimage.gaussian_filter(rng.standard_normal((count, px, px)), (0, 1, 1))
    grey = 100 + 40 * coarse / coarse.std() + 20 * fine / fine.std()
    return np.clip(grey, 0, 255).astype(np.uint8)


def test_only_the_decoder_changes_so_latents_stay_valid(toy: Base, tmp_path: Path) -> None:
    images = textured(4, 64, 0)
    before = {name: weight.clone() for name, weight in toy.vae.named_parameters()}
    tuned = decoder.apply(toy, decoder.tune(toy, images, QUICK, 1, checkpoint.File(tmp_path / "s"), ignore).weights)
    assert all(torch.equal(weight, before[name]) for name, weight in toy.vae.named_parameters())
    assert torch.equal(latents.encode(toy, images), latents.encode(tuned, images))
    assert not np.array_equal(*(latents.decode(one, latents.encode(toy, images)) for one in (toy, tuned)))


def test_a_stopped_tuning_goes_on_to_the_same_weights(toy: Base, tmp_path: Path) -> None:
    images = textured(4, 64, 0)
    whole = decoder.tune(toy, images, QUICK, 1, checkpoint.File(tmp_path / "a"), ignore)
    steps: list[int] = []

    def stop(done: int) -> None:
        steps.append(done)
        if len(steps) == 4:  # the first call tells what was done before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.tune(toy, images, QUICK, 1, checkpoint.File(tmp_path / "b"), stop)
    resumed = decoder.tune(toy, images, QUICK, 1, checkpoint.File(tmp_path / "b"), steps.append)
    assert steps[4:] == [2, 1, 1]
    assert resumed == whole


def test_a_checkpoint_of_other_pictures_is_refused(toy: Base, tmp_path: Path) -> None:
    kept = checkpoint.File(tmp_path / "s")
    decoder.tune(toy, textured(4, 64, 0), QUICK, 1, kept, ignore)
    with pytest.raises(ValueError, match="another base, images, seed or parameters"):
        decoder.tune(toy, textured(4, 64, 5), QUICK, 1, kept, ignore)


def test_pictures_smaller_than_the_crop_are_refused(toy: Base, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0 images .* at least 32 px"):
        decoder.tune(toy, np.zeros((0, 64, 64), np.uint8), QUICK, 1, checkpoint.File(tmp_path / "s"), ignore)


def test_weights_of_another_decoder_are_refused(toy: Base) -> None:
    with pytest.raises(ValueError, match="not the decoder of base"):
        decoder.apply(toy, safetensors.torch.save({"decoder.conv_in.weight": torch.zeros(3)}))


def test_with_masks_the_third_channel_is_tuned_to_them(toy: Base, tmp_path: Path) -> None:
    images = textured(4, 64, 0)
    params = DecoderParams(steps=15, batch=2, crop=32, warmup=1, learning_rate=5e-3, ema=0, adversary=0)
    levels: list[float] = []
    for everything in (False, True):
        pairs = latents.joint(images, np.full(images.shape, everything))
        kept = checkpoint.File(tmp_path / f"all-{everything}")
        tuned = decoder.apply(toy, decoder.tune(toy, pairs, params, 1, kept, ignore).weights)
        levels.append(float(latents.decode_colour(tuned, latents.encode(toy, pairs))[..., 2].mean()))
        with pytest.raises(ValueError, match="another base, images, seed or parameters"):
            decoder.tune(toy, images, params, 1, kept, ignore)
    without, within = levels
    assert without < 64
    assert within > 192


def test_plain_diffusers_takes_the_weights(toy: Base, tmp_path: Path) -> None:
    images = textured(2, 64, 0)
    tuned = decoder.tune(toy, images, QUICK, 1, checkpoint.File(tmp_path / "s"), ignore)
    plain = AutoencoderKL.from_pretrained(toy.path / "vae", torch_dtype=torch.float32)
    unknown = plain.load_state_dict(safetensors.torch.load(tuned.weights), strict=False).unexpected_keys
    assert not unknown
    ours = decoder.apply(toy, tuned.weights)
    latent = latents.encode(toy, images) / float(toy.vae.config["scaling_factor"])
    with torch.no_grad():
        assert torch.allclose(plain.decode(latent).sample, ours.vae.decode(latent).sample, atol=1e-5)


@pytest.mark.slow
def test_decoded_texture_comes_nearer_to_that_of_the_pictures() -> None:
    """On the embedded base: mean spectral distance of pictures never tuned on."""

    class Nowhere:
        def save(self, step: int, data: bytes) -> None:
            pass

        def latest(self) -> None:
            return None

    base = load(str(EMBEDDED))
    images, unseen = textured(8, 128, 0), textured(4, 128, 1)
    params = DecoderParams(steps=20, batch=4, warmup=5)
    tuned = decoder.apply(base, decoder.tune(base, images, params, 1, Nowhere(), ignore).weights)

    def distance(of: Base) -> float:
        decoded = latents.decode(of, latents.encode(of, unseen))
        pair = [torch.from_numpy(grey[:, None].astype(np.float32)) / 127.5 - 1 for grey in (decoded, unseen)]
        return float(decoder.texture.spectral_distance(*pair))

    assert distance(tuned) < 0.97 * distance(base)


@pytest.mark.slow
def test_a_decoder_tuned_to_pairs_gives_masks_back() -> None:
    """On the embedded base: Dice of masks never tuned on, at threshold 0.7. Its encoder has seen no such pictures."""

    class Nowhere:
        def save(self, step: int, data: bytes) -> None:
            pass

        def latest(self) -> None:
            return None

    base = load(str(EMBEDDED))
    images = textured(8, 128, 0)
    masks = np.stack([ellipse(128, 60 + 2 * k, 70 - 3 * k, 30 + k, 40 - k) for k in range(8)])
    pairs = latents.joint(np.where(masks, images, images // 2).astype(np.uint8), masks)
    params = DecoderParams(steps=40, batch=4, warmup=5, learning_rate=1e-3, ema=0.8, adversary=0)
    tuned = decoder.apply(base, decoder.tune(base, pairs[:6], params, 1, Nowhere(), ignore).weights)

    def dice(of: Base) -> float:
        found = latents.decode_colour(of, latents.encode(base, pairs[6:]))[..., 2] > 178
        return float(2 * (found & masks[6:]).sum() / (found.sum() + masks[6:].sum()))

    assert dice(base) < 0.5
    assert dice(tuned) > 0.8
