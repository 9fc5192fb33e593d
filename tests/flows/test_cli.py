"""The command line, run as a person runs it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fakes


def sonoforge(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "SONOFORGE_STORE"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


COMMANDS = """build lock inspect train-base study ablate score copies check-leakage memorisation reader-study list show
pull verify diff lineage promote channels retract gc catalogue deploy doctor"""


def test_help_names_every_command() -> None:
    output = sonoforge("--help").stdout
    assert [name for name in COMMANDS.split() if f"│ {name} " not in output] == []


def test_help_of_a_command_teaches_by_example() -> None:
    assert "--set plan.samples=32" in sonoforge("build", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "demmo"], "give a YAML file, or one of ours"),
        (["build", "demo", "--set", "plan.sample=3"], "did you mean samples"),
        (["show", "demo@1"], "no dataset 'demo'"),
        (["verify", "Demo@1"], "cannot name a dataset"),
        (["inspect", "bussi", "."], "did you mean busi"),
        (["inspect", "busi", "/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_clear_line_and_no_traceback(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = sonoforge(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    assert "sonoforge build demo" in sonoforge("list", "--store", tmp_path / "store").stdout


def test_inspect_writes_a_row_for_every_image(tmp_path: Path) -> None:
    root = tmp_path / "Dataset_BUSI_with_GT"
    fakes.busi(root)
    done = sonoforge("inspect", "busi", root, "--csv", tmp_path / "scans.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "scans.csv").read_text().splitlines()))
    assert list(rows[0]) == ["file", "label", "group", "split", "verdict", "reasons"]
    assert len(rows) == sum(1 for path in root.rglob("*.png") if "_mask" not in path.name)
    assert "near-duplicates" in done.stdout
