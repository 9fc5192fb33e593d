"""The tables: every entry keeps the contract, so a new one is tested the day it is listed."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from storage.records import SetScore
from tasks.quality import (
    HIGHER_IS_BETTER,
    IMAGE_SCORES,
    OF_MASKS,
    SET_SCORES,
    Evidence,
    SetEvidence,
    classifier,
    critic,
    detector,
    segmenter,
    unscored,
)
from tasks.quality.evidence import ClassAnswers, Space
from tasks.quality.thresholds import check_names
from tests.tasks.quality.toys import pictures

TRAIN, HELD_OUT, SYNTHETIC = pictures(30, 0), pictures(10, 1), pictures(12, 2)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    pair = HELD_OUT, HELD_OUT
    return Evidence(
        scored=SYNTHETIC,
        train=TRAIN,
        classifier=classifier.train(TRAIN, HELD_OUT, classifier.Params(steps=2, batch=4), 0).weights,
        segmenter=segmenter.train(TRAIN, HELD_OUT, segmenter.Params(steps=2, batch=4), 0).weights,
        detector=detector.Params(steps=2, batch=4, folds=2),
        seed=0,
        critic=critic.train(TRAIN, SYNTHETIC, pair, critic.Params(steps=2, batch=4), 0).weights,
        backgrounds=np.full_like(SYNTHETIC.images, 90),
    )


@pytest.mark.parametrize("name", sorted(IMAGE_SCORES))
def test_an_image_score_is_one_float32_an_image_and_repeats(name: str, evidence: Evidence):
    values = IMAGE_SCORES[name](evidence)
    assert values.dtype == np.float32
    assert values.shape == (12,)
    assert np.isfinite(values).all()
    again = IMAGE_SCORES[name](replace(evidence))  # a fresh object: nothing cached
    assert (values == again).all()


@pytest.mark.parametrize("name", sorted(IMAGE_SCORES))
def test_an_image_score_exists_on_held_out_images_too(name: str, evidence: Evidence):
    assert len(IMAGE_SCORES[name](replace(evidence, scored=HELD_OUT, backgrounds=None))) == len(HELD_OUT)


def test_an_unknown_image_score_is_refused():
    with pytest.raises(ValueError, match="did you mean lesion_contrast"):
        check_names(["lesion_contrst"], IMAGE_SCORES, "image score")


def test_lesions_are_compared_with_lesions(evidence: Evidence):
    mixed = replace(evidence, train=pictures(30, 0, labels=("benign", "malignant", "normal")))
    assert set(mixed.comparable.labels) == {"benign", "malignant"}


@pytest.fixture(scope="module")
def sets() -> SetEvidence:
    """Two sets of one distribution, with every part that a set score may ask for."""
    rng = np.random.default_rng(0)
    sides = rng.normal(size=(60, 3)), rng.normal(size=(30, 3))
    malignant = np.arange(60) % 4 < 2
    sure = np.where(malignant[:, None], [0.2, 0.8], [0.9, 0.1])
    judged = detector.Detection(
        *(rng.random(len(side)).astype(np.float32) for side in sides), *(np.arange(len(side)) % 3 for side in sides)
    )
    return SetEvidence(
        *sides,
        real_groups=[f"r{row // 2}" for row in range(60)],
        synthetic_groups=[f"s{row // 2}" for row in range(30)],
        extractor="toy@0",
        seed=0,
        detection=judged,
        floor_detection=judged,
        control_detection=judged,
        radiomic=Space(*sides, "radiomics 1"),
        speckle=Space(*sides, "speckle 1"),
        answers=ClassAnswers(sure, sure[:30], ["ab"[int(one)] for one in malignant], ["a", "b"], "toy classifier"),
    )


@pytest.mark.parametrize("name", sorted(SET_SCORES))
def test_a_set_score_carries_its_n_extractor_interval_and_floor(name: str, sets: SetEvidence):
    score = SET_SCORES[name](sets)
    assert score.name == name
    assert score.extractor
    assert min(score.n_real, score.n_synthetic) >= 30
    assert None not in (score.value, score.low, score.high, score.floor, score.floor_low, score.floor_high)
    assert score.low <= score.value <= score.high
    assert score == SetScore.model_validate_json(score.model_dump_json())
    again = SET_SCORES[name](replace(sets))  # a fresh object: nothing cached
    assert again == score


@pytest.mark.parametrize("name", sorted(SET_SCORES))
def test_a_set_score_of_two_images_a_side_is_refused_or_has_no_interval_but_never_fails(name: str):
    two = np.array([[0.0, 1.0], [1.0, 0.5]])
    score = SET_SCORES[name](SetEvidence(two, two + 1, ["a", "b"], ["c", "d"], "toy@0", 0))
    assert score.value is None or np.isfinite(score.value)
    assert score.note


@pytest.mark.parametrize("name", sorted(SET_SCORES))
def test_a_set_score_of_constant_features_is_refused_or_finite(name: str):
    groups = [str(row // 2) for row in range(40)]
    score = SET_SCORES[name](SetEvidence(np.ones((40, 4)), np.ones((40, 4)), groups, groups, "toy@0", 0))
    numbers = score.value, score.low, score.high, score.floor, score.over_floor
    assert all(number is None or np.isfinite(number) for number in numbers)


def test_every_set_score_has_a_direction():
    assert set(SET_SCORES) >= HIGHER_IS_BETTER


def test_set_evidence_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="groups for 4 real"):
        SetEvidence(np.ones((4, 2)), np.ones((3, 2)), ["a"] * 3, ["b"] * 3, "toy", 0)
    answers = np.ones(4, np.float32), np.ones(4, np.float32), np.zeros(4, int), np.zeros(4, int)
    with pytest.raises(ValueError, match=r"judged \(4, 4\)"):
        SetEvidence(np.ones((4, 2)), np.ones((3, 2)), ["a"] * 4, ["b"] * 3, "toy", 0, detector.Detection(*answers))


def test_the_tables_are_read_without_torch_or_monai():
    code = "import sys, tasks.quality; print(sorted({'torch', 'monai', 'sklearn'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_scores_that_say_nothing_of_these_pictures_are_named_with_the_reason(evidence: Evidence):
    heads, lesions = unscored(["head"], whole=True), unscored(["benign", "malignant"], whole=False)
    drawn_whole = {"lesion_change", "critic_realism"}
    assert set(heads) == {"classifier_confidence", "classifier_score", *drawn_whole}
    assert "all scans are labelled head" in heads["classifier_score"]
    assert set(lesions) == {"picture_similarity"}
    assert set(unscored(["benign", "normal"], whole=True)) == drawn_whole
    unmasked = set(unscored(["benign", "normal"], whole=True, masked=False))
    assert unmasked == {*drawn_whole, *OF_MASKS} < set(IMAGE_SCORES)
    assert np.isnan(IMAGE_SCORES["classifier_confidence"](replace(evidence, classifier=None))).all()
