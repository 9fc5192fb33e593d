"""What happens to a build when it is cancelled, runs out of time, or what it stands on breaks: it goes on from there.

Each fault is the real one: a worker's cancellation, a full file system, a Prefect server and an S3 server that are
killed and come back.
"""

import contextlib
import contextvars
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.build_dataset import build_dataset
from flows.recipe import parse
from storage.errors import StoreFullError, StoreUnavailableError
from storage.store import Store
from storage.versions import list_versions, open_manifest
from tasks.stop import OutOfTimeError
from tests.flows.builds import kill, output, refs, start
from tests.flows.waiting import until
from tests.servers import ceph, pool
from tests.servers.supervisor import Server, free_ports, skip_without
from tests.servers.supervisor import start as start_server

SHARDS = 4
STOPS_WITHIN_S = 30.0
"""A batch takes a second here; a worker looks for cancellations every few, and may have to share its machine."""


@pytest.fixture(scope="module")
def slow(tiny: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose shards take long enough for something to happen to them."""
    stages = [{"stage": "layout"}, {"stage": "lesion", "steps": 100}, {"stage": "levels"}]
    judges = tiny["judges"] | {"critic": None}
    return tiny | {
        "name": "slow",
        "stages": stages,
        "judges": judges,
        "plan": {"samples": 2 * SHARDS, "shard": 2},
        "audit": None,
    }


@pytest.fixture(scope="module")
def undisturbed(
    slow: dict[str, Any], prefect_server: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The store and the digest of a build of `slow` to which nothing happened."""
    store = tmp_path_factory.mktemp("slow")
    return store, build_dataset(recipe=parse(slow), store=str(store)).digest


@pytest.fixture
def begun(undisturbed: tuple[Path, str], tmp_path: Path) -> Path:
    """The store of `undisturbed`, without what comes after training."""
    store = Path(shutil.copytree(undisturbed[0], tmp_path / "store"))
    for step in ("synthesize", "score", "detect", "curate", "export"):
        shutil.rmtree(store / "builds" / step)
    shutil.rmtree(store / "slow")
    return store


def moments(store: Path) -> dict[Path, int]:
    """When each finished step was written."""
    return {path: path.stat().st_mtime_ns for path in refs(store)}


def drawn(store: Path) -> int:
    return len(list(store.glob("builds/synthesize/*/ref.json")))


def last_run(client: SyncPrefectClient) -> FlowRun:
    return client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]


def page(client: SyncPrefectClient, run: FlowRun) -> str:
    """What the artifact of a stopped build says."""
    which = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(any_=["slow-stopped"])
    )
    (artifact,) = client.read_artifacts(artifact_filter=which)
    return str(artifact.data)


