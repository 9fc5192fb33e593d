"""Downstream networks: a planted gain found, lessons in their order, the same bits; SAM on a tiny random model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tasks.quality import downstream, gain, resnet, sam, unet
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
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(sam_weights.sam(tmp_path_factory.mktemp("sam")))


def test_sams_decoder_learns_while_its_encoders_stay(weights: str) -> None:
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


def test_sam_repeats_and_draws_where_it_is_asked(weights: str) -> None:
    params = sam.Params(weights=weights, steps=2, batch=4)
    boxes = [sam.box_of(mask) for mask in TESTED.masks]
    few = pictures(6, 0, px=32, labels=("benign",))
    drawn = [
        sam.draw(sam.train(sam.load(weights), few, params, 1, first=TESTED), TESTED.images, boxes, params)
        for _ in range(2)
    ]
    assert np.array_equal(drawn[0], drawn[1])
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


def test_random_weights_are_the_same_everywhere_and_never_called_sam_alone() -> None:
    params = sam.Params(weights=sam.RANDOM)
    torch.manual_seed(1)
    once = sam.digest(sam.RANDOM)
    torch.manual_seed(2)
    assert sam.digest(sam.RANDOM) == once
    assert sam.title(params) == "SAM (random weights)"
    assert (
        sam.title(params.model_copy(update={"prompt": "truth"})) == "SAM (random weights, boxes from the ground truth)"
    )
    assert once[:12] in sam.described(params)
    assert sam.title(sam.Params(weights="facebook/sam-vit-base")) == "SAM"


def test_random_weights_learn_to_draw_in_a_box() -> None:
    params = sam.Params(weights=sam.RANDOM, steps=60, batch=8, learning_rate=3e-3, jitter=0.02)
    boxes = [sam.box_of(mask) for mask in TESTED.masks]
    trained = sam.train(sam.load(sam.RANDOM), pictures(30, 0, px=32), params, 0)
    asked = dice(sam.draw(trained, TESTED.images, boxes, params), TESTED.masks).mean()
    elsewhere = dice(sam.draw(trained, TESTED.images, boxes[1:] + boxes[:1], params), TESTED.masks).mean()
    assert asked > 0.6
    assert asked > elsewhere + 0.05


def test_weights_that_are_not_sams_are_refused(tmp_path: Path, weights: str) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"architectures": ["SamModel"]}')
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"pytorch_model.bin.*expected .safetensors"):
        sam.digest(str(tmp_path / "pickled"))
    with pytest.raises(ValueError, match="no such folder; expected a folder in transformers' layout"):
        sam.load(str(tmp_path / "nowhere"))
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((Path(weights) / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["SamHQModel"]}))
    with pytest.raises(ValueError, match="is a SamHQModel, another architecture; expected a SamModel"):
        sam.load(str(other))


def test_weights_that_lack_a_part_are_refused(tmp_path: Path, weights: str) -> None:
    (tmp_path / "config.json").write_text((Path(weights) / "config.json").read_text())
    whole = load_file(Path(weights) / "model.safetensors")
    save_file({name: part for name, part in whole.items() if "mask_tokens" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of SAM's weights, mask_decoder.mask_tokens.weight among them"):
        sam.load(str(tmp_path))


def test_examples_of_two_kinds_take_turns_however_few_of_one_there_are(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is learned from is the six real pictures, each with its mirror image for SAM."""
    turns, both = np.repeat(np.arange(2), [len(FEW), len(GARBAGE)]), FEW.and_also(GARBAGE)
    drawn = (both.masks.any((1, 2)) & (turns == 1)).sum()
    seen: list[NDArray[np.intp]] = []

    def noted(
        network: torch.nn.Module, loss_of: object, lessons: list[tuple[object, NDArray[np.intp]]], *_: object
    ) -> torch.nn.Module:
        seen.append(lessons[-1][1])
        return network

    monkeypatch.setattr(downstream, "learn", noted)
    unet.train(both, PARAMS, 0, turns=turns)
    sam.train(sam.load(weights), both, sam.Params(weights=weights, steps=2), 0, turns=turns)
    labelled = FEW.and_also(pictures(20, 1, px=32, labels=("benign", "malignant")))
    resnet.train(labelled, resnet.Params(steps=2, px=32, width=4), 0, turns=np.repeat(np.arange(2), [6, 20]))
    assert [np.bincount(kinds).tolist() for kinds in seen] == [[6, 60], [12, 2 * drawn], [6, 10, 0, 10]]


def test_turns_keep_what_is_real_from_being_drowned() -> None:
    turns = np.repeat(np.arange(2), [len(FEW), len(GARBAGE)])
    network = unet.train(FEW.and_also(GARBAGE), PARAMS, 0, turns=turns)
    assert dice(unet.draw(network, TESTED.images), TESTED.masks).mean() > overlap(FEW.and_also(GARBAGE)).mean() + 0.02
