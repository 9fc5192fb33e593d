"""Downstream networks: a planted gain found, lessons in their order, the same bits; SAM on a tiny random model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.quality import gain, resnet, sam, unet
from tasks.quality.judge import Pictures
from tasks.quality.segmenter import dice
from tests.fakes import sam as sam_weights
from tests.tasks.quality.toys import pictures

PARAMS = unet.Params(steps=80, batch=8, channels=[8, 16, 32], augmentation=1.0, learning_rate=5e-3)
TESTED = pictures(40, 9, px=32, labels=("malignant",))


FEW, MORE = pictures(6, 0, px=32, labels=("benign",)), pictures(60, 1, px=32)
GARBAGE = Pictures(MORE.images, np.roll(MORE.masks, 12, 2), MORE.labels, MORE.groups)


def overlap(examples: Pictures, first: Pictures | None = None) -> NDArray[np.float64]:
    network = unet.train(examples, PARAMS, 0, first=first)
    return dice(unet.draw(network, TESTED.images), TESTED.masks).astype(np.float64)


def test_a_planted_gain_is_found_and_planted_garbage_is_none() -> None:
    alone, helped, harmed = overlap(FEW), overlap(FEW.and_also(MORE)), overlap(FEW.and_also(GARBAGE))
    rng = np.random.default_rng(0)
    _, low, _ = gain.bootstrap(gain.difference(gain.mean(helped), gain.mean(alone)), TESTED.groups, 500, rng)
    _, _, high = gain.bootstrap(gain.difference(gain.mean(harmed), gain.mean(alone)), TESTED.groups, 500, rng)
    assert low > 0.05
    assert high < 0


def test_the_last_lesson_has_the_last_word() -> None:
    assert overlap(MORE, first=GARBAGE).mean() > overlap(GARBAGE, first=MORE).mean() + 0.1


def test_an_arm_without_augmentation_sees_the_pictures_as_they_are() -> None:
    short = PARAMS.model_copy(update={"steps": 2})
    views = [unet.draw(unet.train(TESTED, short, 3, augmented=on), TESTED.images) for on in (True, False, False)]
    assert np.array_equal(views[1], views[2])
    weights = [unet.train(TESTED, short, 3, augmented=on).state_dict() for on in (True, False)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_unet_repeats_bit_for_bit_and_needs_lesions() -> None:
    short = PARAMS.model_copy(update={"steps": 2})
    once, again = (unet.draw(unet.train(TESTED, short, 3), TESTED.images) for _ in range(2))
    assert np.array_equal(once, again)
    healthy = pictures(4, 0, px=32, labels=("normal",))
    with pytest.raises(ValueError, match="all 4 masks are blank"):
        unet.train(healthy, short, 0)
    with pytest.raises(ValueError, match="all 4 masks are blank"):
        unet.train(TESTED, short, 0, first=healthy)
    assert unet.draw(unet.train(TESTED, short, 3), TESTED.images[:0]).shape == (0, 32, 32)


def test_the_classifier_tells_labels_and_refuses_others() -> None:
    params = resnet.Params(steps=60, batch=8, width=4, px=32, augmentation=0.5, learning_rate=5e-3)
    shown, tested = (pictures(40, seed, px=32, labels=("benign", "malignant")) for seed in (0, 5))
    network = resnet.train(shown, params, 0)
    answers = resnet.probabilities(network, tested.images, params)
    assert np.allclose(answers.sum(1), 1, atol=1e-6)
    right = (answers[:, 1] > 0.5) == np.array([label == "malignant" for label in tested.labels])
    assert right.mean() > 0.7
    again = resnet.probabilities(resnet.train(shown, params, 0), tested.images, params)
    assert np.array_equal(answers, again)
    with pytest.raises(ValueError, match=r"\['benign', 'malignant'\], and \['benign'\] first"):
        resnet.train(shown, params, 0, first=pictures(4, 0, px=32, labels=("benign",)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam_weights.sam(tmp_path_factory.mktemp("sam"))


def test_sams_decoder_learns_while_its_encoders_stay(weights: Path) -> None:
    params = sam.Params(weights=weights, steps=80, batch=8, learning_rate=1e-2, jitter=0.02)
    boxes = [sam.box_of(mask) for mask in TESTED.masks]
    model = sam.load(weights)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    untrained = dice(sam.draw(model, TESTED.images, boxes, params), TESTED.masks).mean()
    trained = sam.train(model, pictures(40, 0, px=32), params, 0)
    assert dice(sam.draw(trained, TESTED.images, boxes, params), TESTED.masks).mean() > untrained + 0.2
    moved = {
        name.split(".")[0] for name, weight in trained.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert moved == {"mask_decoder"}


def test_sam_repeats_and_draws_where_it_is_asked(weights: Path) -> None:
    params = sam.Params(weights=weights, steps=2, batch=4)
    boxes = [sam.box_of(mask) for mask in TESTED.masks]
    few = pictures(6, 0, px=32, labels=("benign",))
    drawn = [
        sam.draw(sam.train(sam.load(weights), few, params, 1, first=TESTED), TESTED.images, boxes, params)
        for _ in range(2)
    ]
    assert np.array_equal(*drawn)
    elsewhere = sam.draw(sam.load(weights), TESTED.images, [(0, 0, 8, 8)] * 40, params)
    assert not np.array_equal(elsewhere, sam.draw(sam.load(weights), TESTED.images, boxes, params))
    with pytest.raises(ValueError, match="masks are blank"):
        sam.train(sam.load(weights), pictures(4, 0, px=32, labels=("normal",)), params, 0)


def test_a_box_holds_its_mask_and_moves_outwards_only() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[4:9, 10:21] = True
    box = sam.box_of(mask)
    assert box == (10, 4, 21, 9)
    rng = np.random.default_rng(0)
    moved = np.array([sam.jittered(box, mask.shape, 0.2, rng) for _ in range(200)])
    assert (moved[:, :2] <= box[:2]).all()
    assert (moved[:, 2:] >= box[2:]).all()
    assert moved.min(0).tolist() == [4, 0, 21, 9]
    assert moved.max(0).tolist() == [10, 4, 27, 13]


def test_missing_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "sam.pth").touch()
    with pytest.raises(ValueError, match=r"expected config.json and model.safetensors in .*found \['sam.pth'\]"):
        sam.load(tmp_path)
