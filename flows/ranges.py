"""Ranges of shards as flow runs of their own: several machines work for one build through a Prefect work pool.

The store is all that a range and its build share. A range makes its shards one after another; the build takes each from
the store, as any resumed build does. So what a dead range had finished is kept, and one that was thought dead but lives
does no harm: it makes the same bytes.
"""

import contextlib
import hashlib
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, cast, get_type_hints
from uuid import UUID

import httpx
from prefect import Task, flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Crashed
from pydantic import Field, TypeAdapter
from pydantic_core import to_jsonable_python

from flows.runners import Runner
from storage import keys, leases
from storage.store import Store
from tasks import stop
from tasks.connect import open_store
from tasks.reuse import Done, look_up
from tasks.score import score_shard
from tasks.synthesize import synthesize_shard

FLOW = "make-range"
STEPS: Mapping[str, Task[Any, Done]] = {task.name: task for task in (synthesize_shard, score_shard)}

_WAITING = (StateType.SCHEDULED, StateType.PAUSED)
_BEGUN = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
_BEATS = 6  # signs of life for each span of patience
_POLL_S = 5.0
_START_S = 900.0  # for which a run that a worker took may not have begun: containers are fetched, Python starts
_REMINDER_S = 60.0


@flow(name=FLOW)
def make_range(
    step: Annotated[str, Field(description="The task that makes a shard: synthesize or score.")],
    calls: Annotated[list[dict[str, Any]], Field(min_length=1, description="Its parameters, for each shard.")],
    threads: Annotated[int, Field(ge=1, description="CPU threads; float32 rounds differently by their number.")],
    beat_s: Annotated[float, Field(gt=0, description="Seconds between two signs of life in the store.")],
) -> None:
    """Make some shards of a build that runs elsewhere, one after another. Builds start this flow, people need not."""
    import torch

    torch.set_num_threads(threads)
    task = STEPS[step]
    store = open_store(str(calls[0]["store_url"]))
    relied_on = [f"{keys.BUILDS}/", f"{keys.SCRATCH}/"]
    with leases.raised(store, lambda _: _beat(this_run.id), f"{FLOW} {this_run.name}", relied_on, beat_s):
        leases.wait_for_collections(store)
        for call in calls:
            task(**typed(task, call))


def typed(task: Task[Any, Done], call: Mapping[str, Any]) -> dict[str, Any]:
    """A call that has been JSON, with records again where `task` takes records."""
    types = get_type_hints(task.fn, include_extras=True)
    return {name: TypeAdapter(types[name]).validate_python(value) for name, value in call.items()}


@dataclass
class Range:
    """A flow run under way.

    `left` are the places of its calls that are not in the store yet, in its order; `since`: when it began the first of
    them; `sign` is its last sign of life, seen first at `heard`.
    """

    run: UUID
    left: deque[int]
    since: float = field(default_factory=time.monotonic)
    sign: object = None
    heard: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Job:
    """The calls of one step, and where they run; `done` fills up, by place among the calls."""

    task: Task[Any, Done]
    calls: Sequence[Mapping[str, Any]]
    where: Runner
    client: SyncPrefectClient
    deployment: UUID
    store: Store
    done: dict[int, Done]

    @cached_property
    def plain(self) -> list[dict[str, Any]]:
        """The calls as JSON takes them."""
        return [to_jsonable_python(dict(call)) for call in self.calls]

    @cached_property
    def tag(self) -> str:
        """What the flow runs of equal jobs, and of no others, are tagged with."""
        return f"sonoforge-{hashlib.sha256(keys.canonical_json([self.task.name, self.plain])).hexdigest()[:16]}"


