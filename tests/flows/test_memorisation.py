"""The 20 % experiment on tiny fakes: who teaches, who is asked, resume, the command."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.__main__ import app
from flows.memorisation import MemorisationResult, memorisation, of_draw
from flows.recipe import parse
from storage.records import Ref
from storage.store import Store
from tasks.ingest import kept_scans
from tasks.report.memorisation import LESSONS, Memorisation
from tests import fakes
from tests.fakes.base import make_base

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

SHARE = 0.5


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = fakes.busi(tmp_path_factory.mktemp("busi"), n=8, shape=(64, 72))
    base = make_base(tmp_path_factory.mktemp("base"), channels=9)
    return {
        "name": "tiny",
        "seed": 3,
        "source": {"dataset": "busi", "root": str(root)},
        "screen": {"px": 64},
        "base": str(base),
        "lora": {"steps": 2, "warmup": 1, "batch": 2, "rank": 2},
        "judges": {
            "classifier": {"steps": 2},
            "segmenter": {"steps": 2},
            "detector": {"steps": 2, "folds": 2, "networks": ["resnet18"]},
            "critic": None,
        },
        "plan": {"samples": 4, "shard": 4},
        "stages": [{"stage": "layout"}, {"stage": "lesion", "steps": 1}],
        "gate": {"limits": [{"score": "membership_auc", "max": 0.65}]},
        "study": {"classifier": {"steps": 2, "px": 32, "width": 4}, "resamples": 60},
    }


@pytest.fixture(scope="module")
def finished(
    content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Path, MemorisationResult]:
    store = tmp_path_factory.mktemp("store")
    return store, memorisation(recipe=parse(content), store=str(store), share=SHARE, seeds=1)


def test_nothing_that_taught_is_asked_about_as_unseen(finished: tuple[Path, MemorisationResult]) -> None:
    folder, result = finished
    store = Store(str(folder))
    (narrowed,) = (key for key in store.list("builds/narrow") if key.endswith("scans.parquet"))
    kept = kept_scans(store, Ref(key=narrowed, sha256=""))
    answers = pd.read_parquet(Path(result.uri).parent / "answers.parquet")
    own = answers[answers["lesson"] == "all samples"]
    taught = {scan.id for scan in kept if scan.split == "train" and scan.label != "normal"}
    assert set(own[own["side"] == "seen"]["id"]) == taught
    # What chose checkpoints and limits is on neither side either.
    assert not set(own[own["side"] == "unseen"]["id"]) & {scan.id for scan in kept}
    assert len(own) > len(taught)


def test_every_classifier_is_a_row_with_both_areas(finished: tuple[Path, MemorisationResult]) -> None:
    folder, result = finished
    assert [row.lesson for row in result.memorisation.rows] == list(LESSONS)
    row = {row.lesson: row for row in result.memorisation.rows}["its own scans"]
    assert row.seen.value is not None
    assert row.unseen.value is not None
    assert result.memorisation.draws[0].planned == 4
    beside = {file.name for file in Path(result.uri).parent.iterdir()}
    assert {"memorisation.html", "memorisation.md", "answers.parquet"} <= beside
    assert not list(folder.glob("tiny/versions/*"))  # nothing is published


def test_the_command_prints_it_and_a_second_run_trains_nothing(
    finished: tuple[Path, MemorisationResult],
    content: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("tasks.quality.resnet.train", fail)
    monkeypatch.setattr("tasks.memorise.find_alike", fail)
    store, result = finished
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    arguments = ["memorisation", str(tmp_path / "tiny.json"), "--share", str(SHARE), "--seeds", "1"]
    arguments += ["--store", str(store), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert Memorisation.model_validate_json(done.stdout) == result.memorisation
    read = CliRunner().invoke(app, arguments)
    assert "AUC, unseen" in read.stdout
    assert "all samples" in read.stdout
    assert (tmp_path / "out" / "memorisation.html").is_file()


def test_a_recipe_of_other_than_two_labels_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    alone = content | {"plan": {"samples": 4, "labels": {"malignant": 1.0}}}
    with pytest.raises(ValueError, match="plans the labels malignant; the experiment tells two apart"):
        memorisation(recipe=parse(alone), store=str(tmp_path))


def test_each_draw_is_a_recipe_of_its_own_without_a_test_split(content: dict[str, Any]) -> None:
    recipe = parse(content)
    first, second = (of_draw(recipe, 0.2, draw) for draw in range(2))
    assert first.seed != second.seed
    assert first.training_scans == second.training_scans == 0.2
    assert first.screen.test == 0
    folds = parse(content | {"screen": {"px": 64, "folds": 3, "fold": 1}})
    assert of_draw(folds, 0.2, 0).screen == folds.screen
