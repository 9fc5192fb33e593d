"""A real Prefect server with the work pool `shards`, and workers of it, as processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkerStatus
from prefect.workers.process import ProcessWorker

from flows import ranges
from tests import REPOSITORY
from tests.servers import api
from tests.servers.supervisor import start

POOL = "shards"
_PATIENCE_S = 240


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of the API of a server with the pool, which is also the one of this process while inside."""
    with api.running(folder) as url:
        with get_client(sync_client=True) as client:
            deploy(client)
        yield url


def deploy(client: SyncPrefectClient) -> None:
    """Make the work pool and put `make_range` on it."""
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    serve(client, ranges.make_range, "ranges", "flows/ranges.py:make_range")


def serve(client: SyncPrefectClient, flow: Flow[..., Any], name: str, entrypoint: str) -> None:
    """Put a flow of this repository on the work pool."""
    client.create_deployment(
        flow_id=client.create_flow(flow),
        name=name,
        entrypoint=entrypoint,
        work_pool_name=POOL,
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}],
    )


def worker(url: str, folder: Path, name: str) -> "subprocess.Popen[bytes]":
    """A worker of the pool that takes one flow run at a time."""
    command = ["-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1", "--name", name]
    home = {"PREFECT_API_URL": url, "PREFECT_HOME": str(folder / name), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    return start([sys.executable, *command], folder / f"{name}.log", **home)


def wait_for_workers(count: int) -> None:
    """Return once so many workers of the pool are online."""
    deadline = time.monotonic() + _PATIENCE_S
    with get_client(sync_client=True) as client:
        while sum(one.status == WorkerStatus.ONLINE for one in client.read_workers_for_work_pool(POOL)) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {count} workers within {_PATIENCE_S} s")
            time.sleep(0.2)


def family(process: "subprocess.Popen[bytes]") -> list[int]:
    """Ids of a worker and of all that it started."""
    try:
        known = psutil.Process(process.pid)
        return [known.pid, *(child.pid for child in known.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def die(process: "subprocess.Popen[bytes]") -> None:
    """`kill -9` as a machine dies: a worker and its flow runs, the worker first, so that it reports nothing."""
    for one in family(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait(30)
