"""Classifier, segmenter and critic on toys: they learn, repeat bit for bit, and leave torch's state alone."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.quality import classifier, critic, segmenter
from tasks.quality.judge import Judge, Pictures
from tests.tasks.quality.toys import pictures

TRAIN = pictures(60, 0, labels=("benign", "malignant", "normal"))
HELD_OUT = pictures(30, 1, labels=("benign", "malignant", "normal"))


def trained_classifier(steps: int, seed: int = 0) -> Judge:
    return classifier.train(TRAIN, HELD_OUT, classifier.Params(steps=steps, batch=8), seed)


def trained_segmenter(steps: int, seed: int = 0) -> Judge:
    return segmenter.train(TRAIN, HELD_OUT, segmenter.Params(steps=steps, batch=8), seed)


def trained_critic(steps: int, seed: int = 0) -> Judge:
    held_out = HELD_OUT, critic.imitations(HELD_OUT, 1)
    return critic.train(TRAIN, critic.imitations(TRAIN, 0), held_out, critic.Params(steps=steps, batch=16), seed)


TRAINERS = [trained_classifier, trained_segmenter, trained_critic]
LOADERS: list[Callable[[bytes], object]] = [classifier.load, segmenter.load, critic.load]


def test_the_classifier_learns_labels_and_reports_held_out_numbers():
    judge = trained_classifier(60)
    assert judge.report["n_held_out"] == 30
    assert judge.report["auc"] > 0.9
    confidence = classifier.load(judge.weights).confidence(HELD_OUT)
    swapped = [{"benign": "malignant", "malignant": "normal", "normal": "benign"}[label] for label in HELD_OUT.labels]
    wrong = classifier.load(judge.weights).confidence(replace(HELD_OUT, labels=swapped))
    assert (confidence > wrong).mean() > 0.75


def test_the_segmenter_finds_lesions_and_notices_shifted_masks():
    judge = trained_segmenter(60)
    assert judge.report["n_lesions"] == 20
    assert judge.report["dice"] > 0.6
    lesions = HELD_OUT.select(HELD_OUT.masks.any((1, 2)))
    loaded = segmenter.load(judge.weights)
    agreed = loaded.dice(lesions.images, lesions.masks)
    shifted = loaded.dice(lesions.images, np.roll(lesions.masks, 16, 2))
    assert (agreed > shifted).mean() > 0.9


def test_the_critic_prefers_real_lesions_to_imitations():
    assert trained_critic(120).report["auc"] > 0.75


@pytest.mark.parametrize("train", TRAINERS)
def test_training_repeats_bit_for_bit_while_another_thread_draws_random_numbers(train: Callable[..., Judge]):
    alone = train(2)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.rand(10)

    other = threading.Thread(target=disturb)
    other.start()
    try:
        assert train(2).weights == alone.weights
    finally:
        stop.set()
        other.join()
    assert train(2, seed=1).weights != alone.weights


@pytest.mark.parametrize("train", TRAINERS)
def test_torchs_global_random_state_is_left_as_it_was(train: Callable[..., Judge]):
    before = torch.get_rng_state()
    train(1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("load", LOADERS)
def test_weights_of_another_kind_and_no_weights_are_refused(load: Callable[[bytes], object]):
    from tasks.quality import fitting

    with pytest.raises(ValueError, match="these weights are a stranger"):
        load(fitting.dump(torch.nn.Linear(2, 2), {}))
    with pytest.raises(ValueError, match="expected the safetensors bytes of a judge"):
        load(b"\x80\x04pickled")


def test_a_single_label_is_certain():
    heads = Pictures(TRAIN.images, TRAIN.masks, ["head"] * 60, TRAIN.groups)
    judge = classifier.train(heads, heads, classifier.Params(steps=1), 0)
    assert (classifier.load(judge.weights).confidence(heads) == 1).all()
    assert judge.report == {"n_held_out": 60}


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match=r"labels \['head'\] were not in"):
        classifier.load(trained_classifier(1).weights).confidence(replace(HELD_OUT, labels=["head"] * 30))


def test_held_out_sets_may_be_empty():
    nobody = HELD_OUT.select(np.zeros(30, bool))
    assert classifier.train(TRAIN, nobody, classifier.Params(steps=1), 0).report == {"n_held_out": 0}
    assert segmenter.train(TRAIN, nobody, segmenter.Params(steps=1), 0).report == {"n_lesions": 0, "n_healthy": 0}


def test_a_segmenter_or_critic_without_lesions_is_refused():
    healthy = pictures(6, 0, labels=("normal",))
    with pytest.raises(ValueError, match="all 6 masks are blank"):
        segmenter.train(healthy, healthy, segmenter.Params(steps=1), 0)
    with pytest.raises(ValueError, match="0 real and 0 generated"):
        critic.train(healthy, healthy, (healthy, healthy), critic.Params(steps=1), 0)


def test_progress_is_reported_step_by_step():
    done: list[int] = []
    classifier.train(TRAIN, HELD_OUT, classifier.Params(steps=3, batch=4), 0, done.append)
    assert done == [1, 1, 1]


def test_pictures_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="bool masks of shape"):
        Pictures(TRAIN.images, TRAIN.masks[:, :32], TRAIN.labels, TRAIN.groups)
    with pytest.raises(ValueError, match="one label and one group"):
        Pictures(TRAIN.images, TRAIN.masks, TRAIN.labels[:5], TRAIN.groups)
    with pytest.raises(ValueError, match="expected uint8"):
        Pictures(TRAIN.images / 255, TRAIN.masks, TRAIN.labels, TRAIN.groups)


def test_dice_is_one_for_two_blank_masks_and_zero_for_one():
    blank, drawn = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    assert segmenter.dice(blank, blank)[0] == 1
    assert segmenter.dice(blank, drawn)[0] == 0
    assert segmenter.dice(drawn, drawn)[0] == 1


def test_a_judge_of_lesions_needs_masks_and_tells_shapes_apart():
    judge = classifier.train(TRAIN, HELD_OUT, classifier.Params(steps=60, batch=8), 0, view="lesion")
    assert judge.report["auc"] > 0.9
    loaded = classifier.load(judge.weights)
    assert loaded.probabilities(HELD_OUT.images, HELD_OUT.masks).sum(1) == pytest.approx(np.ones(30), abs=1e-5)
    with pytest.raises(ValueError, match="needs the mask of every image"):
        loaded.probabilities(HELD_OUT.images)


def test_the_temperature_undoes_a_known_overconfidence():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (4000, 3))
    likely = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    own = np.array([rng.choice(3, p=row) for row in likely])
    assert classifier.fit_temperature(3 * honest, own) == pytest.approx(3, rel=0.05)
    assert classifier.fit_temperature(honest[:10], own[:10]) == 1  # too few to say


def test_the_calibration_error_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(0)
    likely = rng.dirichlet([1, 1, 1], 500)
    own = rng.integers(0, 3, 500)
    theirs = multiclass_calibration_error(torch.tensor(likely), torch.tensor(own), 3, n_bins=10)
    assert classifier.calibration_error(likely, own) == pytest.approx(float(theirs), abs=1e-6)


def test_a_confident_and_wrong_classifier_is_calibrated_on_held_out_groups():
    many = pictures(60, 3, labels=("benign", "malignant"))
    wrong = replace(many, labels=["benign" if k % 3 else label for k, label in enumerate(many.labels)])
    judge = classifier.train(TRAIN, wrong, classifier.Params(steps=40, batch=8), 0)
    assert classifier.load(judge.weights).temperature > 1
    assert judge.report["ece_after"] < judge.report["ece_before"]
