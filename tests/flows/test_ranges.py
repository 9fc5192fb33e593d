"""One flow run per range of shards: with real workers of which one is killed, and with tests that play the worker."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed, Running
from pydantic_core import to_jsonable_python

from flows.ranges import fan_out, typed
from flows.runners import Runner
from storage import keys
from tasks.reuse import look_up
from tasks.synthesize import synthesize_shard
from tests.fakes.shards import Work, make_work, spread
from tests.flows.waiting import meanwhile, until
from tests.servers import pool

SHARDS = 6


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.mktemp("work"), SHARDS, steps=20)


def where(**fields: Any) -> Runner:
    return Runner.model_validate({"kind": "pool", "pool": pool.POOL, "shards": 3, "patience_s": 10} | fields)


def ranges_of(client: SyncPrefectClient) -> list[FlowRun]:
    """All flow runs of ranges, in the order in which they were asked for."""
    deployed = DeploymentFilter(name=DeploymentFilterName(any_=["ranges"]))
    return sorted(client.read_flow_runs(deployment_filter=deployed), key=lambda run: str(run.created))


def made_first(run: FlowRun) -> bool:
    """Has the first shard of a range been made?"""
    call = typed(synthesize_shard, run.parameters["calls"][0])
    return look_up(lambda: synthesize_shard.fn(**call)) is not None


@pytest.mark.slow
def test_a_killed_worker_costs_its_shard_alone(work: Work, tmp_path: Path) -> None:
    store = tmp_path / "store"
    calls = work.on(store)

    with pool.running(tmp_path) as url, get_client(sync_client=True) as client:
        workers = [pool.worker(url, tmp_path, name) for name in ("one", "two")]

        def amid_its_range() -> list[int]:
            running = [run for run in ranges_of(client) if run.state_type == StateType.RUNNING]
            return [int(str(run.infrastructure_pid).rpartition(":")[2]) for run in running if made_first(run)]

        def kill_one() -> None:
            until(lambda: bool(amid_its_range()))
            (amid, *_) = amid_its_range()
            pool.die(next(one for one in workers if amid in pool.family(one)))

        try:
            with meanwhile(kill_one):
                ended = spread(synthesize_shard, calls, where(workers=2))
            until(lambda: not any(run.state_type == StateType.RUNNING for run in ranges_of(client)))
            states = Counter(run.state_type for run in ranges_of(client))
            executed = Counter(run.name for run in client.read_task_runs() if run.name.startswith("synthesize "))
        finally:
            for one in workers:
                pool.die(one)
    assert [done.ref.sha256 for done in ended] == work.digests
    assert not any(done.reused for done in ended)
    assert states == {StateType.COMPLETED: 2, StateType.CRASHED: 1}
    assert len(executed) == SHARDS
    assert sum(executed.values()) <= SHARDS + 1


@pytest.fixture(scope="module")
def deployed(prefect_server: None) -> None:
    with get_client(sync_client=True) as client:
        pool.deploy(client)


@pytest.fixture
def client(deployed: None) -> Iterator[SyncPrefectClient]:
    """Of a server whose pool has no workers, and no flow runs yet: the test is the worker."""
    with get_client(sync_client=True) as client:
        for run in ranges_of(client):
            client.delete_flow_run(run.id)
        yield client


def played(client: SyncPrefectClient, *turns: Callable[[FlowRun], State[Any]]) -> Callable[[], None]:
    """A worker that ends flow runs as told, one after another, in the order in which they come."""

    def work() -> None:
        for number, turn in enumerate(turns, 1):
            until(lambda number=number: len(ranges_of(client)) >= number)
            run = ranges_of(client)[number - 1]
            client.set_flow_run_state(run.id, turn(run), force=True)

    return work


def make(run: FlowRun) -> State[Any]:
    """What a good worker does."""
    for call in run.parameters["calls"]:
        synthesize_shard.fn(**typed(synthesize_shard, call))
    return Completed()


def test_a_crashed_range_is_asked_for_again_without_what_it_had_finished(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)

    def half(run: FlowRun) -> State[Any]:
        synthesize_shard.fn(**typed(synthesize_shard, run.parameters["calls"][0]))
        return Crashed(message="out of memory")

    with meanwhile(played(client, half, make, make)):
        ended = spread(synthesize_shard, calls, where(workers=1))
    assert [done.ref.sha256 for done in ended] == work.digests
    assert [len(run.parameters["calls"]) for run in ranges_of(client)] == [3, 2, 3]


def test_a_silent_range_counts_as_dead_and_is_asked_for_again(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)[:1]
    with meanwhile(played(client, lambda run: Running(), make)):
        ended = spread(synthesize_shard, calls, where(patience_s=6))
    assert [done.ref.sha256 for done in ended] == work.digests[:1]
    dead, alive = ranges_of(client)
    assert (dead.state_type, alive.state_type) == (StateType.CRASHED, StateType.COMPLETED)
    assert dead.state is not None
    assert dead.state.message == "no sign of life for 6 s"


def test_a_range_that_shows_signs_of_life_is_waited_for(work: Work, client: SyncPrefectClient, tmp_path: Path) -> None:
    calls = work.on(tmp_path)[:1]

    def slow(run: FlowRun) -> State[Any]:
        client.set_flow_run_state(run.id, Running(), force=True)
        beat = tmp_path / keys.lease_key(str(run.id))
        beat.parent.mkdir(exist_ok=True)
        for number in range(10):
            beat.write_text(str(number))
            time.sleep(1)
        return make(run)

    with meanwhile(played(client, slow)):
        spread(synthesize_shard, calls, where(patience_s=6))
    assert [run.state_type for run in ranges_of(client)] == [StateType.COMPLETED]


def test_ranges_that_keep_dying_over_a_shard_end_the_build(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)
    die = [lambda run: Crashed(message="out of memory")] * 2
    with (
        meanwhile(played(client, *die)),
        pytest.raises(ValueError, match=r"out of memory.*3 of its shards are not finished.*runner\.attempts"),
    ):
        spread(synthesize_shard, calls, where(workers=1, attempts=2))
    assert len(ranges_of(client)) == 2


def test_a_range_that_fails_ends_the_build_and_calls_off_what_has_not_begun(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)

    def fail(run: FlowRun) -> State[Any]:
        until(lambda: len(ranges_of(client)) == 2)
        return Failed(message="ValueError: no such base")

    with meanwhile(played(client, fail)), pytest.raises(ValueError, match="failed: ValueError: no such base"):
        spread(synthesize_shard, calls, where(workers=2))
    assert [run.state_type for run in ranges_of(client)] == [StateType.FAILED, StateType.CANCELLED]


def test_a_worker_with_another_store_is_told_apart_from_a_dead_one(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)
    with (
        meanwhile(played(client, lambda run: Completed())),
        pytest.raises(ValueError, match="complete, but its shards are not in"),
    ):
        spread(synthesize_shard, calls, where(workers=1))


def test_a_second_build_waits_for_what_the_first_left_running(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)

    def run_on(run: FlowRun) -> State[Any]:
        until(lambda: len(ranges_of(client)) == 2)
        return Running()

    with (
        meanwhile(played(client, run_on, lambda run: Failed(message="disk full"))),
        pytest.raises(ValueError, match="disk full"),
    ):
        spread(synthesize_shard, calls, where(workers=2, patience_s=600))
    left, _ = ranges_of(client)
    assert left.state_type == StateType.RUNNING

    def finish_both() -> None:
        until(lambda: len(ranges_of(client)) == 3)
        for run in (left, ranges_of(client)[2]):
            client.set_flow_run_state(run.id, make(run), force=True)

    with meanwhile(finish_both):
        ended = spread(synthesize_shard, calls, where(workers=2, patience_s=600))
    assert [done.ref.sha256 for done in ended] == work.digests
    assert len(ranges_of(client)) == 3


def test_what_is_in_the_store_needs_no_pool(work: Work) -> None:
    ended = fan_out(synthesize_shard, work.calls, where(pool="nowhere"))
    assert [done.ref.sha256 for done in ended] == work.digests
    assert all(done.reused for done in ended)


def test_a_pool_that_is_not_there_or_serves_no_ranges_is_refused(
    work: Work, client: SyncPrefectClient, tmp_path: Path
) -> None:
    calls = work.on(tmp_path)
    with pytest.raises(ValueError, match=r"has no such work pool\. .* prefect work-pool create nowhere"):
        spread(synthesize_shard, calls, where(pool="nowhere"))
    client.create_work_pool(WorkPoolCreate(name="idle", type="process"))
    with pytest.raises(ValueError, match="the flow make-range is not deployed to this work pool"):
        spread(synthesize_shard, calls, where(pool="idle"))


def test_a_pool_without_a_server_is_refused_before_one_is_started(work: Work, tmp_path: Path) -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ValueError, match="PREFECT_API_URL names none"),
    ):
        fan_out(synthesize_shard, work.on(tmp_path), where())


def test_calls_survive_json(work: Work) -> None:
    call = work.calls[0]
    assert typed(synthesize_shard, to_jsonable_python(call)) == call


def test_looking_a_step_up_never_makes_it(work: Work, tmp_path: Path) -> None:
    (call, *_) = work.on(tmp_path)
    assert look_up(lambda: synthesize_shard.fn(**call)) is None
    assert not list(tmp_path.glob("builds/synthesize/*"))
    found = look_up(lambda: synthesize_shard.fn(**work.calls[0]))
    assert found is not None
    assert found.ref.sha256 == work.digests[0]
