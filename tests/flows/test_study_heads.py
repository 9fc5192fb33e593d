"""The utility study of fetal heads: one label, few real scans, a SAM with random weights, circumferences."""

from pathlib import Path

import pandas as pd
import pytest

from flows.recipe import parse
from flows.study_utility import StudyResult, study_utility
from tests.fakes.base import make_base
from tests.fakes.hc18 import hc18

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]

FOLDS, SEEDS = 2, 2
SAM = "SAM (random weights)"
ARMS = [
    {"name": "real", "synthetic": False},
    {"name": "real + synthetic"},
    {"name": "synthetic, then real", "pretrain": True},
]
RECIPE = {
    "name": "heads",
    "seed": 3,
    "source": {"dataset": "hc18"},
    "screen": {"px": 64, "val": 0.1},
    "training_scans": 6,
    "lora": {"steps": 2, "warmup": 1, "batch": 2, "rank": 2},
    "controlnet": {"steps": 2, "warmup": 1, "batch": 2},
    "judges": {"segmenter": {"steps": 2}, "detector": {"steps": 2}},
    "plan": {"samples": 4, "shard": 4, "labels": {"head": 1}},
    "audit": None,
    "stages": [{"stage": "segmentation", "shapes": "donors"}, {"stage": "picture", "steps": 1}],
    "set_scores": ["kid"],
    "study": {
        "arms": ARMS,
        "regimes": [{"real_images": 2}, {"real_images": 6}],
        "unet": {"steps": 2, "batch": 2, "channels": [4, 8, 8]},
        "sam": {"weights": "random", "steps": 2, "batch": 2},
        "views": ["full"],
        "detector": {"steps": 2, "folds": 2, "width": 4, "networks": ["small"]},
        "controls": False,
        "resamples": 60,
        "permutations": 20,
    },
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> StudyResult:
    folder = tmp_path_factory.mktemp("heads")
    where = {"source": {"dataset": "hc18", "root": str(hc18(folder / "hc18", n=16))}}
    recipe = parse({**RECIPE, **where, "base": str(make_base(folder / "base", channels=4))})
    return study_utility(recipe=recipe, store=str(folder / "store"), folds=FOLDS, seeds=SEEDS)


def test_both_networks_answer_in_every_regime_and_no_class_is_asked_for(studied: StudyResult) -> None:
    pooled = studied.study.pooled()
    asked = {(e.measure, e.regime) for e in pooled if e.regime is not None}
    measures = ("mean Dice", "pixel F1", "head circumference error, mm")
    assert asked == {(f"{task}, {m}", r) for task in ("segmentation", SAM) for m in measures for r in (2.0, 6.0)}
    assert {e.trainings for e in pooled if e.regime is not None} == {FOLDS * SEEDS}
    assert {e.real_images for e in pooled if e.regime == 2} == {2.0}
    assert all(5 <= (e.real_images or 0) <= 6 for e in pooled if e.regime == 6)
    assert studied.study.subject == "head"


def test_circumferences_of_true_masks_are_those_of_the_scans(studied: StudyResult) -> None:
    answers = pd.read_parquet(Path(studied.uri).parent / "answers.parquet")
    drawn = answers[answers["task"].isin(["segmentation", SAM])]
    assert drawn["truth_mm"].notna().all()
    assert (drawn.groupby("id")["truth_mm"].nunique() == 1).all()
    error = (drawn["drawn_mm"] - drawn["truth_mm"]).abs()
    one = drawn[(drawn["task"] == SAM) & (drawn["arm"] == "real") & (drawn["regime"] == 2)]
    told = {(e.measure, e.arm, e.over, e.regime): e for e in studied.study.pooled()}
    assert told[f"{SAM}, head circumference error, mm", "real", None, 2.0].value == pytest.approx(
        error[one.index].mean()
    )


def test_folds_tell_what_they_learned_from_and_that_nothing_leaks(studied: StudyResult) -> None:
    for fact in studied.study.facts:
        assert 0 < fact.learned_from <= 6
        assert fact.looked_at > fact.learned_from + fact.tested
        assert fact.leaks == {}
    page = (Path(studied.uri).parent / "study.md").read_text()
    assert "in more than one split: none." in page
    assert "lesion" not in page
    assert "malignant" not in page
    assert "SAM, mean Dice, held" not in page
