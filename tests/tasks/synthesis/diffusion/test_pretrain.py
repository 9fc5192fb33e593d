"""Pretraining at toy size: it learns, it resumes to the bit, and diffusers opens what it writes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.imaging import dilate
from tasks.pretrain import KINDS
from tasks.sources import phantom
from tasks.synthesis.diffusion import autoencoder, checkpoint, fidelity, latents, pretrain, texture, vocabulary
from tasks.synthesis.diffusion.autoencoder import AutoencoderParams
from tasks.synthesis.diffusion.base import load
from tasks.synthesis.diffusion.pretrain import Corpus, Examples, UNetParams

CPU = torch.device("cpu")
PX = 32
AUTOENCODER = AutoencoderParams(channels=(8, 8, 16), steps=4, batch=2, crop=32, adversary_from=0.5, checkpoint_every=2)
UNET = UNetParams(channels=(16, 16, 16), text_width=16, text_length=12, steps=4, batch=4, warmup=1, checkpoint_every=2)


def ignore(done: int) -> None:
    del done


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    kinds = list(KINDS)
    drawn = [phantom.draw(kind, 0, index, 0, PX) for index, kind in enumerate(kinds)]
    masks = [np.zeros_like(p.seen) if p.mask is None else p.mask for p in drawn]
    organs = ["fetal head" if kind == "head" else "breast" for kind in kinds]
    return Corpus(np.stack([p.image for p in drawn]), np.stack(masks), kinds, organs)


@pytest.fixture(scope="module")
def examples(corpus: Corpus) -> Examples:
    return pretrain.prepare(untrained(), corpus, UNET, 0, ignore)


def untrained() -> pretrain.Base:
    torch.manual_seed(0)
    vae = autoencoder.build(AUTOENCODER, PX).eval().requires_grad_(False)
    return pretrain.untrained(vae, UNET, PX, seed=0)


def test_every_kind_of_example_is_cut_and_its_hole_fits_its_purpose(corpus: Corpus, examples: Examples) -> None:
    assert set(examples.teaches.tolist()) == {0, 1, 2, 3}
    for row in range(len(examples.teaches)):
        picture, purpose = int(examples.picture[row]), int(examples.teaches[row])
        hole, label = examples.condition[row, 0], corpus.labels[picture]
        if purpose == pretrain.FILL_LESION:
            grown = dilate(corpus.masks[picture], latents.HOLE_MARGIN_PX)[None]
            torch.testing.assert_close(hole, latents.latent_mask(untrained(), grown)[0, 0])
            assert label in examples.prompts[examples.prompt[row]]
        if purpose == pretrain.WHOLE:
            assert hole.all()
        if purpose == pretrain.FILL_HEALTHY and label != "head":
            assert examples.prompts[examples.prompt[row]] == "ultrasound of breast, normal tissue"


def test_lesions_weigh_more_than_holes_and_holes_more_than_the_rest(examples: Examples) -> None:
    row = int((examples.teaches == pretrain.AROUND).nonzero()[0])
    weight, hole = examples.weight[row, 0], examples.condition[row, 0].bool()
    assert weight[~hole].unique().tolist() == pytest.approx([UNET.outside_weight])
    assert weight[hole].min() >= UNET.hole_weight - 1e-6
    assert weight.max() > UNET.hole_weight


def test_stopped_autoencoder_training_goes_on_to_the_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    whole, curve = autoencoder.train(corpus.images, AUTOENCODER, 1, checkpoint.File(tmp_path / "a"), CPU, ignore)

    def stop(done: int) -> None:
        stop.left -= done  # pyright: ignore[reportFunctionMemberAccess]
        if stop.left == 0:  # pyright: ignore[reportFunctionMemberAccess]
            raise KeyboardInterrupt

    stop.left = 3  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(KeyboardInterrupt):
        autoencoder.train(corpus.images, AUTOENCODER, 1, checkpoint.File(tmp_path / "b"), CPU, stop)
    resumed, again = autoencoder.train(corpus.images, AUTOENCODER, 1, checkpoint.File(tmp_path / "b"), CPU, ignore)
    assert again == curve
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_stopped_unet_training_goes_on_to_the_same_weights(examples: Examples, tmp_path: Path) -> None:
    whole, curve = pretrain.train(
        untrained(), examples, examples, UNET, 1, checkpoint.File(tmp_path / "a"), CPU, ignore
    )
    steps: list[int] = []

    def stop(done: int) -> None:
        steps.append(done)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain.train(untrained(), examples, examples, UNET, 1, checkpoint.File(tmp_path / "b"), CPU, stop)
    resumed, again = pretrain.train(
        untrained(), examples, examples, UNET, 1, checkpoint.File(tmp_path / "b"), CPU, ignore
    )
    assert again == curve
    for part in ("unet", "text_encoder"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(resumed, part).state_dict()[name]), name


def test_the_loss_falls(examples: Examples, tmp_path: Path) -> None:
    longer = UNET.model_copy(update={"steps": 32, "checkpoint_every": 16, "learning_rate": 3e-3})
    _, curve = pretrain.train(untrained(), examples, examples, longer, 1, checkpoint.File(tmp_path / "a"), CPU, ignore)
    assert curve[-1]["held_out"] < curve[0]["held_out"]


def test_diffusers_own_inpainting_pipeline_opens_and_runs_what_is_exported(tmp_path: Path, corpus: Corpus) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
    from PIL import Image

    pretrain.export(untrained(), tmp_path / "base")
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(
        tmp_path / "base", safety_checker=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(corpus.images[0]).convert("RGB")
    hole = Image.fromarray(corpus.masks[0].astype(np.uint8) * 255)
    made = pipeline("ultrasound", picture, hole, height=PX, width=PX, num_inference_steps=2, output_type="np").images
    assert made.shape == (1, PX, PX, 3)
    loaded = load(str(tmp_path / "base"))
    assert loaded.px == PX
    assert loaded.scheduler_config["prediction_type"] == "v_prediction"


def test_every_known_word_is_one_token_and_any_text_tokenizes() -> None:
    tokenizer = vocabulary.build(16)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary.WORDS)
    assert tokenizer.unk_token_id not in tokenizer("zebrafish ünïcode 漢字 42!", add_special_tokens=False)["input_ids"]


def test_spectral_distance_ignores_where_and_sees_blur() -> None:
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    other = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert texture.spectral_distance(noise, noise) == 0
    assert texture.spectral_distance(blurred, noise) > texture.spectral_distance(other, noise)
    assert texture.power_distance(blurred, noise) > 4 * texture.power_distance(other, noise)


def test_speckle_statistics_see_blur() -> None:
    images = np.stack([phantom.draw("normal", 1, index, 0, 64).image for index in range(4)])
    from scipy import ndimage

    blurred = np.stack([ndimage.uniform_filter(image, 3) for image in images])
    report = fidelity.reconstruction(images, blurred)
    ratio = report["power_ratio"]
    assert isinstance(ratio, list)
    assert ratio[-1] < 0.3
    assert fidelity.speckle(blurred).down > fidelity.speckle(images).down
    assert fidelity.reconstruction(images, images)["power_ratio"] == [1.0] * 4


def test_pictures_without_tissue_have_no_speckle() -> None:
    with pytest.raises(ValueError, match="shows tissue"):
        fidelity.speckle(np.zeros((2, 64, 64), np.uint8))


def test_a_state_survives_being_written_and_is_replaced_whole(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    adam = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    adam.step()
    file = checkpoint.File(tmp_path / "s")
    file.save(2, b"an older state")
    file.save(3, checkpoint.pack(3, {"m": module}, {"o": adam}, "curve"))
    other = torch.nn.Linear(2, 2)
    other_adam = torch.optim.AdamW(other.parameters())
    assert checkpoint.load(file, {"m": other}, {"o": other_adam}) == (3, "curve")
    assert torch.equal(other.weight, module.weight)
    before, after = adam.state_dict()["state"], other_adam.state_dict()["state"]
    assert all(torch.equal(before[i][key], after[i][key]) for i in before for key in before[i])
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    assert checkpoint.load(checkpoint.File(tmp_path / "none"), {"m": other}, {"o": other_adam}) == (0, "")


def test_params_can_be_replaced_but_not_misspelt() -> None:
    assert replace(untrained(), digest="x").digest == "x"
    with pytest.raises(ValueError, match="stepps"):
        UNetParams.model_validate({"stepps": 3})