def fan_out(task: Task[Any, Done], calls: Sequence[Mapping[str, Any]], where: Runner) -> list[Done]:
    """Run `task` once for each of `calls` on the work pool of `where`, `where.workers` flow runs at a time.

    Returns:
        How each ended, in the order of `calls`.

    Raises:
        ValueError: there is no server or no such pool, a range failed, workers see another store, or they keep dying.
    """
    done: dict[int, Done] = {}
    for place, call in enumerate(calls):
        if found := look_up(lambda call=call: task.fn(**call)):
            done[place] = found
    missing = [place for place in range(len(calls)) if place not in done]
    if missing:
        if not PREFECT_API_URL.value():
            raise ValueError(
                f"runner.pool {where.pool!r}: work pools live on a Prefect server, and PREFECT_API_URL names none; "
                "deployment/README.md says how to start one"
            )
        store = open_store(str(calls[0]["store_url"]))
        with get_client(sync_client=True) as client:
            deployment = find_deployment(client, str(where.pool))
            _make(Job(task, calls, where, client, deployment, store, done), missing)
    return [done[place] for place in range(len(calls))]


def find_deployment(client: SyncPrefectClient, pool: str) -> UUID:
    """The deployment of `make_range` on a work pool.

    Raises:
        ValueError: there is no such pool, or no deployment on it.
    """
    try:
        client.read_work_pool(pool)
    except ObjectNotFound as error:
        raise ValueError(
            f"runner.pool {pool!r}: {client.api_url} has no such work pool. sonoforge deploy makes the pool "
            f"shards; for another: prefect work-pool create {pool} --type process"
        ) from error
    found = client.read_deployments(
        flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[FLOW])),
        work_pool_filter=filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool])),
    )
    if not found:
        raise ValueError(
            f"runner.pool {pool!r}: the flow {FLOW} is not deployed to this work pool: prefect --no-prompt deploy "
            f"--name ranges --pool {pool} --prefect-file deployment/prefect.yaml"
        )
    return min(found, key=lambda one: one.name).id


def _make(job: Job, missing: Sequence[int]) -> None:
    """Have all missing calls made by ranges; those of a range that died are tried again."""
    where = job.where
    flying = _adopted(job, missing)
    begun = {place for one in flying for place in one.left}
    rest = [place for place in missing if place not in begun]
    waiting = deque(rest[at : at + where.shards] for at in range(0, len(rest), where.shards))
    deaths: Counter[int] = Counter()
    reminded = time.monotonic()
    try:
        while waiting or flying:
            stop.check()
            while waiting and len(flying) < where.workers:
                flying.append(_started(job, waiting.popleft()))
            time.sleep(min(_POLL_S, where.patience_s / _BEATS))
            runs = _runs(job, flying)
            for one in list(flying):
                died = _watched(job, one, runs.get(one.run))
                if one.left and died is None:
                    continue
                flying.remove(one)
                if died is not None:
                    deaths[one.left[0]] += 1
                    if deaths[one.left[0]] >= where.attempts:
                        raise ValueError(f"{died}. As many as runner.attempts died over the first of them")
                    _tell(f"{died}; they are tried again")
                    waiting.appendleft(list(one.left))
            if time.monotonic() - reminded > _REMINDER_S:
                reminded = time.monotonic()
                _remind(job, list(runs.values()))
    except stop.StoppedError:
        for one in flying:
            _stopped(job, one)
        raise
    except Exception:
        for one in flying:
            _called_off(job, one)
        raise
    except BaseException:  # the build was cancelled, or Ctrl-C
        for one in flying:
            _stopped(job, one)
        raise


def _started(job: Job, places: Sequence[int]) -> Range:
    import torch

    run = run_deployment(
        job.deployment,
        parameters={
            "step": job.task.name,
            "calls": [job.plain[place] for place in places],
            "threads": torch.get_num_threads(),
            "beat_s": job.where.patience_s / _BEATS,
        },
        flow_run_name=f"{job.task.name}, shards {places[0]}-{places[-1]}",
        tags=[job.tag],
        timeout=0,
    )
    return Range(cast(FlowRun, run).id, deque(places))  # typed as if it might be a coroutine


def _adopted(job: Job, missing: Sequence[int]) -> list[Range]:
    """Ranges that a build which is gone left running, for what of theirs is still missing."""
    types = [*_WAITING, StateType.PENDING, StateType.RUNNING]
    alive = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=types))
    tagged = filters.FlowRunFilterTags(all_=[job.tag])
    places = {keys.canonical_json(job.plain[place]): place for place in missing}
    found: list[Range] = []
    for run in job.client.read_flow_runs(flow_run_filter=filters.FlowRunFilter(tags=tagged, state=alive)):
        asked = [places.pop(keys.canonical_json(call), None) for call in run.parameters["calls"]]
        left = deque(place for place in asked if place is not None)
        if left:
            found.append(Range(run.id, left))
    return found


