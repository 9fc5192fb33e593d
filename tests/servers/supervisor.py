"""Servers for tests: one for a whole test run, whoever of its workers asks first, and never left behind.

A supervisor process starts the server and ends it as soon as the test run is gone, however that went. `python -m
tests.servers.supervisor MODULE FOLDER OWNER` is what `serving` runs; FOLDER is the server's own and OWNER the process
id of the test run.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import pytest

_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 120
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Server:
    """An S3 server with one bucket."""

    endpoint: str
    bucket: str
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """What a user would set."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def serving(module: str, folder: Path) -> Iterator[Server]:
    """The server of `tests.servers.<module>`; workers that name the same folder share it."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, failed = folder / "ready.json", folder / "failed.txt"
    in_a_worker = "PYTEST_XDIST_WORKER" in os.environ
    owner = os.getppid() if in_a_worker else os.getpid()
    process: subprocess.Popen[bytes] | None = None
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ready.exists():
                failed.unlink(missing_ok=True)
                command = [sys.executable, "-m", "tests.servers.supervisor", module, str(folder), str(owner)]
                with (folder / "supervisor.log").open("ab") as log:
                    process = subprocess.Popen(
                        command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                    )
                deadline = time.monotonic() + _PATIENCE_S
                while not ready.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        why = failed.read_text() if failed.exists() else (folder / "supervisor.log").read_text()
                        raise RuntimeError(f"the {module} server did not start in {folder}: {why[-2000:]}")
                    time.sleep(0.05)
        yield Server(**json.loads(ready.read_text()))
    finally:
        if process is not None:
            if not in_a_worker:  # other workers may still need it: it ends with the run
                process.terminate()
                process.wait(30)
            process.returncode = process.returncode or 0  # no warning that it still runs


def free_ports(count: int) -> list[int]:
    """That many ports of the loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start(command: list[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """A process that the kernel ends when this one does."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, __file__, "tied", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )


def skip_without(missing: list[str], install: str) -> None:
    """Skip the test where programs are missing, saying how to `install` them; in CI that is a failure."""
    if not missing:
        return
    reason = f"{', '.join(missing)}: not installed. {install}"
    if os.environ.get("CI", "false") not in ("", "0", "false"):
        pytest.fail(f"{reason} (where CI is set these tests must run)")
    pytest.skip(reason)


def _tied(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() == parent:  # else it died before the line above
        os.execvp(command[0], command)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _supervise(module: str, folder: Path, owner: int) -> None:
    """Run a server until the owner is gone."""
    signal.signal(signal.SIGTERM, _end)
    born = _born(owner)
    try:
        with importlib.import_module(f"tests.servers.{module}").running(folder) as server:
            temporary = folder / "ready.tmp"
            temporary.write_text(json.dumps(asdict(server)))
            temporary.rename(folder / "ready.json")
            while born is not None and _born(owner) == born:
                time.sleep(0.2)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        (folder / "failed.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    finally:
        (folder / "ready.json").unlink(missing_ok=True)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process: asked first, made after 5 s."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _born(process: int) -> str | None:
    """When a process started, None where there is none (or only its corpse): ids are used again."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    if sys.argv[1] == "tied":
        _tied(int(sys.argv[2]), sys.argv[3:])
    else:
        _supervise(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
