"""What deployment/README.md sets up, for real: PostgreSQL, Ceph's gateway, a Prefect server, two workers.

One story: a build is under way when its worker is killed as a machine dies. A scheduled run is due meanwhile. It waits
for the dead run's place, goes on where that stopped, publishes, and what follows a publication follows.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Route, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule

from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest
from tasks.announce import PUBLIC_URL
from tests import REPOSITORY
from tests.fakes.base import make_base
from tests.flows.waiting import until
from tests.servers import api, pool, postgres
from tests.servers.supervisor import Server, skip_without, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # 3 minutes on busy cores

SHARDS = 10
SILENCE_S = 60  # two signs of life; deployments ask for 150
BEFORE = 3  # shards that are made when the worker dies
IN_FLIGHT = 2  # shards at once: the runner's default
LEASE_S = 60
PUBLIC = "http://store.example"


@dataclass
class Story:
    """What happened; times in seconds on one clock."""

    url: str
    store: Store
    killed: UUID
    due: datetime
    made_before: dict[str, datetime] = field(default_factory=dict)  # shards, and when they were written
    died: float = 0.0
    crashed: float = 0.0
    freed: float = 0.0


def recipe(base: Path) -> dict[str, Any]:
    """Random weights, so its pictures are noise; everything else is real."""
    return {
        "name": "tiny",
        "seed": 3,
        "source": {"dataset": "phantom", "count": 40, "px": 64},
        "screen": {"px": 64},
        "base": str(base),
        "lora": {"steps": 2, "warmup": 1, "batch": 2, "validate_every": 2, "checkpoint_every": 2, "rank": 2},
        "judges": {"classifier": {"steps": 4}, "segmenter": {"steps": 4}, "detector": {"steps": 4}, "critic": None},
        "plan": {"samples": 4 * SHARDS, "shard": 4},
        "stages": [{"stage": "layout"}, {"stage": "lesion", "steps": 30}, {"stage": "levels"}],
        "curate": [{"score": "lesion_contrast", "min": 0.05}],
    }


def worker(url: str, folder: Path, name: str, s3: Server) -> "subprocess.Popen[bytes]":
    """As deployment/README.md starts one; asks more often, for the test's sake."""
    command = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        "sonoforge",
        "--limit",
        "1",
        "--name",
        name,
    ]
    home = {"PREFECT_API_URL": url, "PREFECT_HOME": str(folder / name), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    # For what the build returned, which no page shows.
    results = {"PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true", "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json"}
    return start(command, folder / f"{name}.log", **home, **results, **s3.environment(), **{PUBLIC_URL: PUBLIC})


def deploy(url: str, store: str, s3: Server) -> str:
    command = [sys.executable, "-m", "flows", "deploy", "--store", store, "--zombie-after", str(SILENCE_S)]
    environment = os.environ | s3.environment() | {"PREFECT_API_URL": url}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_of(client: SyncPrefectClient, run: UUID) -> FlowRun:
    return client.read_flow_run(run)


def slots_taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name("sonoforge-builds").active_slots


def shards_of(store: Store) -> dict[str, datetime]:
    """Shards that are complete, and when they were written."""
    return {one.key: one.modified for one in store.walk("builds/synthesize") if one.key.endswith("/ref.json")}


@pytest.fixture(scope="module")
def story(ceph_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    skip_without(postgres.missing(), f"apt-get install --no-install-recommends {postgres.PACKAGES}")
    folder = tmp_path_factory.mktemp("topology")
    base = make_base(folder / "base", channels=9)
    where = f"s3://{ceph_server.bucket}/topology-{os.getpid()}"
    with (
        postgres.running() as database,
        api.running(
            folder,
            PREFECT_SERVER_DATABASE_CONNECTION_URL=database,
            PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="prefect.server.concurrency.lease_storage.filesystem",
        ) as url,
        get_client(sync_client=True) as client,
    ):
        deploy(url, where, ceph_server)
        workers = [worker(url, folder, name, ceph_server) for name in ("one", "two")]
        try:
            yield told(url, client, workers, Store(where, **options(ceph_server)), recipe(base))
        finally:
            for one in workers:
                pool.die(one)


def options(s3: Server) -> dict[str, Any]:
    return {"key": s3.key, "secret": s3.secret, "endpoint_url": s3.endpoint}


def told(
    url: str, client: SyncPrefectClient, workers: "list[subprocess.Popen[bytes]]", store: Store, asked: dict[str, Any]
) -> Story:
    build = client.read_deployment_by_name("build-dataset/build")
    parameters = {**build.parameters, "recipe": asked}
    first = client.create_flow_run_from_deployment(build.id, parameters=parameters)
    until(lambda: len(shards_of(store)) >= BEFORE)
    pid = run_of(client, first.id).infrastructure_pid
    amid = int(str(pid).rpartition(":")[2])
    pool.die(next(one for one in workers if amid in pool.family(one)))
    died = time.time()

    nightly = client.read_deployment_by_name("build-dataset/nightly")
    client.update_deployment(nightly.id, DeploymentUpdate(parameters=parameters))
    due = datetime.now(UTC) + timedelta(seconds=8)
    daily = IntervalSchedule(interval=timedelta(days=1), anchor_date=due)
    client.create_deployment_schedules(nightly.id, [(daily, True)])
    happened = Story(url, store, first.id, due, made_before=shards_of(store), died=died)

    def over() -> bool:
        if not happened.crashed and run_of(client, first.id).state_type == StateType.CRASHED:
            happened.crashed = time.time()
        if not happened.freed and (happened.freed or slots_taken(client) == 0):
            happened.freed = time.time()
        return any(run.state_type == StateType.COMPLETED for run in runs_of(client, "after-publication"))

    until(over)
    return happened


@pytest.fixture
def client(story: Story) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def runs_of(client: SyncPrefectClient, flow: str) -> list[FlowRun]:
    flows = {one.id for one in client.read_flows() if one.name == flow}
    return [run for run in client.read_flow_runs() if run.flow_id in flows]


def scheduled(client: SyncPrefectClient) -> FlowRun:
    """The one run that the schedule has started."""
    (run,) = [run for run in runs_of(client, "build-dataset") if run.auto_scheduled and run.start_time is not None]
    return run


def test_a_killed_run_is_marked_dead_and_its_place_given_back(story: Story, client: SyncPrefectClient) -> None:
    run = run_of(client, story.killed)
    assert run.state is not None
    assert run.state_type == StateType.CRASHED
    assert "no sign of life for 60 s" in str(run.state.message)
    print(f"killed; marked dead {story.crashed - story.died:.0f} s later, place free {story.freed - story.died:.0f} s")
    # A beat was due within 30 s; leases are renewed after 45 s, and looked at every 15 s.
    assert 0 < story.crashed - story.died < SILENCE_S + 30
    assert 0 < story.freed - story.died < LEASE_S + 30
    assert slots_taken(client) == 0


def reused(run: FlowRun) -> dict[str, int]:
    """How many results of each step a build found made."""
    assert run.state is not None
    where = run.state.data.storage_key
    assert where is not None
    return json.loads(Path(where).read_text())["data"]["reused"]


def test_the_scheduled_run_fires_in_time_and_goes_on_where_the_dead_one_stopped(
    story: Story, client: SyncPrefectClient
) -> None:
    run = scheduled(client)
    assert run.state_type == StateType.COMPLETED
    assert run.start_time is not None
    assert 0 <= run.start_time.timestamp() - story.due.timestamp() < 60
    after = shards_of(story.store)
    assert len(after) == SHARDS
    assert {key: after[key] for key in story.made_before} == story.made_before
    assert reused(run)["synthesize"] == len(story.made_before)
    begun = [one for one in client.read_task_runs() if one.name.startswith("synthesize ")]
    twice = sum(one.flow_run_id == story.killed for one in begun) - len(story.made_before)
    print(f"{len(story.made_before)} of {SHARDS} shards were there, {twice} in flight when it was killed")
    assert twice <= IN_FLIGHT


def test_what_it_published_is_whole_announced_and_handed_on(story: Story, client: SyncPrefectClient) -> None:
    assert [one.version for one in list_versions(story.store, "tiny")] == [1]
    manifest = open_manifest(story.store, "tiny@1")
    assert verify(story.store, manifest, deep=True) == []
    asked = {"filter": {"event": {"name": ["sonoforge.version.published"]}}}
    (event,) = httpx.post(f"{story.url}/events/filter", json=asked).json()["events"]
    assert event["resource"]["prefect.resource.id"] == "sonoforge.dataset.tiny"
    assert (event["payload"]["version"], event["payload"]["digest"]) == (1, manifest.digest)
    (downstream,) = runs_of(client, "after-publication")
    assert (downstream.name, downstream.state_type) == ("tiny@1", StateType.COMPLETED)
    assert downstream.created is not None
    assert run_of(client, scheduled(client).id).name == "tiny@1"


def test_it_is_in_the_catalogue(story: Story) -> None:
    page = story.store.read("catalogue/index.html").decode()
    assert "tiny" in page


def page_of(story: Story, key: str) -> str:
    """Where Prefect shows an artifact."""
    (found,) = httpx.post(f"{story.url}/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()
    return f"{story.url.removesuffix('/api')}/artifacts/artifact/{found['id']}"


def test_prefects_page_of_the_run_shows_it(story: Story, client: SyncPrefectClient, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    skip_without([] if chromium else ["chromium"], "apt-get install --no-install-recommends chromium")
    run = scheduled(client)
    wrong: list[str] = []

    def said(message: ConsoleMessage) -> None:
        # Prefect's own page asks for icons that it has not.
        if message.type == "error" and not message.location["url"].endswith(("/favicon.ico", "/ico/undefined.svg")):
            wrong.append(f"{message.text} {message.location['url']}")

    def served(route: Route) -> None:
        route.fulfill(body=story.store.read(route.request.url.removeprefix(f"{PUBLIC}/")), content_type="image/png")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.route(f"{PUBLIC}/**", served)
        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{story.url.removesuffix('/api')}/runs/flow-run/{run.id}")
        for shown in ("tiny@1", "dataset:tiny", "gate:pass", "version:1", "Completed", "nightly"):
            page.get_by_text(shown, exact=True).first.wait_for(timeout=60_000)
        page.get_by_text("Artifacts", exact=True).first.click()
        for key in ("tiny-scores", "tiny-gate", "tiny-samples", "tiny-report", "progress-synthesize"):
            page.get_by_text(key, exact=True).first.wait_for(timeout=60_000)
        page.screenshot(path=tmp_path / "run.png", full_page=True)
        page.goto(page_of(story, "tiny-scores"))
        for shown in ("detector_auc", "real vs real", "extractor"):
            page.get_by_text(shown).first.wait_for(timeout=60_000)
        page.screenshot(path=tmp_path / "scores.png", full_page=True)
        with page.expect_response(f"{PUBLIC}/**", timeout=60_000):
            page.goto(page_of(story, "tiny-samples"))
        page.screenshot(path=tmp_path / "samples.png", full_page=True)
        browser.close()
    assert wrong == []


def test_the_sensor_builds_what_changed_and_then_nothing(story: Story, client: SyncPrefectClient) -> None:
    """By its own deployment, on the worker that is left. Last here: it adds a version."""
    asked = client.read_deployment_by_name("build-dataset/nightly").parameters["recipe"]
    sensor = client.read_deployment_by_name("build-when-changed/sensor")
    changed = asked | {"curate": [{"score": "lesion_contrast", "min": 0.06}]}
    parameters = {**sensor.parameters, "recipe": changed}
    builds: list[int] = []
    for _ in range(2):
        run = client.create_flow_run_from_deployment(sensor.id, parameters=parameters).id
        until(lambda run=run: run_of(client, run).end_time is not None)
        assert run_of(client, run).state_type == StateType.COMPLETED
        builds.append(sum(one.parent_task_run_id is not None for one in runs_of(client, "build-dataset")))
    assert builds == [1, 1]
    assert [one.version for one in list_versions(story.store, "tiny")] == [1, 2]
    assert verify(story.store, open_manifest(story.store, "tiny@2"), deep=True) == []
    until(lambda: [one.name for one in runs_of(client, "after-publication")].count("tiny@2") == 1)