def _runs(job: Job, flying: Sequence[Range]) -> dict[UUID, FlowRun]:
    which = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[one.run for one in flying]))
    return {run.id: run for run in job.client.read_flow_runs(flow_run_filter=which)}


def _watched(job: Job, one: Range, run: FlowRun | None) -> str | None:
    """Take what a range has finished; why it counts as dead, None where it lives or is done.

    `run` was read before the store is: a range that is complete has all its shards there.
    """
    _take(job, one)
    if not one.left:
        return None
    lost = f"{len(one.left)} of its shards are not finished"
    if run is None or run.state is None:
        return f"A flow run of {FLOW} was deleted; {lost}"
    name, state = f"Flow run {run.name!r}", run.state
    if state.is_crashed():
        return f"{name} died ({state.message or 'no reason given'}); {lost}"
    if state.is_completed():
        raise ValueError(
            f"{name} is complete, but its shards are not in {job.store.url}: its worker has another store or base "
            "under that name, or another version of sonoforge. Give names that mean the same on every machine"
        )
    if state.is_failed() or state.is_cancelled():
        raise ValueError(f"{name} {state.type.value.lower()}: {state.message or 'no reason given'}")
    if state.type in _WAITING:
        one.since = one.heard = time.monotonic()
        return None
    sign = (state.id, len(one.left), _heartbeat(job.store, run.id))
    if sign != one.sign:
        one.sign, one.heard = sign, time.monotonic()
    patience = job.where.patience_s if state.is_running() else max(job.where.patience_s, _START_S)
    if time.monotonic() - one.heard < patience:
        return None
    silent = f"no sign of life for {patience:.0f} s"
    job.client.set_flow_run_state(run.id, Crashed(message=silent), force=True)
    return f"{name} died ({silent}); {lost}"


def _take(job: Job, one: Range) -> None:
    """Take from the store what a range has finished since."""
    while one.left and (found := look_up(lambda: job.task.fn(**job.calls[one.left[0]]))):
        now = time.monotonic()
        job.done[one.left.popleft()] = found.model_copy(update={"reused": False, "seconds": now - one.since})
        one.since = now


def _beat(run: object) -> str:
    """Key of the lease that a range renews while it lives."""
    return keys.lease_key(str(run))


def _heartbeat(store: Store, run: UUID) -> bytes | None:
    try:
        return store.read(_beat(run))
    except FileNotFoundError:
        return None


def _called_off(job: Job, one: Range) -> None:
    """Keep a range that no worker has begun from beginning; one under way goes on, and its shards are kept."""
    with contextlib.suppress(ObjectNotFound, httpx.HTTPError):
        state = job.client.read_flow_run(one.run).state
        if state is not None and state.type in _WAITING:
            job.client.set_flow_run_state(one.run, Cancelled(message="its build has ended"), force=True)


def _stopped(job: Job, one: Range) -> None:
    """Have a range stop as its build does: its worker ends it between two batches, and its shards are kept."""
    _called_off(job, one)
    with contextlib.suppress(ObjectNotFound, httpx.HTTPError):
        state = job.client.read_flow_run(one.run).state
        if state is not None and state.type in _BEGUN:
            job.client.set_flow_run_state(one.run, Cancelling(message="its build was stopped"))


def _remind(job: Job, runs: Sequence[FlowRun]) -> None:
    """Tell people who wait why nothing happens."""
    waiting = sum(run.state is not None and run.state.type in _WAITING for run in runs)
    workers = job.client.read_workers_for_work_pool(str(job.where.pool))
    if waiting and not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        _tell(
            f"{waiting} flow runs wait, and no worker of work pool {job.where.pool!r} is online: "
            f"prefect worker start --pool {job.where.pool}"
        )


def _tell(text: str) -> None:
    logger = get_run_logger()
    if logger.isEnabledFor(logging.WARNING):
        logger.warning(text)
    else:
        print(text, file=sys.stderr, flush=True)