def size_kb(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*"))


@contextlib.contextmanager
def file_system(folder: Path, kilobytes: int) -> Generator[None]:
    """A file system of so many kilobytes on a folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a file system here: run as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def building(recipe: dict[str, Any], store: str, limit: str | None = None) -> Generator[Callable[[], str]]:
    """Build beside the block; its digest, or what it raised, after the block.

    Servers are started in the block and not beside it: they end with the thread that started them.
    """

    def build() -> str:
        return build_dataset(recipe=parse(recipe), store=store, limit=limit).digest

    with ThreadPoolExecutor(1) as beside:
        made = beside.submit(contextvars.copy_context().run, build)
        yield made.result


class Prefect:
    """A Prefect server that can be killed and comes back at the same address with the same database."""

    def __init__(self, folder: Path) -> None:
        (self._port,) = free_ports(1)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        """Return once it answers."""
        command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)]
        leases = "prefect.server.concurrency.lease_storage.filesystem"  # those in memory do not outlive a server
        home = {"PREFECT_HOME": str(self._folder), "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases}
        self._process = start_server([sys.executable, *command], self._folder / "server.log", **home)
        until(self._answers)

    def kill(self) -> None:
        """`kill -9`, of all its processes."""
        if self._process is None:
            return
        for one in psutil.Process(self._process.pid).children(recursive=True):
            one.kill()
        self._process.kill()
        self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False


class Gateway:
    """The S3 gateway of a running Ceph, which can be killed and started again; objects are not in it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder, self._server = folder, server
        self._own: subprocess.Popen[bytes] | None = None
        (self._process,) = (one for one in psutil.process_iter(["name", "environ"]) if self._is(one.info))

    def _is(self, found: dict[str, Any]) -> bool:
        configuration = (found["environ"] or {}).get("CEPH_CONF")
        return found["name"] == "radosgw" and configuration == str(self._folder / "ceph.conf")

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        psutil.wait_procs([self._process], timeout=10)
        if self._own is not None:
            self._own.wait()
            self._own = None

    def start(self) -> None:
        """Return once it answers."""
        command = ["radosgw", "-n", "client.rgw", "-f"]
        home = {"CEPH_CONF": str(self._folder / "ceph.conf")}
        self._own = start_server(command, self._folder / "daemons.log", **home)
        self._process = psutil.Process(self._own.pid)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(self._server.endpoint, timeout=5).is_success
        except httpx.HTTPError:
            return False


def test_a_build_out_of_time_stops_between_two_batches_and_goes_on_in_the_next_run(
    slow: dict[str, Any], undisturbed: tuple[Path, str], begun: Path
) -> None:
    recipe, limit = parse(slow), 2.0
    started = time.monotonic()
    with pytest.raises(OutOfTimeError, match="time limit"):
        build_dataset(recipe=recipe, store=str(begun), time_limit_s=limit)
    assert time.monotonic() - started < limit + STOPS_WITHIN_S
    assert drawn(begun) < SHARDS
    with get_client(sync_client=True) as client:
        state = last_run(client).state
    assert state is not None
    assert (state.name, state.type) == ("TimedOut", StateType.FAILED)
    assert re.match(r"slow stopped (in|after) step [\w-]+.*: OutOfTimeError: ", str(state.message))
    assert "the same call with the same recipe and store" in str(state.message)
    before = moments(begun)
    assert build_dataset(recipe=recipe, store=str(begun)).digest == undisturbed[1]
    assert before.items() <= moments(begun).items()


@pytest.mark.slow
def test_a_cancelled_run_stops_within_a_batch_and_a_retry_goes_on(
    slow: dict[str, Any], undisturbed: tuple[Path, str], begun: Path, tmp_path: Path
) -> None:
    with pool.running(tmp_path) as url, get_client(sync_client=True) as client:
        pool.serve(client, build_dataset, "build", "flows/build_dataset.py:build_dataset")
        worker = pool.worker(url, tmp_path, "worker")
        try:
            asked = {"recipe": slow, "store": str(begun)}
            made = cast(FlowRun, run_deployment("build-dataset/build", parameters=asked, timeout=0))
            until(lambda: drawn(begun) > 0)
            client.set_flow_run_state(made.id, Cancelling())
            asked_at = time.monotonic()
            until(lambda: len(pool.family(worker)) == 1, 60)  # the build's process is gone
            assert time.monotonic() - asked_at < STOPS_WITHIN_S
            until(lambda: client.read_flow_run(made.id).state_type == StateType.CANCELLED, 60)
            assert drawn(begun) < SHARDS
            before = moments(begun)
            retry = f"prefect flow-run retry {made.id}"
            assert retry in page(client, made)
            assert re.search(r"slow stopped in step synthesize, shard \d of 4", page(client, made))

            subprocess.run(
                [sys.executable, "-m", *retry.split()], check=True, env=os.environ | {"PREFECT_API_URL": url}
            )
            until(lambda: client.read_flow_run(made.id).state_type == StateType.COMPLETED)
            done = client.read_flow_run(made.id)
            assert done.name == "slow@1"
            assert {"dataset:slow", "version:1"} < set(done.tags)
        finally:
            pool.die(worker)
    assert before.items() <= moments(begun).items()
    assert open_manifest(Store(str(begun)), "slow").digest == undisturbed[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_workers_of_a_terminated_build_stop_as_well(
    kind: str, slow: dict[str, Any], undisturbed: tuple[Path, str], begun: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "slow.json"
    recipe.write_text(json.dumps(slow | {"runner": {"kind": kind, "workers": 2}}))
    build = start(recipe, begun)
    until(lambda: drawn(begun) > 0 or build.poll() is not None)
    family = psutil.Process(build.pid).children(recursive=True)
    assert len(family) > 2
    build.terminate()  # it alone: nobody tells its workers but itself
    build.wait(STOPS_WITHIN_S)
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family), 30)
    said = output(begun, "err", int(str(build.args))).read_text()
    assert "slow stopped in step synthesize" in said
    assert f"sonoforge build {recipe} --store {begun}" in said
    before = moments(begun)
    assert len(before) < len(refs(undisturbed[0]))
    assert build_dataset(recipe=parse(slow), store=str(begun)).digest == undisturbed[1]
    assert before.items() <= moments(begun).items()


def test_the_temporary_prefect_server_of_a_killed_build_ends_too(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe, store = tmp_path / "tiny.json", tmp_path / "store"
    recipe.write_text(json.dumps(tiny))
    build = start(recipe, store)
    until(lambda: bool(refs(store)) or build.poll() is not None)
    servers = [one for one in psutil.Process(build.pid).children(recursive=True) if "uvicorn" in one.cmdline()]
    assert len(servers) == 1
    kill(build)
    gone, alive = psutil.wait_procs(servers, timeout=30)
    assert (len(gone), alive) == (1, [])


def test_a_full_file_system_is_named_and_a_build_goes_on_once_there_is_room(
    slow: dict[str, Any], undisturbed: tuple[Path, str], begun: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with file_system(disk, kilobytes=200 + size_kb(begun)):
        store = shutil.copytree(begun, disk / "store")
        with pytest.raises(StoreFullError, match="space"):
            build_dataset(recipe=parse(slow), store=str(store))
        with get_client(sync_client=True) as client:
            state = last_run(client).state
        assert state is not None
        assert re.match(r"slow stopped in step \w+(, shard \d of 4)?: StoreFullError: ", str(state.message))
        assert list(list_versions(Store(str(store)))) == []
        before = moments(store)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert build_dataset(recipe=parse(slow), store=str(store)).digest == undisturbed[1]
        assert before.items() <= moments(store).items()


def test_a_build_outlives_a_prefect_server_that_is_killed_and_comes_back(
    slow: dict[str, Any], undisturbed: tuple[Path, str], begun: Path, tmp_path: Path
) -> None:
    server = Prefect(tmp_path)

    def restart() -> None:
        until(lambda: drawn(begun) > 0)
        server.kill()
        until(lambda: drawn(begun) > 1)
        server.start()

    server.start()
    try:
        with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="builds", limit=1))
            with building(slow, str(begun), limit="builds") as result:
                restart()
            assert result() == undisturbed[1]
            run = last_run(client)
            assert (run.name, run.state_type) == ("slow@1", StateType.COMPLETED)
            assert client.read_global_concurrency_limit_by_name("builds").active_slots == 0
    finally:
        server.kill()


@pytest.mark.slow
def test_a_build_outlives_a_short_outage_of_its_store_and_goes_on_after_a_long_one(
    slow: dict[str, Any], undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without(ceph.missing(), f"apt-get install --no-install-recommends {ceph.PACKAGES}")
    with ceph.running(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        gateway, store = Gateway(tmp_path, server), Store(f"s3://{server.bucket}/faults")

        def made() -> dict[str, object]:
            found = store.list("builds")
            return {key: store.read(key) for key in found if key.endswith("/ref.json")}

        def outage(after: str, seconds: float) -> None:
            until(lambda: any(key.startswith(f"builds/{after}/") for key in store.list("builds")))
            gateway.kill()
            time.sleep(seconds)
            gateway.start()

        patience = cast(dict[str, Any], Store.__init__.__kwdefaults__)
        monkeypatch.setitem(patience, "patience_s", 2.0)
        with building(slow, store.url) as result:
            outage("train-classifier", 12.0)
        with pytest.raises(StoreUnavailableError):
            result()
        with get_client(sync_client=True) as client:
            state = last_run(client).state
        assert state is not None
        assert re.match(r"slow stopped (in|after) step [\w-]+.*: StoreUnavailableError: ", str(state.message))
        monkeypatch.undo()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        before = made()
        assert before

        with building(slow, store.url) as result:
            outage("synthesize", 8.0)
        assert result() == undisturbed[1]
        assert before.items() <= made().items()
        gateway.kill()
