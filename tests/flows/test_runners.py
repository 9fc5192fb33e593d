"""Shards on a Ray cluster are the same bytes as in one process, also when a worker is killed; what runners refuse."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from flows.runners import Runner, fan_out
from tasks.synthesize import synthesize_shard
from tests import REPOSITORY
from tests.fakes.shards import make_work, spread
from tests.flows.waiting import meanwhile, until

SHARDS = 6


def mark_loads_and_shards(folder: str) -> None:
    """In a worker, before it works: write down each reading of a UNet, and each shard that is begun and drawn."""
    import diffusers

    from tasks import synthesize

    def mark(what: str) -> None:
        with (Path(folder) / f"{os.getpid()}").open("a") as file:
            file.write(f"{what}\n")

    read, draw = diffusers.UNet2DConditionModel.from_pretrained, synthesize.apply_stages

    def marked_read(*args: Any, **options: Any) -> Any:
        mark("load")
        return read(*args, **options)

    def marked_draw(drafts: Any, *args: Any) -> Any:
        mark(f"begun {drafts[0].id}")
        made = draw(drafts, *args)
        mark(f"drawn {drafts[0].id}")
        return made

    diffusers.UNet2DConditionModel.from_pretrained = marked_read
    synthesize.apply_stages = marked_draw


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "ray_without_token")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets and log files of Ray
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_ray_worker_costs_its_shard_alone_and_a_worker_loads_the_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    work = make_work(tmp_path, SHARDS, steps=40)
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    hook = {"worker_process_setup_hook": lambda: mark_loads_and_shards(str(marks))}
    # GPUs in name only: enough for Ray to end a process after each task, were it not told otherwise.
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, runtime_env=hook, log_to_driver=False)
    killed: list[int] = []

    def said() -> dict[int, list[str]]:
        return {int(file.name): file.read_text().splitlines() for file in marks.iterdir()}

    def amid_its_second_shard() -> list[int]:
        return [pid for pid, lines in said().items() if len(lines) > 3 and lines[-1].startswith("begun")]

    def kill() -> None:
        until(lambda: bool(amid_its_second_shard()))
        killed.append(amid_its_second_shard()[0])
        os.kill(killed[0], signal.SIGKILL)

    try:
        with meanwhile(kill):
            calls = work.on(tmp_path / "copy")
            ended = spread(synthesize_shard, calls, Runner(kind="ray", workers=2, gpus=1))
    finally:
        ray.shutdown()
    assert [done.ref.sha256 for done in ended] == work.digests
    lines = said()
    assert 2 <= len(lines) <= 3  # the two, and one in the place of the killed
    assert all(one.count("load") == 1 for one in lines.values())
    begun = Counter(line for one in lines.values() for line in one if line.startswith("begun"))
    assert len(begun) == SHARDS
    assert [times for times in begun.values() if times > 1] == [2]
    assert begun[lines[killed[0]][-1]] == 2


@pytest.mark.usefixtures("prefect_server", "ray_without_token")
def test_gpus_that_are_nowhere_are_told_before_anything_waits_for_them(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    with pytest.raises(ValueError, match=r"runner\.gpus asks for 1 GPUs"):
        spread(synthesize_shard, [{"store_url": str(tmp_path)}], Runner(kind="ray", gpus=1))


def test_ray_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(ValueError, match=r"pip install 'sonoforge\[ray\]'"):
        fan_out(synthesize_shard, [{"store_url": str(tmp_path)}], Runner(kind="ray"))


def test_a_cluster_elsewhere_needs_a_server_that_its_workers_reach(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(ValueError, match="set PREFECT_API_URL"):
        fan_out(synthesize_shard, [{"store_url": str(tmp_path)}], Runner(kind="ray", address="ray://head:10001"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus": 1}, "gpus: of kind ray only, found kind threads"),
        ({"kind": "ray", "pool": "gpus"}, "pool: of kind pool only, found kind ray"),
        ({"attempts": 5}, "attempts: of kind ray or pool only, found kind threads"),
        ({"kind": "pool"}, "kind pool needs pool"),
        ({"kind": "dask"}, "'threads', 'processes', 'ray' or 'pool'"),
    ],
    ids=str,
)
def test_fields_of_another_kind_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Runner.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [{}, {"kind": "processes", "workers": 4}, {"kind": "ray", "gpus": 0.5}, {"kind": "pool", "pool": "gpus"}],
    ids=str,
)
def test_a_runner_is_read_again_from_what_it_says(fields: dict[str, Any]) -> None:
    runner = Runner.model_validate(fields)
    assert Runner.model_validate(runner.model_dump(mode="json")) == runner
