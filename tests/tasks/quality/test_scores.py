"""The tables: every entry keeps the contract, so a new one is tested the day it is listed."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tasks.quality import (
    IMAGE_SCORES,
    SET_SCORES,
    Evidence,
    SetEvidence,
    classifier,
    detector,
    segmenter,
)
from tasks.quality.curate import check_names
from tests.tasks.quality.toys import pictures

TRAIN, HELD_OUT, SYNTHETIC = pictures(30, 0), pictures(10, 1), pictures(12, 2)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence(
        scored=SYNTHETIC,
        train=TRAIN,
        classifier=classifier.train(TRAIN, HELD_OUT, classifier.Params(steps=2, batch=4), 0).weights,
        segmenter=segmenter.train(TRAIN, HELD_OUT, segmenter.Params(steps=2, batch=4), 0).weights,
        detector=detector.Params(steps=2, batch=4, folds=2),
        seed=0,
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
    assert len(IMAGE_SCORES[name](replace(evidence, scored=HELD_OUT))) == len(HELD_OUT)


def test_an_unknown_image_score_is_refused():
    with pytest.raises(ValueError, match="did you mean lesion_contrast"):
        check_names(["lesion_contrst"], IMAGE_SCORES, "image score")


def test_lesions_are_compared_with_lesions(evidence: Evidence):
    mixed = replace(evidence, train=pictures(30, 0, labels=("benign", "malignant", "normal")))
    assert set(mixed.comparable.labels) == {"benign", "malignant"}


@pytest.mark.parametrize("name", sorted(SET_SCORES))
def test_a_set_score_carries_its_n_extractor_interval_and_floor(name: str, evidence: Evidence):
    rng = np.random.default_rng(0)
    found = SetEvidence(
        real=rng.normal(size=(30, 3)),
        synthetic=rng.normal(size=(12, 3)),
        real_groups=TRAIN.groups,
        synthetic_groups=SYNTHETIC.groups,
        extractor="toy@0",
        seed=0,
        detection=evidence.detection,
        floor_detection=evidence.detection,
    )
    score = SET_SCORES[name](found)
    assert score.name == name
    assert score.extractor
    assert min(score.n_real, score.n_synthetic) >= 12
    assert None not in (score.value, score.low, score.high, score.floor, score.floor_low, score.floor_high)
    assert score == SET_SCORES[name](found)


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
