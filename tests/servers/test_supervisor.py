import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import supervisor
from tests.servers.supervisor import serving

_RUN = """
import sys
from pathlib import Path
from tests.servers.supervisor import serving
with serving("moto", Path(sys.argv[1])) as server:
    print(server.endpoint, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


def _processes(folder: Path) -> list[str]:
    """Processes that name the folder, or were started by one that does."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and str(folder) in (process / "environ").read_bytes().decode(errors="replace"):
                found.append((process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found


def _run(folder: Path) -> "subprocess.Popen[str]":
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OF_THIS_TEST": str(folder)},
    )
    assert run.stdout is not None
    assert run.stdout.readline().startswith("http://127.0.0.1:")
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_test_run_leaves_no_server(tmp_path: Path, number: int) -> None:
    run = _run(tmp_path / "server")
    assert len(_processes(tmp_path / "server")) == 3  # the run, the supervisor, the server
    os.kill(run.pid, number)
    run.communicate(timeout=10)
    for _ in range(100):
        if not _processes(tmp_path / "server"):
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {_processes(tmp_path / 'server')}")


def test_workers_of_one_run_share_a_server(tmp_path: Path) -> None:
    with serving("moto", tmp_path) as first, serving("moto", tmp_path) as second:
        assert first == second
    assert not (tmp_path / "ready.json").exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"nothing server did not start(.|\n)*No module named"),
        serving("nothing", tmp_path),
    ):
        pass


def test_without_the_programs_tests_skip_but_not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    supervisor.skip_without([], "apt-get install x")
    with pytest.raises(pytest.skip.Exception, match=r"x, y: not installed\. apt-get install x"):
        supervisor.skip_without(["x", "y"], "apt-get install x")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="must run"):
        supervisor.skip_without(["x"], "apt-get install x")
