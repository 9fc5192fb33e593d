"""Latents, conditions and prompts: the same in training, in inference and in diffusers' own pipeline."""

import numpy as np
import pytest
import torch

from tasks.synthesis.diffusion import latents
from tasks.synthesis.diffusion.base import Base, load
from tests.fakes.base import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base") / "fake"
    make_base(folder)
    return load(str(folder))


@pytest.fixture
def images(base: Base) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, base.px, base.px), dtype=np.uint8)


def test_encoding_gives_scaled_latents_and_decoding_pictures(base: Base, images: np.ndarray) -> None:
    encoded = latents.encode(base, images)
    side = base.px // latents.downsampling(base)
    assert encoded.shape == (3, base.vae.config["latent_channels"], side, side)
    assert encoded.dtype == torch.float32
    decoded = latents.decode(base, encoded)
    assert decoded.shape == images.shape
    assert decoded.dtype == np.uint8


def test_encoding_is_the_posterior_mode_so_it_repeats(base: Base, images: np.ndarray) -> None:
    torch.testing.assert_close(latents.encode(base, images), latents.encode(base, images), rtol=0, atol=0)
    grey = torch.from_numpy(images).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    with torch.no_grad():
        mode = base.vae.encode(grey).latent_dist.mode() * base.vae.config["scaling_factor"]
    torch.testing.assert_close(latents.encode(base, images), mode)


def test_image_and_mask_share_one_picture(base: Base, images: np.ndarray) -> None:
    masks = images > 128
    colour = latents.joint(images, masks)
    assert colour.shape == (*images.shape, 3)
    np.testing.assert_array_equal(colour[..., 0], images)
    np.testing.assert_array_equal(colour[..., 1], images)
    np.testing.assert_array_equal(colour[..., 2], np.where(masks, 255, 0))
    signed = torch.from_numpy(colour).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mode = base.vae.encode(signed).latent_dist.mode() * base.vae.config["scaling_factor"]
        decoded = base.vae.decode(mode / base.vae.config["scaling_factor"]).sample.permute(0, 2, 3, 1)
    torch.testing.assert_close(latents.encode(base, colour), mode)
    expected = ((decoded + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(latents.decode_colour(base, mode) - expected).max() <= 1


def test_the_image_of_a_pair_is_the_mean_of_two_channels_before_levels_are_cut_off(base: Base) -> None:
    latent = 30 * torch.randn((2, 4, base.px // 4, base.px // 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = base.vae.decode(latent / base.vae.config["scaling_factor"]).sample
    assert (decoded.abs() > 1).any()  # else nothing is cut off
    image, level = np.moveaxis(latents.decode_joint(base, latent).astype(np.float64), -1, 0)
    for found, part in ((image, decoded[:, :2].mean(1)), (level, decoded[:, 2])):
        assert np.abs(found - ((part + 1) * 127.5).clamp(0, 255).numpy()).max() <= 0.51


def test_grey_pictures_are_the_mean_of_the_channels(base: Base, images: np.ndarray) -> None:
    latent = latents.encode(base, images)
    colour = latents.decode_colour(base, latent).astype(np.float64)
    inside = ((colour > 0) & (colour < 255)).all(axis=-1)  # a channel that was cut off has another mean
    assert inside.any()
    assert np.abs(latents.decode(base, latent) - colour.mean(axis=-1))[inside].max() <= 1


def test_the_condition_is_what_diffusers_inpainting_pipeline_builds(base: Base, images: np.ndarray) -> None:
    masks = np.zeros(images.shape, np.bool_)
    masks[:, 10:31, 5:22] = True
    condition = latents.condition(base, images, masks)
    grey = torch.from_numpy(images).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    hole = torch.from_numpy(masks).float()[:, None]
    masked = grey * (hole < 0.5)
    size = condition.shape[-2:]
    with torch.no_grad():
        expected = base.vae.encode(masked).latent_dist.mode() * base.vae.config["scaling_factor"]
    torch.testing.assert_close(condition[:, :1], torch.nn.functional.interpolate(hole, size=size))
    torch.testing.assert_close(condition[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_nothing_under_the_mask_reaches_the_condition(base: Base, images: np.ndarray) -> None:
    masks = np.zeros(images.shape, np.bool_)
    masks[:, 8:24, 8:24] = True
    other = np.where(masks, 255 - images, images)
    torch.testing.assert_close(
        latents.condition(base, images, masks), latents.condition(base, other, masks), rtol=0, atol=0
    )


def test_masks_and_images_of_different_shapes_are_refused(base: Base, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected equal"):
        latents.condition(base, images, np.zeros((2, base.px, base.px), np.bool_))


def test_pictures_that_the_autoencoder_cannot_halve_are_refused(base: Base) -> None:
    with pytest.raises(ValueError, match="expected multiples of"):
        latents.encode(base, np.zeros((1, base.px, base.px + 1), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        latents.encode(base, np.zeros((1, base.px, base.px, 4), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        latents.encode(base, np.zeros((1, base.px, base.px), np.float32))  # pyright: ignore[reportArgumentType]


def test_any_prompt_embeds_to_one_shape_and_words_matter(base: Base) -> None:
    prompts = [latents.prompt("breast", "benign"), latents.prompt("breast", "malignant"), "", "любой текст 漢字" * 50]
    embedded = latents.embed(base, prompts)
    assert embedded.shape == (4, base.tokenizer.model_max_length, base.unet.config["cross_attention_dim"])
    assert not torch.allclose(embedded[0], embedded[1])


def test_prompts_name_organ_and_pathology() -> None:
    assert latents.prompt("breast", "malignant") == "ultrasound of breast, malignant lesion"
    assert latents.prompt("fetal head", "head") == "ultrasound of fetal head, standard plane"
