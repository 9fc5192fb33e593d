"""The utility study on tiny fakes: every test group once, honest numbers, resume."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from flows.__main__ import app
from flows.recipe import parse
from flows.study_utility import StudyResult, of_fold, study_utility
from storage.records import Ref
from storage.store import Store
from storage.versions import list_versions
from tasks.ingest import ingest, kept_scans
from tasks.quality.arms import ARMS
from tasks.report.study import Study
from tests import fakes
from tests.fakes.base import make_base
from tests.fakes.sam import sam

pytestmark = pytest.mark.usefixtures("prefect_server")

FOLDS = 2
ARMED = [arm for arm in ARMS if arm.augmentation]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = fakes.busi(tmp_path_factory.mktemp("busi"), n=10, shape=(64, 72))
    base = make_base(tmp_path_factory.mktemp("base"), channels=9)
    external = fakes.busuclm(tmp_path_factory.mktemp("busuclm"), shape=(64, 72))
    return {
        "name": "tiny",
        "seed": 3,
        "source": {"dataset": "busi", "root": str(root)},
        "screen": {"px": 64},
        "base": str(base),
        "lora": {"steps": 2, "warmup": 1, "batch": 2, "rank": 2},
        "judges": {"classifier": {"steps": 2}, "segmenter": {"steps": 2}, "detector": {"steps": 2}, "critic": None},
        "plan": {"samples": 8, "shard": 4},
        "stages": [{"stage": "layout"}, {"stage": "lesion", "steps": 1}],
        "gate": {"min_kept": 8},
        "audit": None,
        "study": {
            "regimes": [{"real_images": 4, "steps": 0.7}, {}],
            "external": {"dataset": "busuclm", "root": str(external)},
            "unet": {"steps": 3, "batch": 4, "channels": [4, 8, 8]},
            "classifier": {"steps": 3, "px": 32, "width": 4},
            "arms": [arm.model_dump() for arm in ARMED],
            "detector": {"steps": 3, "folds": 2, "width": 4, "networks": ["resnet18"]},
            "resamples": 60,
            "permutations": 20,
        },
    }


@pytest.fixture(scope="module")
def studied(
    content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Path, StudyResult]:
    store = tmp_path_factory.mktemp("store")
    return store, study_utility(recipe=parse(content), store=str(store), folds=FOLDS)


def beside(result: StudyResult, name: str) -> Path:
    return Path(result.uri).parent / name


def lesions(store: Path, dataset: str) -> set[str]:
    """Ids of the lesions of one dataset that screening kept, whatever fold."""
    opened = Store(str(store))
    tables = [key for key in opened.list("builds/ingest") if key.endswith("scans.parquet")]
    scans = [scan for key in tables for scan in kept_scans(opened, Ref(key=key, sha256=""))]
    return {scan.id for scan in scans if scan.label != "normal" and scan.dataset == dataset}


def test_every_lesion_is_tested_once_in_every_arm_and_regime(studied: tuple[Path, StudyResult]) -> None:
    store, result = studied
    answers = pd.read_parquet(beside(result, "answers.parquet"))
    own, other = lesions(store, "busi"), lesions(store, "busuclm")
    assert len(other) > 1
    trials = answers.groupby(["task", "arm", "regime"]).groups
    trained = {(task, arm, regime) for task, arm, regime in trials if task not in ("detection", "copies")}
    arms = [(arm.name, regime) for arm in ARMED for regime in ((4.0, 1.0) if arm.real else (0.0,))]
    assert trained == {(task, *arm) for task in ("segmentation", "classification") for arm in arms}
    for task, arm, regime in trained:
        rows = answers[(answers["task"] == task) & (answers["arm"] == arm) & (answers["regime"] == regime)]
        assert sorted(rows[rows["tested"] == "held out"]["id"]) == sorted(own)
        assert sorted(rows[rows["tested"] == "external"]["id"]) == sorted([*other] * FOLDS)
    detected = answers[(answers["task"] == "detection") & (answers["arm"] == "window") & (answers["side"] == "real")]
    assert sorted(detected["id"]) == sorted(own)


def test_few_real_images_are_the_same_in_every_arm(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    answers = pd.read_parquet(beside(result, "answers.parquet"))
    few = answers[answers["regime"] == 4]
    assert set(few["n_real"]) == {4}
    assert set(few[few["arm"] == "real"]["n_synthetic"]) == {0}
    kept = {fact.fold: fact.kept for fact in result.study.facts}
    mixed = few[few["arm"] == "real + synthetic"]
    assert (mixed["n_synthetic"] == mixed["fold"].map(kept)).all()


def test_anyone_can_recompute_the_numbers_from_the_answers(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    answers = pd.read_parquet(beside(result, "answers.parquet"))
    found = {(e.measure, e.arm, e.over, e.tested, e.regime, e.fold): e for e in result.study.estimates}
    for tested in ("held out", "external"):
        of_arm = {}
        for arm in ("real", "real + synthetic"):
            drawn = answers[
                (answers["task"] == "segmentation")
                & (answers["arm"] == arm)
                & (answers["regime"] == 4)
                & (answers["tested"] == tested)
            ]
            dice = (2 * drawn["hit"] / (drawn["drawn"] + drawn["truth"])).mean()
            of_arm[arm] = found["segmentation, mean Dice", arm, None, tested, 4, None]
            assert of_arm[arm].value == pytest.approx(dice)
        gain = found["segmentation, mean Dice", "real + synthetic", "real", tested, 4, None]
        assert gain.value == pytest.approx(of_arm["real + synthetic"].value - of_arm["real"].value)
        assert gain.trainings == FOLDS
    judged = answers[
        (answers["task"] == "classification")
        & (answers["arm"] == "real")
        & (answers["regime"] == 1)
        & (answers["fold"] == 0)
        & (answers["tested"] == "held out")
    ]
    area = roc_auc_score(judged["positive"].astype(bool), judged["probability"])
    assert found["classification, AUC", "real", None, "held out", 1, 0].value == pytest.approx(area)


def test_every_number_has_its_count_and_interval_or_a_reason(studied: tuple[Path, StudyResult]) -> None:
    _, result = studied
    for estimate in result.study.estimates:
        if estimate.value is None:
            assert estimate.note, estimate
        else:
            assert estimate.n > 0
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low <= estimate.high
    measures = {estimate.measure for estimate in result.study.pooled()}
    assert {"KID", "FID", "copies, share", "real or synthetic, AUC"} <= measures
    page = beside(result, "study.md").read_text()
    assert "0.563" in page
    assert "+0.026" in page
    html = beside(result, "study.html").read_text()
    assert html.count("<svg") == 2 * 3 * 2
    assert "http" not in html.replace("http://www.w3.org", "")


def test_a_fold_that_misses_its_gate_is_studied_and_not_published(studied: tuple[Path, StudyResult]) -> None:
    store, result = studied
    published = {f"{m.dataset}@{m.version}" for m in list_versions(Store(str(store)))}
    for fact in result.study.facts:
        assert (fact.published is None) == bool(fact.problems)
        assert fact.published is None or fact.published in published
        assert fact.planned == 8


def test_a_second_study_trains_nothing(
    studied: tuple[Path, StudyResult], content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    for name in ("unet.train", "detector.out_of_fold", "resnet.train", "sam.train"):
        monkeypatch.setattr(f"tasks.quality.{name}", fail)
    store, result = studied
    assert study_utility(recipe=parse(content), store=str(store), folds=FOLDS) == result


def test_the_real_arm_is_reused_when_the_generator_changes_and_sam_asks_the_unet(
    studied: tuple[Path, StudyResult], content: dict[str, Any], tmp_path: Path
) -> None:
    store, _ = studied

    def trainings() -> int:
        return len(list(store.glob("builds/study-segment/*/ref.json")))

    before = trainings()
    arms = [arm.model_dump() for arm in ARMED if arm.name in ("real", "real + synthetic")]
    own = {"arms": arms, "regimes": [{}], "classifier": None}
    own["sam"] = {"weights": str(sam(tmp_path)), "steps": 2, "batch": 2}
    changed = content | {"plan": {"samples": 4, "shard": 4}, "study": content["study"] | own}
    result = study_utility(recipe=parse(changed), store=str(store), folds=FOLDS)
    assert trainings() == before + FOLDS
    found = {(e.measure, e.arm, e.tested) for e in result.study.pooled() if e.over is None and e.value is not None}
    asked = {(arm, tested) for arm in ("real", "real + synthetic") for tested in ("held out", "external")}
    assert {("SAM, mean Dice", *one) for one in asked} <= found


def test_folds_share_no_test_group(content: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse(content)
    tested: list[str] = []
    everyone: set[str] = set()
    for fold in range(3):
        own = of_fold(recipe, 3, fold)
        kept = kept_scans(Store(str(tmp_path)), ingest.fn(str(tmp_path), own.source, own.screen, own.seed).ref)
        held_out = {scan.group for scan in kept if scan.split == "test"}
        assert not held_out & {scan.group for scan in kept if scan.split != "test"}
        tested += sorted(held_out)
        everyone |= {scan.group for scan in kept}
    assert sorted(tested) == sorted(everyone)


def test_the_command_line_prints_and_writes_the_study(
    studied: tuple[Path, StudyResult], content: dict[str, Any], tmp_path: Path
) -> None:
    store, result = studied
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    arguments = ["study", str(tmp_path / "tiny.json"), "--folds", str(FOLDS), "--store", str(store)]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert Study.model_validate_json(done.stdout) == result.study
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "study.json",
        "study.html",
        "study.md",
        "answers.parquet",
    }
    written = (tmp_path / "out" / "study.json").read_text()
    assert Study.model_validate_json(written) == result.study


def test_a_set_of_which_nothing_is_kept_is_studied_and_says_so(
    studied: tuple[Path, StudyResult], content: dict[str, Any]
) -> None:
    arms = [arm.model_dump() for arm in ARMED if not arm.pretrain]
    study = content["study"] | {"arms": arms, "regimes": [{}], "classifier": None, "views": ["window"]}
    nothing = content | {"curate": [{"score": "lesion_contrast", "min": 100}], "study": study}
    result = study_utility(recipe=parse(nothing), store=str(studied[0]), folds=FOLDS)
    found = {(e.measure, e.arm, e.over, e.regime): e for e in result.study.pooled() if e.tested == "held out"}
    assert [fact.kept for fact in result.study.facts] == [0, 0]
    assert found["segmentation, mean Dice", "real + synthetic", "real", 1].value == 0
    assert found["segmentation, mean Dice", "synthetic only", None, 0].note.startswith("nothing to learn from")
    assert found["real or synthetic, AUC", "window", None, None].note == "no detector judged images of both sides"
    assert found["copies, share", "kept", None, None].note == "nothing was kept"
