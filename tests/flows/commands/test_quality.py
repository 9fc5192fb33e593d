"""Commands that judge sets of pictures, as a person types them."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.__main__ import app
from tasks.quality import SET_SCORES
from tests.fakes.pictures import picture, save

SHAPE = (200, 240)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in train/; in made/ a mirrored copy of one of them, a stranger, and a file that is no picture."""
    root = tmp_path_factory.mktemp("sets")
    for seed in range(6):
        save(root / "train" / f"{seed}.png", picture(seed, SHAPE)[0])
    save(root / "made" / "mirrored.png", picture(2, SHAPE)[0][:, ::-1].copy())
    save(root / "made" / "stranger.png", picture(50, SHAPE)[0])
    (root / "made" / "broken.png").write_bytes(b"no picture")
    return root


def test_score_gives_every_set_score_and_names_what_it_could_not_read(folders: Path) -> None:
    done = run("score", folders / "train", folders / "made", "--untrained", "--px", 64, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [score["name"] for score in found["scores"]] == list(SET_SCORES)
    assert [bad["file"] for bad in found["synthetic"]["unreadable"]] == ["broken.png"]
    assert found["extractor"].startswith("sonoforge-features@")


def test_score_for_people_says_why_a_number_is_refused(folders: Path) -> None:
    done = run("score", folders / "train", folders / "made", "--untrained", "--px", 64)
    assert done.exit_code == 0, done.output
    assert "not readable: broken.png" in done.stdout
    assert "fid refused" in done.stdout
    assert "note: every picture is fitted into 64 × 64 px first" in done.stdout


def test_copies_writes_a_row_for_every_synthetic_picture(folders: Path, tmp_path: Path) -> None:
    done = run("copies", folders / "train", folders / "made", "--csv", tmp_path / "copies.csv")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "copies.csv").read_text().splitlines()))
    assert next((row["file"], row["nearest"], row["is_copy"]) for row in rows) == ("mirrored.png", "2.png", "true")
    assert [row["is_copy"] for row in rows if row["file"] == "stranger.png"] == ["false"]
    assert "mirrored.png copies 2.png" in done.stdout


def test_check_leakage_fails_where_a_copy_is_in_two_splits_and_lists_it(folders: Path, tmp_path: Path) -> None:
    done = run("check-leakage", folders / "train", folders / "made", "--csv", tmp_path / "leaks.csv")
    assert done.exit_code == 1, done.output
    rows = list(csv.DictReader((tmp_path / "leaks.csv").read_text().splitlines()))
    assert {(row["kind"], row["file"]) for row in rows} == {("duplicate", "2.png"), ("duplicate", "mirrored.png")}
    assert "1 duplicate in more than one split" in done.stdout


def test_check_leakage_passes_splits_that_share_nothing(tmp_path: Path) -> None:
    for seed in range(2):
        save(tmp_path / "train" / f"{seed}.png", picture(seed, SHAPE)[0])
        save(tmp_path / "test" / f"{seed}.png", picture(seed + 60, SHAPE)[0])
    done = run("check-leakage", tmp_path / "train", tmp_path / "test")
    assert done.exit_code == 0, done.output
    assert "nothing spans splits" in done.stdout


def test_a_set_that_is_not_there_is_one_clear_error(folders: Path, tmp_path: Path) -> None:
    done = run("score", folders / "train", tmp_path / "nowhere", "--untrained", "--store", tmp_path / "store")
    assert isinstance(done.exception, (ValueError, OSError))
    assert "nowhere" in str(done.exception)
