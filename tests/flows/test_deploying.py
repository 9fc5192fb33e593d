"""The bootstrap against a real Prefect server: again, after people changed things, and what its automations then do."""

import contextlib
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows import automations, deploying
from flows.commands.deploying import app
from flows.reconciling import Line
from storage.store import Store
from storage.versions import publish
from tasks.connect import open_store
from tests import REPOSITORY
from tests.flows.waiting import until
from tests.servers import api, pool
from tests.servers.supervisor import start, stop
from tests.storage import published

NIGHTLY, BUILD = "build-dataset/nightly", "build-dataset/build"
HOOK = "https://hooks.example.com/T0/secret-part"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployed")


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[list[Line]]:
    """What the first run on a fresh server said."""
    with api.running(folder):
        yield deploying.deploy(str(folder / "store"))


@pytest.fixture
def client(first: list[Line], monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Of a server that was set up; what a test changes it resets."""
    monkeypatch.delenv(deploying.NOTIFY_URL, raising=False)
    with get_client(sync_client=True) as client:
        yield client


def states(lines: list[Line]) -> dict[str, str]:
    return {f"{line.kind} {line.name}": line.state for line in lines}


def line(lines: list[Line], kind: str, name: str) -> Line:
    return next(line for line in lines if (line.kind, line.name) == (kind, name))


def deployed(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    return client.read_deployment_by_name(name)


def runs_of(client: SyncPrefectClient, name: str) -> list[FlowRun]:
    chosen = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    return client.read_flow_runs(deployment_filter=chosen)


@contextlib.contextmanager
def played(part: str, store: Path, log: Path) -> Generator["subprocess.Popen[bytes]"]:
    """A process of `tests.fakes.flow_runs`."""
    process = start([sys.executable, "-m", "tests.fakes.flow_runs", part, str(store)], log, **_here())
    try:
        yield process
    finally:
        stop(process)


def _here() -> dict[str, str]:
    """What a process needs to find the server of the test."""
    return {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(REPOSITORY)}


def test_the_first_time_makes_everything(client: SyncPrefectClient, first: list[Line]) -> None:
    off = {"block sonoforge-notify", f"automation {automations.FAILURES}"}
    assert {name for name, state in states(first).items() if state == "off"} == off
    assert {state for name, state in states(first).items() if name not in off} == {"created"}
    assert {pool.name for pool in client.read_work_pools()} == set(deploying.POOLS)
    limits = {limit.name: limit.limit for limit in client.read_global_concurrency_limits()}
    assert {name: slots for name, slots in limits.items() if name in deploying.LIMITS} == dict(deploying.LIMITS)
    assert len(client.read_deployments()) == len(deploying.entries())


def test_every_field_of_every_form_is_explained_and_bounded(client: SyncPrefectClient) -> None:
    for there in client.read_deployments():
        assert there.parameter_openapi_schema is not None
        fields = there.parameter_openapi_schema["properties"]
        assert [name for name, field in fields.items() if not field.get("description")] == [], there.name
        assert there.enforce_parameter_schema
    collect = client.read_deployment_by_name("collect-garbage/collect").parameter_openapi_schema or {}
    assert (collect["properties"]["delete"]["default"], collect["properties"]["older_than_h"]["minimum"]) == (False, 0)
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        run_deployment("collect-garbage/collect", parameters={"older_than_h": -1}, timeout=0)


def test_the_second_time_changes_nothing(client: SyncPrefectClient) -> None:
    before = [one.model_dump() for one in (*client.read_deployments(), *client.read_automations())]
    again = deploying.deploy()
    assert set(states(again).values()) == {"kept", "off"}
    assert deploying.changed(again) == 0
    assert [one.model_dump() for one in (*client.read_deployments(), *client.read_automations())] == before


def test_schedules_come_paused_and_one_that_was_switched_on_stays_on_even_after_a_reset(
    client: SyncPrefectClient,
) -> None:
    there = deployed(client, NIGHTLY)
    (schedule,) = there.schedules
    assert not schedule.active
    client.update_deployment_schedule(there.id, schedule.id, active=True)
    for reset in (False, True):
        assert deploying.changed(deploying.deploy(reset=reset)) == 0
        (schedule,) = deployed(client, NIGHTLY).schedules
        assert schedule.active
    client.update_deployment_schedule(there.id, schedule.id, active=False)


def test_what_people_tuned_stays_and_is_said(client: SyncPrefectClient) -> None:
    there = deployed(client, BUILD)
    client.update_global_concurrency_limit("sonoforge-builds", GlobalConcurrencyLimitUpdate(limit=4))
    mine = there.parameters | {"limit": None}
    client.update_deployment(there.id, DeploymentUpdate(parameters=mine))
    again = deploying.deploy()
    assert deploying.changed(again) == 0
    assert line(again, "limit", "sonoforge-builds").note == "changed by hand, stays so: slots"
    assert line(again, "deployment", BUILD).note == "changed by hand, stays so: parameters"
    assert deployed(client, BUILD).parameters == mine
    assert deploying.changed(deploying.deploy(reset=True)) == 2
    assert deployed(client, BUILD).parameters == there.parameters
    assert client.read_global_concurrency_limit_by_name("sonoforge-builds").limit == 1


def test_what_people_deleted_stays_away_and_is_said(client: SyncPrefectClient) -> None:
    client.delete_deployment(deployed(client, NIGHTLY).id)
    client.delete_automation(client.read_automations_by_name(automations.ZOMBIES)[0].id)
    again = deploying.deploy()
    assert deploying.changed(again) == 0
    gone = {name for name, state in states(again).items() if state == "left out"}
    assert gone == {f"deployment {NIGHTLY}", f"automation {automations.ZOMBIES}"}
    assert "deleted by hand" in line(again, "deployment", NIGHTLY).note
    back = deploying.deploy(reset=True)
    assert states(back)[f"deployment {NIGHTLY}"] == "created"
    assert len(deployed(client, NIGHTLY).schedules) == 1


def test_a_newer_sonoforge_changes_its_own_fields_and_leaves_those_of_people(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = deployed(client, NIGHTLY)
    (schedule,) = there.schedules
    client.update_deployment_schedule(there.id, schedule.id, active=True)
    client.update_deployment(there.id, DeploymentUpdate(description="ours"))
    newer = yaml.safe_load(deploying.PREFECT_FILE.read_text())
    entry = next(entry for entry in newer["deployments"] if entry["name"] == "nightly")
    entry["description"], entry["schedules"][0]["cron"] = "new words", "0 3 * * *"
    entry["parameters"] = entry["parameters"] | {"limit": "sonoforge-gpu"}
    (tmp_path / "newer.yaml").write_text(yaml.safe_dump(newer))
    with monkeypatch.context() as patch:
        patch.setattr(deploying, "PREFECT_FILE", tmp_path / "newer.yaml")
        lines = deploying.deploy()
    note = "changed: parameters; changed by hand, stays so: description"
    assert line(lines, "deployment", NIGHTLY).note == note
    assert line(lines, "schedule", f"{NIGHTLY} nightly").state == "updated"
    after = deployed(client, NIGHTLY)
    assert (after.description, after.parameters["limit"]) == ("ours", "sonoforge-gpu")
    (schedule,) = after.schedules
    assert (schedule.schedule.model_dump()["cron"], schedule.active) == ("0 3 * * *", True)
    client.update_deployment_schedule(there.id, schedule.id, active=False)
    deploying.deploy(reset=True)


def test_the_store_is_kept_until_another_is_given(client: SyncPrefectClient, folder: Path, tmp_path: Path) -> None:
    assert open_store("block:sonoforge").url == str(folder / "store")
    moved = line(deploying.deploy(str(tmp_path)), "block", "sonoforge")
    assert (moved.state, moved.note) == ("updated", str(tmp_path))
    assert line(deploying.deploy(), "block", "sonoforge").state == "kept"
    with pytest.raises(ValueError, match="holds credentials"):
        deploying.deploy("s3://key:secret@bucket/x")
    with pytest.raises(ValueError, match="--store block:clinic: deployments publish to block:sonoforge"):
        deploying.deploy("block:clinic")
    deploying.deploy(str(folder / "store"))


def test_credentials_travel_in_the_block_when_asked_and_nowhere_else(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        deploying.deploy(credentials=True)
    for name, value in {"ACCESS_KEY_ID": "AKIA-x", "SECRET_ACCESS_KEY": "very-secret", "REGION": "eu-west-3"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    lines = deploying.deploy(credentials=True)
    assert line(lines, "block", "sonoforge").state == "updated"
    shown = [
        client.read_variable_by_name("sonoforge_deployed"),
        *client.read_block_documents(include_secrets=False),
        *lines,
    ]
    assert not [one for one in shown if "very-secret" in str(one)]
    block = client.read_block_document_by_name("sonoforge", "sonoforge-store", include_secrets=True)
    assert (block.data["secret"], block.data["region"]) == ("very-secret", "eu-west-3")


def test_a_refusal_says_why_and_repeats_no_secret(client: SyncPrefectClient) -> None:
    with (
        pytest.raises(
            ValueError, match=r"refused POST /api/block_documents/ with 422: .*body\.block_type_id: Field req"
        ) as refused,
        deploying.connected() as connected,
    ):
        connected.request("POST", "/block_documents/", json={"name": "x", "data": {"url": HOOK}})
    assert "secret-part" not in "".join(traceback.format_exception(refused.value))


def test_the_webhook_is_a_secret(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(deploying.NOTIFY_URL, HOOK.removeprefix("https://"))
    with pytest.raises(ValueError, match="SONOFORGE_NOTIFY_URL is no URL") as refused:
        deploying.deploy()
    assert "secret-part" not in str(refused.value)
    monkeypatch.setenv(deploying.NOTIFY_URL, HOOK)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0, result.exception
    assert "sonoforge-notify" in result.output
    blocks = client.read_block_documents(include_secrets=False)
    shown = [result.output, client.read_variable_by_name("sonoforge_deployed"), *blocks]
    assert not [one for one in shown if "secret-part" in str(one)]
    assert client.read_automations_by_name(automations.FAILURES)[0].enabled
    assert CliRunner().invoke(app, []).output.endswith("nothing changed: the server was set up so\n")
    monkeypatch.delenv(deploying.NOTIFY_URL)
    assert set(states(deploying.deploy()).values()) == {"kept"}


def test_a_published_version_asks_for_the_flow_after_it(client: SyncPrefectClient, folder: Path) -> None:
    with played("announce", folder, folder / "announce.log"):
        until(lambda: bool(runs_of(client, "published")), 60)
    (run,) = runs_of(client, "published")
    assert run.parameters == {"version": "demo@1", "store": str(folder)}
    assert deploying.TAG in run.tags
    until(lambda: bool(api.events("sonoforge.version.published")), 60)  # kept later than acted on
    (event,) = api.events("sonoforge.version.published")
    assert event["resource"]["prefect.resource.id"] == "sonoforge.dataset.demo"
    assert {"name", "version", "digest", "uri", "kept"} <= set(event["payload"])
    assert event["payload"]["scores"] == {"kid": 0.25}


@pytest.mark.slow
def test_a_run_whose_process_was_killed_is_marked_crashed_and_one_that_ended_is_not(
    client: SyncPrefectClient, folder: Path
) -> None:
    def run(name: str) -> FlowRun:
        return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[name])))[0]

    deploying.deploy(zombie_after_s=10)
    with played("hang", folder, folder / "hang.log") as process:
        until(lambda: len(api.events("prefect.flow-run.heartbeat")) >= 10, 120)
        assert run("hang").state_type == StateType.RUNNING
        process.kill()
    until(lambda: run("hang").state_type == StateType.CRASHED, 120)
    dead = run("hang").state
    assert dead is not None
    assert "no sign of life for 10 s: its process died. Run it again" in (dead.message or "")
    assert run("end-well").state_type == StateType.COMPLETED
    deploying.deploy(zombie_after_s=automations.SILENCE_S)


@contextlib.contextmanager
def webhook(told: list[Any]) -> Generator[str]:
    """The URL of a chat that notes what it is told."""

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/T0/secret-part"
        server.shutdown()


@pytest.mark.slow
def test_a_worker_runs_what_a_publication_starts_and_a_failure_is_told(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    publish(store, "demo", tmp_path / "files", published.fill(tmp_path / "files"))
    for run in runs_of(client, "published"):
        client.delete_flow_run(run.id)
    told: list[Any] = []
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "sonoforge", "--name", "one"]
    log = tmp_path / "worker.log"
    worker = start(command, log, **_here(), PREFECT_HOME=str(tmp_path / "home"), PREFECT_WORKER_QUERY_SECONDS="2")

    def ended(name: str) -> StateType | None:
        states = [run.state for run in runs_of(client, name) if run.state is not None]
        return states[0].type if states and states[0].is_final() else None

    try:
        with webhook(told) as url:
            monkeypatch.setenv(deploying.NOTIFY_URL, url)
            deploying.deploy()
            with played("announce", tmp_path / "store", tmp_path / "announce.log"):
                until(lambda: ended("published") is not None, 120)
            run_deployment("verify-versions/verify", parameters={"store": store.url, "dataset": "nothing"}, timeout=0)
            until(lambda: bool(told), 120)
    finally:
        pool.die(worker)
    assert ended("published") == StateType.COMPLETED, log.read_text()
    (run,) = runs_of(client, "published")
    assert run.name == "demo@1"
    (page,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["demo-published"])))
    assert "demo@1: every byte is as it was published" in str(page.data)
    (message,) = told
    assert set(message) == {"text"}
    assert "of verify-versions is Failed" in message["text"]
    assert "no dataset 'nothing'" in message["text"]
    assert "secret-part" not in log.read_text()


def test_without_a_server_it_says_what_to_do() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(ValueError, match="PREFECT_API_URL"):
        deploying.deploy()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ValueError, match=r"no Prefect server answers at http://127\.0\.0\.1:9/api"),
    ):
        deploying.deploy()
