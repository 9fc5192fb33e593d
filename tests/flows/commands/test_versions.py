"""Commands about what is published, on a store with two versions of a made-up dataset."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from flows.__main__ import app
from storage.errors import RetractedError
from storage.store import Store
from storage.versions import publish
from tests.storage import published


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """demo@1 with 24 planned samples, demo@2 with 30, the first of which are the same."""
    opened = Store(tmp_path / "store")
    for count in (24, 30):
        folder = tmp_path / str(count)
        publish(opened, "demo", folder, published.fill(folder, count))
    return tmp_path / "store"


def run(store: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--store", str(store)])


def said(store: Path, *arguments: str | Path) -> str:
    result = run(store, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_promote_moves_a_channel_and_list_shows_it(store: Path) -> None:
    assert "demo@production is demo@1" in said(store, "promote", "demo@1", "production")
    listed = json.loads(said(store, "list", "--json"))
    assert [(line["version"], line["channels"]) for line in listed] == [("demo@1", ["production"]), ("demo@2", [])]
    assert "demo@1" in said(store, "show", "demo@production")


def test_channels_lists_every_move(store: Path) -> None:
    for version in ("demo@1", "demo@2", "demo@1"):
        said(store, "promote", version, "production")
    moves = json.loads(said(store, "channels", "demo", "--json"))
    assert [(move["number"], move["version"]) for move in moves] == [(1, 1), (2, 2), (3, 1)]


def test_a_retracted_version_is_marked_and_not_given_out(store: Path, tmp_path: Path) -> None:
    assert "demo@2" in said(store, "retract", "demo@2", "--reason", "masks shifted by a pixel")
    assert "masks shifted by a pixel" in said(store, "list")
    assert "masks shifted by a pixel" in said(store, "show", "demo@2")
    refused = run(store, "pull", "demo@2", tmp_path / "out")
    assert isinstance(refused.exception, RetractedError)
    assert "masks shifted by a pixel" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    assert "demo@1" in said(store, "pull", "demo@latest", tmp_path / "out")


def test_a_second_pull_transfers_nothing(store: Path, tmp_path: Path) -> None:
    assert "pulled demo@2" in said(store, "pull", "demo", tmp_path / "out")
    assert "nothing transferred" in said(store, "pull", "demo", tmp_path / "out")


def test_pull_chooses_rows(store: Path, tmp_path: Path) -> None:
    said(store, "pull", "demo", tmp_path / "out", "--where", "label = 'malignant'", "--split", "train")
    rows = pd.read_parquet(tmp_path / "out" / "metadata.parquet")
    assert set(rows["label"]) == {"malignant"}
    assert set(rows["split"]) == {"train"}


@pytest.mark.parametrize("format", ["coco", "webdataset"])
def test_pull_converts(store: Path, tmp_path: Path, format: str) -> None:
    said(store, "pull", "demo", tmp_path / "out", "--format", format)
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert ("train.json" if format == "coco" else "train-000000.tar") in names


def test_verify_says_what_it_checked_and_fails_on_damage(store: Path) -> None:
    assert "--deep reads every byte" in said(store, "verify", "demo@1")
    assert "every byte" in said(store, "verify", "demo@1", "--deep")
    largest = max((store / "demo" / "objects").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o644)
    largest.write_bytes(content)
    assert run(store, "verify", "demo@2", "--deep").exit_code + run(store, "verify", "demo@1", "--deep").exit_code > 0


def test_diff_counts_rows(store: Path) -> None:
    found = json.loads(said(store, "diff", "demo@1", "demo@2", "--json"))
    rows = [line["rows"] for line in json.loads(said(store, "list", "--json"))]
    assert [found["rows"]["before"], found["rows"]["after"]] == rows
    assert found["rows"]["added"] - found["rows"]["removed"] == rows[1] - rows[0]
    assert "demo@2" in said(store, "diff", "demo@1", "demo@2")


def test_lineage_names_the_background(store: Path) -> None:
    assert "phantom-0000" in said(store, "lineage", "demo@1", "demo-000000")


def test_gc_is_dry_until_told(store: Path) -> None:
    orphan = store / "demo" / "objects" / f"{'0' * 64}.parquet"
    orphan.write_bytes(b"left by somebody")
    assert "0" * 64 in said(store, "gc", "--older-than", "0s")
    assert orphan.exists()
    said(store, "gc", "--older-than", "0s", "--delete")
    assert not orphan.exists()
    assert "whole" in said(store, "verify", "demo@2", "--deep")


def test_an_age_that_is_none_is_refused(store: Path) -> None:
    refused = run(store, "gc", "--older-than", "soon")
    assert "expected a number and s, m, h, d or w" in str(refused.exception)
