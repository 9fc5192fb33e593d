from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tasks.quality.class_score import _least_auc, class_score, classifier_score
from tasks.quality.evidence import ClassAnswers, SetEvidence
from tests.tasks.quality.clouds import cloud, evidence

LABELS = ["benign", "malignant"]


def answers(n: int, seed: int, skill: float, share: float = 0.5) -> tuple[np.ndarray, list[str]]:
    """What a classifier of this skill (0: none) says of `n` images, a `share` of them malignant; and the truth."""
    rng = np.random.default_rng(seed)
    malignant = rng.random(n) < share
    odds = rng.normal(size=n) + skill * np.where(malignant, 1, -1)
    probability = 1 / (1 + np.exp(-odds))
    return np.stack([1 - probability, probability], axis=1), [LABELS[int(one)] for one in malignant]


def given(skill: float, made_skill: float, share: float = 0.5, n: int = 120, made: int = 80) -> SetEvidence:
    real, truth = answers(n, 1, skill)
    synthetic, _ = answers(made, 2, made_skill, share)
    plain = evidence(cloud(n, 2, 1), cloud(made, 2, 2), per_group=2)
    return replace(plain, answers=ClassAnswers(real, synthetic, truth, LABELS, "toy classifier"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of its buffer, and of the scatter of a single split
def test_it_agrees_with_torchmetrics():
    import torch
    from torchmetrics.image.inception import InceptionScore

    class Given(torch.nn.Module):
        """Images that are their own logits."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    logits = 2 * np.random.default_rng(0).normal(size=(200, 5))
    peer = InceptionScore(feature=Given(), splits=1)
    peer.update(torch.from_numpy(logits))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert class_score(probabilities) == pytest.approx(peer.compute()[0].item(), rel=1e-6)


def test_it_is_1_without_any_certainty_and_the_number_of_labels_with_all():
    assert class_score(np.full((10, 4), 0.25)) == pytest.approx(1)
    assert class_score(np.tile(np.eye(4), (5, 1))) == pytest.approx(4)
    assert class_score(np.tile([[1.0, 0.0]], (5, 1))) == pytest.approx(1)  # certain, but always of the same


def test_the_auc_is_that_of_sklearn():
    real, truth = answers(90, 5, 0.6)
    known = ClassAnswers(real, real, truth, LABELS, "toy")
    low, auc = _least_auc(known, [str(row) for row in range(90)], 200, np.random.default_rng(0))
    assert auc == pytest.approx(roc_auc_score(np.array(truth) == "malignant", real[:, 1]), rel=1e-12)
    assert auc - 0.2 < low < auc


def test_images_that_are_as_clear_as_real_ones_score_their_floor():
    score = classifier_score(given(2, 2))
    assert score.extractor == "toy classifier"
    assert score.low < score.value < score.high
    assert score.over_floor_low < 1 < score.over_floor_high
    assert "of at most 2; its AUC on the 120 real images is" in score.note


def test_a_vague_set_and_a_set_of_one_label_score_below_it():
    assert classifier_score(given(2, 0)).over_floor_high < 0.9
    assert classifier_score(given(2, 2, share=0.0)).over_floor_high < 0.9


def test_a_classifier_that_does_not_know_held_out_images_gives_no_number():
    score = classifier_score(given(0.1, 2))
    assert score.value is None
    assert "not meaningful here: its AUC" in score.note


def test_a_good_classifier_shown_on_few_patients_gives_no_number_either():
    score = classifier_score(given(0.9, 2, n=12, made=12))
    assert score.value is None
    assert "not meaningful" in score.note


def test_what_is_missing_is_refused():
    assert "no classifier answered" in classifier_score(evidence(cloud(9, 2, 1), cloud(9, 2, 2))).note
    one = given(2, 2)
    assert one.answers is not None
    single = replace(one.answers, real_labels=["benign"] * 120)
    assert "of one label" in classifier_score(replace(one, answers=single)).note


@pytest.mark.parametrize(
    ("real", "labels", "message"),
    [
        (np.array([[0.5, 0.6], [0.5, 0.5]]), ["benign", "benign"], "1 of 2 real answers are not probabilities"),
        (np.array([[np.nan, 1.0], [0.5, 0.5]]), ["benign", "benign"], "1 of 2 real answers are not probabilities"),
        (np.ones((2, 1)), ["benign", "benign"], "shape \\(2, 1\\)"),
        (np.full((2, 2), 0.5), ["benign"], "found 1 labels for 2"),
        (np.full((2, 2), 0.5), ["benign", "cyst"], "\\['cyst'\\] are not among"),
    ],
)
def test_answers_that_are_none_are_refused(real: np.ndarray, labels: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        ClassAnswers(real, np.full((2, 2), 0.5), labels, LABELS, "toy")
