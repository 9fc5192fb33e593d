"""`sonoforge doctor` on a set-up that is whole, then on that set-up broken in one way after the other.

Nothing of its own is replaced: the Prefect server, the worker that is killed, the disk that is full, the S3 servers and
the weights are real. Where a test needs time to have passed, it is moved in the server's database.
"""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import State, StateType, WorkerStatus
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner, Result

from flows import deploying, pins
from flows import recipe as recipes
from flows.commands import doctor as command
from flows.doctor import server as checks
from flows.doctor.runs import HEARTBEAT
from tasks.connect import SonoforgeStore
from tests.fakes.base import make_base
from tests.servers import api
from tests.servers.faults import FaultyServer
from tests.servers.supervisor import Server, free_ports, start, stop

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "source": {"dataset": "phantom", "count": 2},
    "plan": {"samples": 4},
    "stages": [{"stage": "layout"}, {"stage": "lesion"}],
}
LIVING = ("gpu", "shards")
"""Pools whose workers report once and for long; that of the pool sonoforge is a process."""


@dataclass
class Visit:
    """What the doctor said."""

    result: Result

    @property
    def findings(self) -> list[dict[str, str]]:
        return json.loads(self.result.stdout)["findings"]

    def of(self, check: str) -> dict[str, str]:
        """The finding of one check; one that is not there fails the test with those that are."""
        found = [finding for finding in self.findings if finding["check"] == check]
        assert found, f"no {check} in {[finding['check'] for finding in self.findings]}"
        return found[-1]

    def bad(self, *levels: str) -> dict[str, str]:
        """What was found by check, of these levels; failures where none is named."""
        return {f["check"]: f["found"] for f in self.findings if f["level"] in (levels or ("failure",))}


