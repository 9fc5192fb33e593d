"""A Prefect server as a process of its own, and the API of this process while a block runs."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.servers.supervisor import free_ports, start, stop

_PATIENCE_S = 240


@contextlib.contextmanager
def running(folder: Path, **environment: str) -> Iterator[str]:
    """The address of its API; the server ends with the block, or with this process. `environment` is added to its own.

    Prefect's own `prefect_test_harness` waits at its end until every event has been sent, also those for servers that
    tests have ended meanwhile: an hour at times.
    """
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own = {"PREFECT_HOME": str(folder / "server"), "PREFECT_SERVER_UI_API_URL": url}
    process = start([sys.executable, *command], folder / "server.log", **own, **environment)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no Prefect server: {(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    finally:
        stop(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def events(name: str) -> list[dict[str, Any]]:
    """Those of a name that reached the configured server, newest first."""
    asked = {"filter": {"event": {"name": [name]}}}
    return httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json=asked).raise_for_status().json()["events"]
