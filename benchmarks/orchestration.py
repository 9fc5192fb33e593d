"""What Prefect costs: the same build as plain function calls, under a temporary API, and as a run of a deployment.

Each build is a whole process with a store of its own and ends at the same digest, so Python, imports, loading of models
and, for the deployment, the worker's way to it are inside the time. The server, the work pool and the worker are there
before the clock runs. The goal allows a deployed run 15 s for that way and 5 % of the build for all else; the line for
it is (its time - 15 s) / plain calls.

The last line is what `sonoforge --help` takes beyond `python -c pass`, over 0.3 s.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, cast

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")

from benchmarks.ratios import Ratio, main, paired

ALLOWED_S = 15.0
HELP_S = 0.3
_HELP_RUNS = 9
_PLAIN = "plain"
_QUICK = (
    "source.count=80",
    "lora.steps=4",
    "lora.warmup=1",
    "judges.classifier.steps=10",
    "judges.segmenter.steps=10",
    "judges.detector.steps=10",
    "judges.critic=null",
    "plan.samples=4",
    "plan.shard=2",
    "audit=null",
    "gate={}",
    "curate=[]",
)


def measure(quick: bool, turns: int) -> list[Ratio]:
    overrides = _QUICK if quick else ()
    with tempfile.TemporaryDirectory() as scratch:
        return [*_builds(Path(scratch), overrides, turns), _help()]


def _builds(folder: Path, overrides: tuple[str, ...], turns: int) -> list[Ratio]:
    from tests.servers import pool  # imports Prefect

    found: dict[str, list[float]] = {_PLAIN: [], "temporary": [], "deployed": []}
    with pool.running(folder) as url:
        run = Deployed(url, folder)
        ways: dict[str, Callable[[Path], str]] = {
            _PLAIN: lambda store: _process(
                [sys.executable, "-m", "benchmarks.orchestration", _PLAIN, str(store), *overrides], folder / "home"
            ),
            "temporary": lambda store: _command(store, overrides, folder / "home"),
            "deployed": lambda store: run(store, overrides),
        }
        try:
            for turn in range(turns):
                digests: set[str] = set()
                for name, way in ways.items():
                    start = time.perf_counter()
                    digests.add(way(folder / f"{name}-{turn}"))
                    found[name].append(time.perf_counter() - start)
                assert len(digests) == 1, "the ways made different datasets"
        finally:
            pool.die(run.worker)
    plain = found[_PLAIN]
    seconds = {name: f"{median(values):.0f} s" for name, values in found.items()}
    return [
        paired(
            f"seconds of a build under a temporary API ({seconds['temporary']}) / plain calls ({seconds[_PLAIN]})",
            None,
            [taken / alone for taken, alone in zip(found["temporary"], plain, strict=True)],
        ),
        paired(
            f"seconds of a deployed build ({seconds['deployed']}) less {ALLOWED_S:g} / plain calls ({seconds[_PLAIN]})",
            1.05,
            [(taken - ALLOWED_S) / alone for taken, alone in zip(found["deployed"], plain, strict=True)],
        ),
    ]


def _help() -> Ratio:
    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    sonoforge = str(Path(sys.executable).parent / "sonoforge")
    ratios: list[float] = []
    for _ in range(_HELP_RUNS):
        empty = seconds(sys.executable, "-c", "pass")
        ratios.append((seconds(sonoforge, "--help") - empty) / HELP_S)
    return paired(f"seconds of sonoforge --help less python -c pass / {HELP_S}", 1.0, ratios)


class Deployed:
    """Runs of a deployment on the pool of a server, for which one worker is ready."""

    def __init__(self, url: str, folder: Path) -> None:
        from prefect.client.orchestration import get_client

        from flows.build_dataset import build_dataset
        from tests.servers import pool

        with get_client(sync_client=True) as client:
            pool.serve(client, build_dataset, "build", "flows/build_dataset.py:build_dataset")
        self.worker = pool.worker(url, folder, "worker")
        pool.wait_for_workers(1)

    def __call__(self, store: Path, overrides: tuple[str, ...]) -> str:
        """The digest of what a run made."""
        from prefect.client.schemas.objects import FlowRun
        from prefect.deployments import run_deployment

        from flows import recipe
        from storage.store import Store
        from storage.versions import open_manifest

        asked = recipe.load("demo", overrides).model_dump(mode="json")
        parameters = {"recipe": asked, "store": str(store)}
        run = cast(FlowRun, run_deployment("build-dataset/build", parameters=parameters, poll_interval=1))
        if run.state is None or not run.state.is_completed():
            raise RuntimeError(f"the deployed build ended as {run.state}")
        return open_manifest(Store(str(store)), "demo").digest


def _command(store: Path, overrides: tuple[str, ...], home: Path) -> str:
    changes = [word for change in overrides for word in ("--set", change)]
    command = [sys.executable, "-m", "flows", "build", "demo", *changes, "--store", str(store), "--json"]
    return json.loads(_process(command, home))["digest"]


def _process(command: list[str], home: Path) -> str:
    """What a process prints that knows of no server."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(home)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout.strip()


def plain(store: str, overrides: list[str]) -> str:
    """The digest of a build in which no task is one of Prefect's; `workers` threads draw, as in a flow."""
    from prefect import Task

    from flows import build_dataset as module
    from flows import recipe
    from flows.runners import Runner
    from tasks.reuse import Done

    for name, value in list(vars(module).items()):
        if isinstance(value, Task):
            setattr(module, name, cast(Task[Any, Any], value).fn)

    def fan_out(function: Callable[..., Done], calls: list[dict[str, Any]], where: Runner) -> list[Done]:
        with ThreadPoolExecutor(where.workers) as threads:
            return list(threads.map(lambda call: function(**call), calls))

    setattr(module, "fan_out", fan_out)  # noqa: B010 (its type is another)
    return module.build_dataset.fn(recipe=recipe.load("demo", overrides), store=store).digest


if __name__ == "__main__":
    if sys.argv[1:2] == [_PLAIN]:
        print(plain(sys.argv[2], sys.argv[3:]))
    else:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--turns", type=int, help="builds of each way; 3, or 1 with --quick")
        given, sys.argv[1:] = parser.parse_known_args()
        main(__doc__ or "", lambda quick: measure(quick, given.turns or (1 if quick else 3)))