@dataclass
class Setup:
    """A whole set-up: a server with everything on it, a store, a recipe that is locked."""

    url: str
    database: Path
    store: Path
    recipe: Path
    worker: "subprocess.Popen[bytes]"

    def visited(self, *arguments: str | Path) -> Visit:
        """What the doctor says of it; later arguments count."""
        given = ["--json", "--store", self.store, "--recipe", self.recipe, *arguments]
        result = CliRunner().invoke(command.app, list(map(str, given)), catch_exceptions=False)
        return Visit(result)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("setup")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"base": str(make_base(folder / "base"))}))
    pins.write(recipe, pins.found(recipes.load(recipe)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL", "1")
        with api.running(folder) as url, get_client(sync_client=True) as client:
            deploying.deploy(str(folder / "store"))
            for pool in LIVING:
                client.send_worker_heartbeat(pool, f"{pool}-1", heartbeat_interval_seconds=3600)
            with working(url, folder) as worker:
                wait_until(lambda: WorkerStatus.ONLINE in statuses(client, "sonoforge"))
                yield Setup(url, folder / "server" / "prefect.db", folder / "store", recipe, worker)


@contextmanager
def working(url: str, folder: Path) -> Generator["subprocess.Popen[bytes]"]:
    """A worker of the pool sonoforge that reports every second."""
    home = {"PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "worker"), "PREFECT_WORKER_HEARTBEAT_SECONDS": "1"}
    arguments = ["-m", "prefect", "worker", "start", "--pool", "sonoforge", "--name", "here"]
    process = start([sys.executable, *arguments], folder / "worker.log", **home)
    try:
        yield process
    finally:
        stop(process)


def statuses(client: SyncPrefectClient, pool: str) -> list[WorkerStatus]:
    return [worker.status for worker in client.read_workers_for_work_pool(pool)]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.1)


@pytest.fixture
def client(setup: Setup) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def local(setup: Setup) -> Iterator[Setup]:
    """The set-up of who has no server."""
    with temporary_settings({PREFECT_API_URL: None}):
        yield setup


@contextmanager
def answering(answers: Mapping[str, tuple[int, str, str]], **headers: str) -> Generator[str]:
    """The address of a web server that answers each path with a status, a content type and a body; others with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = answers.get(self.path, (404, "text/plain", "nothing here"))
            self.send_response_only(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)


HEALTHY = {"/api/health": (200, "application/json", "true"), "/api/admin/version": (200, "application/json", '"3.8.8"')}


def test_a_whole_setup_passes_and_keeps_nothing(setup: Setup) -> None:
    visit = setup.visited()
    assert visit.bad() == {}
    assert visit.result.exit_code == 0
    # The server of this test runs with Prefect's defaults.
    assert set(visit.bad("warning")) - {"disk: scratch", "disk: store"} == {"limits", "server: database"}
    assert "lease_storage.filesystem" in visit.of("limits")["advice"]
    assert visit.of("lock")["level"] == "ok"
    assert visit.of("base model")["found"].startswith(str(setup.recipe.parent))
    assert visit.of("work pool sonoforge")["found"] == "1 of 1 workers live: here"
    assert visit.of("deployment nightly")["found"] == "schedule 30 2 * * * UTC (paused)"
    assert visit.of("zombie automation")["found"].startswith("ends runs after 150 s without one; deployment")
    assert visit.of("store block:sonoforge")["level"] == "ok"
    assert visit.of("server: database")["found"] == "SQLite, with 3 workers: it answers `database is locked` to some"
    assert setup.visited("--store", f"block:{deploying.STORE_BLOCK}").bad() == {}
    assert not setup.store.exists()


def test_people_get_a_table(setup: Setup) -> None:
    arguments = ["--store", str(setup.store), "--recipe", str(setup.recipe)]
    done = CliRunner().invoke(command.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "found, and what to do" in done.stdout
    assert "→ for the server: PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ok ")


def test_without_a_server_the_rest_is_checked(local: Setup) -> None:
    visit = local.visited()
    assert visit.bad() == {}
    server = visit.of("server")
    assert (server["level"], "temporary Prefect API" in server["found"]) == ("information", True)
    assert "prefect server start" in server["advice"]
    assert visit.of("store: exclusive create")["level"] == "ok"


def test_a_server_that_is_down(setup: Setup) -> None:
    (port,) = free_ports(1)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        visit = setup.visited()
    assert list(visit.bad()) == ["server"]
    assert "nobody answers" in visit.of("server")["found"]
    assert f"prefect server start --host 127.0.0.1 --port {port}" in visit.of("server")["advice"]
    assert visit.result.exit_code == 1


def test_a_server_that_never_answers_holds_up_nobody(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ANSWER_S", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{silent.getsockname()[1]}/api"}):
            visit = setup.visited()
        assert time.monotonic() - began < 14
    assert list(visit.bad()) == ["server"]
    assert "does not answer within 4 s" in visit.of("server")["found"]
    assert visit.of("store: exclusive create")["level"] == "ok"


def test_an_api_that_answers_html(setup: Setup) -> None:
    page = (200, "text/html; charset=utf-8", "<!doctype html><title>Sign in</title>")
    with answering({"/health": page}) as url, temporary_settings({PREFECT_API_URL: url}):
        server = setup.visited().of("server")
    assert "is no Prefect API: /health answers with text/html" in server["found"]
    assert server["advice"].startswith(f"export PREFECT_API_URL={url}/api")


def test_a_server_that_wants_other_credentials(setup: Setup) -> None:
    answers = {**HEALTHY, "/api/admin/version": (401, "application/json", '{"exception_message": "Unauthorized"}')}
    given = {PREFECT_API_AUTH_STRING: "clinic:wrong-password-1"}
    with answering(answers) as url, temporary_settings({PREFECT_API_URL: f"{url}/api", **given}):
        visit = setup.visited()
    assert "with 401" in visit.of("server: credentials")["found"]
    assert "PREFECT_API_AUTH_STRING" in visit.of("server: credentials")["advice"]
    assert "wrong-password-1" not in visit.result.output


def test_an_older_server_with_another_clock(setup: Setup) -> None:
    answers = {**HEALTHY, "/api/admin/version": (200, "application/json", '"3.1.0"')}
    then = format_datetime(datetime.now(UTC) - timedelta(hours=3), usegmt=True)
    with answering(answers, Date=then) as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        visit = setup.visited()
    assert visit.of("server: clock")["found"].startswith("3 h behind this machine's")
    assert "Prefect 3.1.0, older than" in visit.of("server: version")["found"]
    assert "answers /api/work_pools/filter with 501" in visit.of("server")["found"], "it is no API beyond its version"


def test_a_missing_pool_and_one_that_is_paused(setup: Setup, client: SyncPrefectClient) -> None:
    client.delete_work_pool("gpu")
    client.update_work_pool("shards", WorkPoolUpdate(is_paused=True))
    try:
        visit = setup.visited()
    finally:
        client.update_work_pool("shards", WorkPoolUpdate(is_paused=False))
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"))
        client.send_worker_heartbeat("gpu", "gpu-1", heartbeat_interval_seconds=3600)
    assert visit.bad() == {"work pool gpu": "there is no such work pool"}
    assert "prefect work-pool create gpu --type process" in visit.of("work pool gpu")["advice"]
    paused = next(f for f in visit.findings if f["check"] == "work pool shards" and f["level"] == "warning")
    assert (paused["found"][:6], paused["advice"]) == ("paused", "prefect work-pool resume shards")


def test_a_pool_whose_worker_was_killed(setup: Setup, client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name("build-dataset/nightly")
    (schedule,) = deployment.schedules
    os.kill(setup.worker.pid, signal.SIGKILL)
    setup.worker.wait(30)
    wait_until(lambda: WorkerStatus.ONLINE not in statuses(client, "sonoforge"))
    try:
        idle = setup.visited().of("work pool sonoforge")
        client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        busy = setup.visited().of("work pool sonoforge")
    finally:
        client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        client.send_worker_heartbeat("sonoforge", "another", heartbeat_interval_seconds=3600)
    assert (idle["level"], idle["found"]) == ("warning", "no worker lives of 1 that it had: what is sent there waits")
    assert (busy["level"], busy["found"]) == (
        "failure",
        "no worker lives of 1 that it had, though schedules send runs to it",
    )
    assert busy["advice"].endswith("prefect worker start --pool sonoforge")


@pytest.mark.parametrize(
    ("change", "level", "words", "advice"),
    [
        (None, "failure", "no such global concurrency limit", "prefect gcl create sonoforge-builds --limit 1"),
        ({"active": False}, "warning", "switched off", "prefect gcl enable sonoforge-builds"),
        ({"limit": 0}, "failure", "no slots", "prefect gcl update sonoforge-builds --limit 1"),
        ({"active_slots": 1}, "warning", "nothing is running", "prefect gcl update sonoforge-builds --active-slots 0"),
    ],
    ids=["missing", "off", "without slots", "taken by nobody"],
)
def test_a_limit_that_stops_builds(
    change: dict[str, Any] | None, level: str, words: str, advice: str, setup: Setup, client: SyncPrefectClient
) -> None:
    name = "sonoforge-builds"
    if change is None:
        client.delete_global_concurrency_limit_by_name(name)
    else:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(**change))
    try:
        found = setup.visited().of(f"limit {name}")
    finally:
        with contextlib.suppress(Exception):
            client.delete_global_concurrency_limit_by_name(name)
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    assert (found["level"], words in found["found"]) == (level, True), found
    assert advice in found["advice"]


def test_deployments_that_are_missing_or_lead_nowhere(setup: Setup, client: SyncPrefectClient) -> None:
    client.delete_deployment(client.read_deployment_by_name("build-dataset/build").id)
    nightly = client.read_deployment_by_name("build-dataset/nightly")
    steps = [{"prefect.deployments.steps.set_working_directory": {"directory": "/nowhere/sonoforge"}}]
    client.request("PATCH", f"/deployments/{nightly.id}", json={"pull_steps": steps})
    try:
        visit = setup.visited()
    finally:
        deploying.deploy(reset=True)
    assert set(visit.bad()) == {"deployment build", "deployment nightly"}
    assert visit.of("deployment build")["advice"].startswith("sonoforge deploy")
    assert "runs in the folder '/nowhere/sonoforge', which is none" in visit.of("deployment nightly")["found"]


def test_a_block_that_deployments_name_and_nobody_saved(setup: Setup, client: SyncPrefectClient) -> None:
    block = client.read_block_document_by_name(deploying.STORE_BLOCK, "sonoforge-store")
    client.delete_block_document(block.id)
    try:
        visit = setup.visited("--store", "block:sonoforge")
    finally:
        SonoforgeStore(url=str(setup.store)).save(deploying.STORE_BLOCK)
    assert set(visit.bad()) == {"store", "store block:sonoforge"}
    assert "no sonoforge-store block called 'sonoforge'" in visit.of("store")["found"]


def renewed(client: SyncPrefectClient, automation: Automation, within: timedelta) -> None:
    """Give an automation another patience."""
    changed = content(automation)
    changed["trigger"]["within"] = within.total_seconds()
    client.request("PUT", f"/automations/{automation.id}", json=changed)


def content(automation: Automation) -> dict[str, Any]:
    """What an automation is made of."""
    return automation.model_dump(mode="json", include=set(AutomationCore.model_fields) - {"owner_resource"})


@pytest.mark.parametrize("change", ["missing", "disabled", "hasty"])
def test_an_automation_that_ends_no_zombies_or_living_runs(
    change: str, setup: Setup, client: SyncPrefectClient
) -> None:
    (automation,) = client.read_automations_by_name("sonoforge: zombie runs")
    if change == "missing":
        client.delete_automation(automation.id)
    elif change == "disabled":
        client.pause_automation(automation.id)
    else:
        renewed(client, automation, timedelta(seconds=20))
    try:
        found = setup.visited().of("zombie automation")
    finally:
        if change == "missing":
            client.create_automation(AutomationCore.model_validate(content(automation)))
        elif change == "disabled":
            client.resume_automation(automation.id)
        else:
            renewed(client, automation, timedelta(seconds=150))
    assert found["level"] == "failure"
    words, advice = {
        "missing": ("stays Running for ever", "sonoforge deploy"),
        "disabled": ("switched off", "prefect automation resume 'sonoforge: zombie runs'"),
        "hasty": ("ends runs after 20 s without one; deployment", "sonoforge deploy --zombie-after 90"),
    }[change]
    assert words in found["found"]
    assert advice in found["advice"]


def test_heartbeats_that_were_switched_off(setup: Setup, client: SyncPrefectClient) -> None:
    nightly = client.read_deployment_by_name("build-dataset/nightly")
    job = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": ""}}
    client.request("PATCH", f"/deployments/{nightly.id}", json={"job_variables": job})
    try:
        found = setup.visited().of("zombie automation")
    finally:
        client.request("PATCH", f"/deployments/{nightly.id}", json={"job_variables": nightly.job_variables})
    assert found["found"].startswith("runs of deployment nightly send no heartbeats")


@contextmanager
def run_in(client: SyncPrefectClient, state: StateType, setup: Setup, hours: int) -> Generator[UUID]:
    """A flow run that has been in a state for so long."""
    deployment = client.read_deployment_by_name("build-dataset/build")
    run = client.create_flow_run_from_deployment(deployment.id, name=f"the {state.value.lower()} one")
    if state == StateType.CANCELLING:
        client.set_flow_run_state(run.id, State(type=StateType.RUNNING), force=True)
    client.set_flow_run_state(run.id, State(type=state), force=True)
    with contextlib.closing(sqlite3.connect(setup.database, timeout=30)) as database, database:
        back, which = f"-{hours} hours", run.id.hex
        for table, columns, key in (
            ("flow_run", ("start_time", "state_timestamp", "expected_start_time", "next_scheduled_start_time"), "id"),
            ("flow_run_state", ("timestamp",), "flow_run_id"),
        ):
            for column in columns:
                database.execute(
                    f"UPDATE {table} SET {column} = strftime('%Y-%m-%d %H:%M:%f000', {column}, ?) "
                    f"WHERE replace({key}, '-', '') = ? AND {column} IS NOT NULL",
                    (back, which),
                )
    try:
        yield run.id
    finally:
        client.delete_flow_run(run.id)


def test_a_stuck_run_and_one_that_lives(setup: Setup, client: SyncPrefectClient) -> None:
    with run_in(client, StateType.RUNNING, setup, hours=5) as run:
        stuck = setup.visited()
        resource = f"prefect.flow-run.{run}"
        event = {"event": HEARTBEAT, "resource": {"prefect.resource.id": resource}, "payload": {}, "related": []}
        moment = {"occurred": datetime.now(UTC).isoformat(), "id": "5f2d9a6e-0000-4000-8000-000000000001"}
        client.request("POST", "/events", json=[{**event, **moment}])
        of_run = EventFilter(event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=[resource]))
        wait_until(lambda: bool(client.read_events(filter=of_run, limit=1).events))
        alive = setup.visited()
    assert list(stuck.bad()) == ["stuck runs"]
    assert "the running one (5 h)" in stuck.of("stuck runs")["found"]
    assert f"prefect api POST /flow_runs/{run}/set_state" in stuck.of("stuck runs")["advice"]
    assert alive.of("runs")["found"] == "1 running, none stands still"


@pytest.mark.parametrize("state", [StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLING])
def test_a_run_that_nobody_goes_on_with(state: StateType, setup: Setup, client: SyncPrefectClient) -> None:
    with run_in(client, state, setup, hours=2) as run:
        visit = setup.visited()
    found = visit.of("waiting runs")
    assert found["level"] == "warning"
    assert (
        found["found"]
        == f"1 run, the {state.value.lower()} one (2 h), is {state.value.capitalize()}: nobody goes on with it"
    )
    assert "--pool sonoforge" in found["advice"] or str(run) in found["advice"]


def test_a_store_with_wrong_credentials(local: Setup, ceph_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ceph_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-it")
    visit = local.visited("--store", f"s3://{ceph_server.bucket}/doctor")
    assert list(visit.bad()) == ["store"]
    assert "does not take these credentials (SignatureDoesNotMatch)" in visit.of("store")["found"]
    assert "AWS_SECRET_ACCESS_KEY" in visit.of("store")["advice"]
    assert "not-the-secret-of-it" not in visit.result.output


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_a_store_without_exclusive_creates(
    conditions: str, local: Setup, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(moto_server.endpoint, conditions=conditions, signer=moto_server) as proxy:
        for name, value in (moto_server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
            monkeypatch.setenv(name, value)
        visit = local.visited("--store", f"s3://{moto_server.bucket}/doctor-{conditions}")
    assert list(visit.bad()) == ["store: exclusive create"]
    assert "versions could be lost" in visit.of("store: exclusive create")["found"]
    assert visit.of("store: write, read, delete")["level"] == "ok"


def test_a_store_without_a_bucket_or_an_answer(
    local: Setup, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    assert "no such bucket" in local.visited("--store", "s3://sonoforge-no-such-bucket/x").of("store")["found"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        visit = local.visited("--store", f"s3://{moto_server.bucket}/x")
        assert time.monotonic() - began < 15
    assert list(visit.bad()) == ["store"]
    assert "aws s3 ls" in visit.of("store")["advice"]


@contextmanager
def disk(folder: Path, *, size: str, only_read: bool = False) -> Generator[Path]:
    """A small disk of its own, in memory."""
    folder.mkdir()
    options = f"size={size},nr_inodes=64{',ro' if only_read else ''}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_store_on_a_full_disk(local: Setup, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", size="256k") as folder:
        with contextlib.suppress(OSError), (folder / "all").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        visit = local.visited("--store", folder / "store")
    assert set(visit.bad()) == {"disk: store", "store: write"}
    assert "no space left on the device" in visit.of("store: write")["found"]
    assert visit.of("store: write")["advice"].startswith(f"df -h {folder}")
    full = next(f for f in visit.findings if f["check"] == "disk: store")
    assert full["found"].startswith("0.0 of 0.0 GiB free")
    assert "(inodes) free" in visit.of("disk: store")["found"]


def test_a_store_without_permission_to_write(local: Setup, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", size="16m", only_read=True) as folder:
        visit = local.visited("--store", folder / "store")
    assert "store: write" in visit.bad()
    assert "Read-only file system" in visit.of("store: write")["found"]
    assert "Check the permissions" in visit.of("store: write")["found"]


def test_a_prefect_home_of_somebody_else(local: Setup, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0)
    # Root may do everything unless it cannot; anybody else is kept out by the mode.
    kept_out = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    asked = ["-m", "flows", "doctor", "--json", "--store", str(local.store), "--recipe", str(local.recipe)]
    environment = os.environ | {"PREFECT_HOME": str(home)}
    done = subprocess.run([*kept_out, sys.executable, *asked], env=environment, stdout=subprocess.PIPE, check=False)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    for check in ("recipe", "server"):
        assert found[check]["found"].endswith(f"may not use {home}/profiles.toml")
        assert found[check]["advice"].endswith("PREFECT_HOME names Prefect's folder")
    assert done.returncode == 1


def copied(setup: Setup, folder: Path) -> tuple[Path, Path]:
    """The recipe and its base, to be damaged: a lock that holds, for a base that can be changed."""
    base = shutil.copytree(setup.recipe.parent / "base", folder / "base")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"base": str(base)}))
    shutil.copy(pins.lock_file(setup.recipe), pins.lock_file(recipe))
    return recipe, base


def test_a_base_other_than_that_of_the_lock(local: Setup, tmp_path: Path) -> None:
    recipe, base = copied(local, tmp_path)
    shutil.rmtree(base)
    make_base(base, seed=1)
    visit = local.visited("--recipe", recipe)
    assert list(visit.bad()) == ["lock"]
    assert "but the recipe's lock pins" in visit.of("lock")["found"]
    assert visit.of("lock")["advice"] == f"sonoforge lock {recipe}"


def test_a_base_that_is_cut_short(local: Setup, tmp_path: Path) -> None:
    recipe, base = copied(local, tmp_path)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    visit = local.visited("--recipe", recipe)
    assert list(visit.bad()) == ["base model"]
    assert "cut short or damaged" in visit.of("base model")["found"]
    assert "copy the model anew" in visit.of("base model")["advice"]


def test_a_recipe_whose_scans_are_not_there(local: Setup, tmp_path: Path) -> None:
    recipe, _ = copied(local, tmp_path)
    asked = [
        "--set",
        "source.dataset=busi",
        "--set",
        f"source.root={tmp_path / 'nowhere'}",
        "--set",
        "source.count=null",
    ]
    recipe.write_text(recipe.read_text().replace("count: 2", f"root: {tmp_path}"))
    visit = local.visited("--recipe", recipe, *asked[:4])
    assert list(visit.bad()) == ["scans"]
    assert "--set source.root=DIR" in visit.of("scans")["advice"]
    assert list(local.visited("--recipe", tmp_path / "nothing.yaml").bad()) == ["recipe"]


def test_a_package_that_breaks_prefects_server(local: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "fastapi-0.160.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: fastapi\nVersion: 0.160.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    visit = local.visited()
    assert list(visit.bad()) == ["package fastapi"]
    found = visit.of("package fastapi")
    assert found["found"].startswith("0.160.0 is installed, sonoforge needs fastapi<0.151,>=0.139; with another one")
    assert found["advice"] == "pip install 'fastapi<0.151,>=0.139'"


def test_no_secret_is_repeated(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with temporary_settings({PREFECT_API_URL: "http://clinic:planted-secret-2@127.0.0.1:9/api"}):
        for arguments in (["--json"], []):
            given = [*arguments, "--store", "s3://bucket/x", "--recipe", str(setup.recipe)]
            done = CliRunner().invoke(command.app, given, catch_exceptions=False)
            assert done.exit_code == 1
            assert "nobody answers at http://[hidden]@127.0.0.1:9/api" in " ".join(done.output.split())
            assert "planted" not in done.output.lower()
