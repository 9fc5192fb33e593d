"""A PostgreSQL server with an empty database in a temporary folder, for Prefect servers that several workers ask.

Debian and Ubuntu: apt-get install --no-install-recommends postgresql. It refuses to run as root, so root runs it as
`nobody`. Nothing is synced to disk: quick, and lost with the machine.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from tests.servers.supervisor import free_ports, start, stop

PACKAGES = "postgresql"
_DEBIAN = Path("/usr/lib/postgresql")
_PROGRAMS = ("initdb", "postgres", "createdb", "pg_isready")
_USER = "prefect"
_PATIENCE_S = 60
_QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


def missing() -> list[str]:
    """Programs that have to be installed for it."""
    return [name for name in _PROGRAMS if _program(name) is None]


@contextlib.contextmanager
def running() -> Generator[str]:
    """The address of its database as SQLAlchemy takes it, until the block ends; 3 s to start.

    The folder is one that `nobody` may enter, which those of pytest are not.
    """
    with tempfile.TemporaryDirectory(prefix="sonoforge-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        data, log = folder / "data", folder / "log"
        data.mkdir(mode=0o700)
        as_nobody: list[str] = []
        if os.geteuid() == 0:
            for one in (folder, data):
                shutil.chown(one, "nobody", "nogroup")
            # Who becomes somebody else outlives its parent again, unless told not to.
            as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]
        _once(as_nobody, "initdb", "--pgdata", str(data), "--auth", "trust", "--username", _USER, "--no-sync")
        (port,) = free_ports(1)
        where = ["--host", "127.0.0.1", "--port", str(port), "--username", _USER]
        settings = [
            *(f"--{setting}" for setting in _QUICK),
            *("--listen_addresses=127.0.0.1", f"--port={port}", f"--unix_socket_directories={folder}"),
        ]
        server = start([*as_nobody, str(_program("postgres")), "-D", str(data), *settings], log)
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while subprocess.run([str(_program("pg_isready")), *where], capture_output=True).returncode:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no PostgreSQL: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            _once([], "createdb", *where, _USER)
            yield f"postgresql+asyncpg://{_USER}@127.0.0.1:{port}/{_USER}"
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for the clients to leave
            stop(server)


def _program(name: str) -> str | None:
    """Where a program is: Debian keeps those of a server out of PATH, in a folder for each version."""
    if (found := shutil.which(name)) is not None:
        return found
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return str(versions[-1]) if versions else None


def _once(as_nobody: list[str], name: str, *arguments: str) -> None:
    done = subprocess.run([*as_nobody, str(_program(name)), *arguments], capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-1000:]}")
