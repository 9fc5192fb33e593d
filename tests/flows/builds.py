"""Builds as processes of their own, as people start them."""

import os
import subprocess
import sys
import time
from pathlib import Path

from flows.build_dataset import BuildResult


def start(recipe: Path, store: Path) -> "subprocess.Popen[bytes]":
    """A build in a process group and a Prefect home of its own: no database of one build is there for the next."""
    number = time.monotonic_ns()
    environment = {**os.environ, "PREFECT_HOME": str(store.parent / f"prefect-{number}")}
    command = [sys.executable, "-m", "flows", "build", str(recipe), "--store", str(store), "--json"]
    with output(store, "out", number).open("wb") as out, output(store, "err", number).open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
    process.args = str(number)  # what `finish` finds the output by
    return process


def output(store: Path, kind: str, number: int) -> Path:
    return store.parent / f"{kind}-{number}"


def finish(process: "subprocess.Popen[bytes]", store: Path) -> BuildResult:
    """The result that a build printed as JSON."""
    number = int(str(process.args))
    assert process.wait(timeout=300) == 0, output(store, "err", number).read_text()
    return BuildResult.model_validate_json(output(store, "out", number).read_text())


def kill(process: "subprocess.Popen[bytes]") -> None:
    """`kill -9` of a build alone, not of what it started: that ends by itself."""
    process.kill()
    process.wait()


def refs(store: Path) -> set[Path]:
    return set(store.glob("builds/*/*/ref.json"))
