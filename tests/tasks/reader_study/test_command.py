"""`sonoforge reader-study` as a person types it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.commands.reader_study import app
from storage.store import Store
from tasks.reader_study import Key
from tests.fakes.folder import folder
from tests.fakes.pictures import picture, save
from tests.tasks.reader_study.studies import answered, made_key, store_with_version, written


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_version(tmp_path_factory.mktemp("command"))


def test_it_writes_a_page_and_a_key_and_says_who_may_have_which(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    done = run("demo@latest", "--store", store.url, "--images", 6, "--repeats", 2, "--out", out)
    assert done.exit_code == 0, done.output
    assert (
        "6 real and 6 synthetic pictures of 32 px, of each benign 2, malignant 2, normal 2; 2 are shown" in done.output
    )
    assert "it must not be published or passed on" in done.output
    assert "the truth, for whoever scores; keep it from the readers" in done.output
    key = Key.model_validate_json((tmp_path / "a.key.json").read_text())
    assert key.dataset == "demo@1"
    assert out.read_text().startswith("<!doctype html>")


def test_real_pictures_are_named_by_folder_or_recipe(store: Store, tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "mine" / "benign" / f"{number}.png", picture(number)[0])
    (tmp_path / "r.yaml").write_text(
        f"name: toy\nsource: {{dataset: folder, root: {folder(tmp_path / 'clinic')}}}\n"
        "screen: {val: 0.4, test: 0.4}\nplan: {samples: 2, labels: {benign: 1}}\n"
        "stages: [{stage: layout}, {stage: lesion}]\n"
    )
    both = ["--real", tmp_path / "mine", "--real", tmp_path / "r.yaml"]
    done = run("demo", "--store", store.url, *both, "--out", tmp_path / "a.html", "--images", 3, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["from_real"].endswith(f"pictures of {tmp_path / 'mine'}, recipe toy")
    assert found["real"] == found["synthetic"] == 3


def test_it_scores_files_as_a_table_and_as_json(tmp_path: Path) -> None:
    key = made_key(20, again=4)
    readers = [
        answered(key, lambda one: 4 if one.truth == "synthetic" else 2, "Ann", 1),
        answered(key, lambda one: 1 + int(one.id[-2:], 16) % 5, "Bob", 2),
    ]
    files = written(tmp_path, key, readers)
    done = run("--score", *files)
    assert done.exit_code == 0, done.output
    assert re.search(r"Ann +1\.000 +0\.84 to 1\.00 +40 of 40", done.output)
    assert "2 readers tell 20 synthetic from 20 real pictures" in done.output
    assert "mean, all readers" in done.output
    found = json.loads(run("--score", *files, "--key", tmp_path / "study.key.json", "--json").stdout)
    assert found["readers"][0]["auc"]["value"] == 1
    assert len(found["pictures"]) == 40


def test_what_cannot_be_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    for arguments, message in (
        (["demo", "demo", "--store", store.url], "found demo, demo; expected one version, or --score"),
        (["demo", "--key", "k.json", "--store", store.url], "--key k.json is for scoring"),
        (["nothing", "--store", store.url, "--out", tmp_path / "x.html"], "nothing"),
        (["--score", tmp_path / "nobody.json"], "nobody.json"),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, (ValueError, OSError)), done.output
        assert message in str(done.exception)
