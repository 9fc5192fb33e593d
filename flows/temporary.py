"""The temporary Prefect API of a process that is told of no server: its address, and its end."""

import atexit
import subprocess

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL

_tied: set[int] = set()

_WATCH = 'read -r _; kill "$0" 2>/dev/null && sleep 5 && kill -9 "$0" 2>/dev/null'


def address() -> str:
    """Where the Prefect API answers, for workers in other processes too: each would start a server of its own."""
    url = PREFECT_API_URL.value()
    if url:
        return url
    with get_client(sync_client=True) as client:  # starts the server where there is none yet
        return str(client.api_url)


def tie() -> None:
    """Have a temporary API end with this process, also when that is killed; it ends by itself only after a good end.

    A shell waits for the end of a pipe that this process holds open.
    """
    if PREFECT_API_URL.value() or FlowRunContext.get() is None:
        return
    from prefect.server.api.server import SubprocessASGIServer  # a second to import, and here it was imported already

    server = SubprocessASGIServer().server_process
    if server is None or server.pid in _tied:
        return
    _tied.add(server.pid)
    watch = subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, str(server.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends this process's group is not to end it as well
    )
    atexit.register(_untie, watch)


def _untie(watch: "subprocess.Popen[bytes]") -> None:
    watch.kill()
    watch.wait()
    assert watch.stdin is not None
    watch.stdin.close()
