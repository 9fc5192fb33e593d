"""Where shards run: threads or processes of this machine, a Ray cluster, or flow runs on a Prefect work pool."""

import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from pydantic import Field, model_validator

from flows import temporary
from storage.records import Record
from tasks import metrics, stop
from tasks.connect import BLOCK
from tasks.reuse import Done, noted
from tasks.track import advance

_FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    "ray": ("address", "gpus", "attempts"),
    "pool": ("pool", "shards", "patience_s", "attempts"),
}
"""Fields that mean nothing to the other kinds."""

_POLL_S = 1.0


class Runner(Record):
    """Where shards run. Never changes a byte of the dataset, so it is no part of the recipe's digest."""

    workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Shards in flight at once; of a pool, flow runs. Of threads one draws while the others read, "
        "encode and upload, so 2 are enough; all others draw side by side. A Ray cluster with an address takes as many "
        "as its CPUs and GPUs allow.",
    )
    kind: Literal["threads", "processes", "ray", "pool"] = Field(
        default="threads",
        description="threads share one loaded model. processes load their own, and are worth it where Python is the "
        "limit: many cores, or a small model on a GPU. ray: processes of a Ray cluster, for several GPUs. pool: flow "
        "runs on a Prefect work pool, for several machines.",
    )
    address: str | None = Field(
        default=None, description="ray: of a running cluster, ray://host:10001; null: a cluster of this machine alone."
    )
    gpus: float = Field(
        default=0, ge=0, le=8, description="ray: GPUs of a worker; 0.5: two share one; 0: drawn on the CPU."
    )
    pool: str | None = Field(default=None, description="pool: name of the work pool.")
    shards: int = Field(
        default=8, ge=1, le=64, description="pool: shards a flow run; each run starts Python and loads the model once."
    )
    patience_s: float = Field(
        default=120,
        ge=6,
        le=86400,
        description="pool: seconds without a sign of life after which a running flow run counts as dead.",
    )
    attempts: int = Field(
        default=3, ge=1, le=20, description="ray, pool: how often a shard is tried in all when workers die under it."
    )

    @model_validator(mode="after")
    def _fields_are_of_this_kind(self) -> "Runner":
        fields = Runner.model_fields
        foreign = {name for names in _FIELDS_OF.values() for name in names} - set(_FIELDS_OF.get(self.kind, ()))
        if found := sorted(name for name in foreign if getattr(self, name) != fields[name].default):
            kinds = [kind for kind, names in _FIELDS_OF.items() if set(found) & set(names)]
            raise ValueError(f"{', '.join(found)}: of kind {' or '.join(kinds)} only, found kind {self.kind}")
        if self.kind == "pool" and self.pool is None:
            raise ValueError("kind pool needs pool, the name of a Prefect work pool")
        return self


def fan_out(task: Task[Any, Done], calls: Sequence[Mapping[str, Any]], where: Runner) -> list[Done]:
    """Run `task` once for each of `calls`, so many at a time as `where` says.

    Returns:
        How each ended, in the order of `calls`.

    Raises:
        ValueError: what `where` asks for is not there.
        StoppedError: the run is out of time; whoever works for it stops at the next batch.
    """
    if where.kind == "pool":
        from flows import ranges  # which needs Runner

        return ranges.fan_out(task, [_anywhere(call) for call in calls], where)
    flag = multiprocessing.get_context("spawn").Event() if where.kind == "processes" else threading.Event()
    with noted(f"in step {task.name}"), _workers(where, flag) as runner, stop.together(flag):
        of = f"of {len(calls)}"
        names = [f"{task.name} {number} {of}" for number in range(1, len(calls) + 1)]
        futures = [
            runner.submit(task.with_options(task_run_name=name), _anywhere(call))
            for name, call in zip(names, calls, strict=True)
        ]
        ended: list[Done] = []
        for number, future in enumerate(futures, 1):
            with noted(f"shard {number} {of}"):
                ended.append(_counted(_result(future), where))
        return ended


def _result(future: PrefectFuture[Done]) -> Done:
    """What a task returned; meanwhile the time limit is looked at, which workers elsewhere do not know."""
    while True:
        stop.check()
        try:
            # As a value: a TimeoutError that is raised is then not the task's own.
            found: Done | BaseException = future.result(timeout=_POLL_S, raise_on_failure=False)
        except TimeoutError:
            continue
        if isinstance(found, BaseException):
            raise found
        return found


def _anywhere(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with a store that means the same from any working folder."""
    store = str(call["store_url"])
    plain = "://" not in store and not store.startswith(BLOCK)
    return {**call, "store_url": str(Path(store).expanduser().resolve()) if plain else store}


def _workers(where: Runner, flag: stop.Flag) -> AbstractContextManager[TaskRunner[Any]]:
    if where.kind == "threads":
        return ThreadPoolTaskRunner(max_workers=where.workers)
    return _processes(where, flag) if where.kind == "processes" else _ray(where)


@contextmanager
def _processes(where: Runner, flag: stop.Flag) -> Generator[TaskRunner[Any]]:
    workers = ProcessPoolTaskRunner(max_workers=where.workers, initializer=_begin, initargs=(flag,))
    with _one_api(), workers as runner:
        yield runner


@contextmanager
def _one_api() -> Generator[None]:
    """Workers use the temporary Prefect API of this process, where there is one; each would start its own."""
    if PREFECT_API_URL.value():
        yield
        return
    with temporary_settings({PREFECT_API_URL: temporary.address()}):
        yield


@contextmanager
def _ray(where: Runner) -> Generator[TaskRunner[Any]]:
    """Workers that keep their model: Ray would end a process after each task that holds a GPU.

    They use as many threads as this process: float32 kernels round differently by their number.
    """
    if importlib.util.find_spec("prefect_ray") is None:
        raise ValueError("runner.kind ray needs Ray, which is not installed: pip install 'sonoforge[ray]'")
    if where.address is not None and not PREFECT_API_URL.value():
        raise ValueError(
            f"runner.address is {where.address}, whose workers cannot reach the temporary Prefect API of this process: "
            "set PREFECT_API_URL to a server that they reach, or leave the address out to use this machine alone"
        )
    import torch
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads()), metrics.VARIABLE: ""}
    options: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "logging_level": logging.WARNING}
    if where.address is None:
        options |= {"num_cpus": where.workers, "include_dashboard": False}
    ray_runner = RayTaskRunner(address=where.address, init_kwargs=options)
    share = {"num_cpus": 1, "num_gpus": where.gpus, "max_calls": 0, "max_retries": where.attempts - 1}
    ends = signal.getsignal(signal.SIGTERM)
    with _one_api(), ray_runner as runner, remote_options(**share):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ends)  # Ray's own would end this process on the spot
        _check_gpus(where)
        yield runner


def _check_gpus(where: Runner) -> None:
    """Ray would wait for ever for GPUs that are not there."""
    import ray

    most = max((float(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if most < where.gpus:
        raise ValueError(
            f"runner.gpus asks for {where.gpus:g} GPUs a worker; no machine of the Ray cluster has more than {most:g}"
        )


def _begin(flag: stop.Flag) -> None:
    """In a new worker process."""
    stop.obey(flag)
    metrics.silence()
    _end_with_parent()


def _end_with_parent() -> None:
    """End this worker process when the build that started it is gone: a killed one cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _counted(step: Done, where: Runner) -> Done:
    """Move the step's bar, which a worker in another process could not reach."""
    if where.kind != "threads":
        advance(step.step, step.ref.rows)
        metrics.finished(step)
    return step
