"""Runs that stand still, and the automation that ends those whose worker died."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.events.schemas.automations import Automation, EventTrigger, Posture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from flows.doctor.findings import Finding, lasting

HEARTBEAT = "prefect.flow-run.heartbeat"
FREQUENCY = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
MISSED = 3
"""Heartbeats that a living run may miss."""

WAITING = timedelta(minutes=10)
"""How long a run may be late, begin or end before that is told."""

_USUAL_S = 180  # what Prefect sends heartbeats after, where nobody says otherwise
_SHOWN = 3
_PAGE = 200
_HOLDING = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.SCHEDULED)
_CRASHED = '{"state": {"type": "CRASHED"}, "force": true}'
_ENDING = {StateType.CRASHED, StateType.FAILED}


def check_runs(client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]) -> Iterator[Finding]:
    """The automation for zombies, then runs that stand still by its measure."""
    beats = frequencies(deployments)
    zombies = [found for found in client.read_automations() if is_zombie_automation(found)]
    yield _automation(zombies, beats)
    within = [_within(found) for found in zombies if found.enabled]
    # Runs that were started without a deployment have the heartbeat of where they were started.
    slowest = max(PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or _USUAL_S, *(seconds or 0 for seconds in beats.values()))
    yield from _stuck(client, max([timedelta(seconds=MISSED * slowest), *within]))


def frequencies(deployments: Sequence[DeploymentResponse]) -> dict[str, int | None]:
    """Seconds between two heartbeats by who says so, None where they are switched off: each deployment that says so
    itself, and this environment for those that do not (taken to be that of the workers)."""
    found: dict[str, int | None] = {}
    for deployment in deployments:
        given = (deployment.job_variables or {}).get("env") or {}
        if FREQUENCY in given:
            text = str(given[FREQUENCY])
            found[f"deployment {deployment.name}"] = int(text) if text.isdecimal() else None
        else:
            found["this environment"] = PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()
    return found or {"this environment": PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()}


def is_zombie_automation(automation: Automation) -> bool:
    """Whether it ends flow runs whose heartbeats stop, whatever it is called."""
    trigger = automation.trigger
    return (
        isinstance(trigger, EventTrigger)
        and trigger.posture == Posture.Proactive
        and HEARTBEAT in trigger.after
        and any(isinstance(action, ChangeFlowRunState) and action.state in _ENDING for action in automation.actions)
    )


def _within(automation: Automation) -> timedelta:
    assert isinstance(automation.trigger, EventTrigger)
    return automation.trigger.within


def _automation(zombies: Sequence[Automation], beats: dict[str, int | None]) -> Finding:
    check = "zombie automation"
    if not zombies:
        return Finding(
            check=check,
            level="failure",
            found="there is none: a run whose worker died stays Running for ever, and keeps its slot of the limit",
            advice="sonoforge deploy (with --reset where somebody deleted it)",
        )
    enabled = [automation for automation in zombies if automation.enabled]
    if not enabled:
        name = zombies[0].name
        found = f"{name!r} is switched off: runs whose worker died stay Running and keep their slots"
        return Finding(check=check, level="failure", found=found, advice=f"prefect automation resume {name!r}")
    silent = [who for who, seconds in beats.items() if seconds is None]
    if silent:
        found = f"runs of {', '.join(silent)} send no heartbeats: {FREQUENCY} is empty, so a dead one is never noticed"
        advice = f"unset {FREQUENCY}, for workers and in the deployment's job variables"
        return Finding(check=check, level="failure", found=found, advice=advice)
    within = min(_within(automation) for automation in enabled)
    who, slowest = max(((who, seconds or 0) for who, seconds in beats.items()), key=lambda pair: pair[1])
    rhythm = f"after {lasting(within)} without one; {who} sends one every {slowest} s"
    wanted = f"sonoforge deploy --zombie-after {MISSED * slowest}"
    if within <= timedelta(seconds=slowest):
        found = f"ends runs {rhythm}: it ends living runs"
        return Finding(check=check, level="failure", found=found, advice=wanted)
    if within < timedelta(seconds=2 * slowest):
        found = f"ends runs {rhythm}: one late heartbeat ends a living run"
        return Finding(check=check, level="warning", found=found, advice=wanted)
    return Finding(check=check, level="ok", found=f"ends runs {rhythm}")


def are_running(client: SyncPrefectClient) -> bool:
    """Whether anything runs on the server, or is ending."""
    return bool(client.read_flow_runs(flow_run_filter=_in(StateType.RUNNING, StateType.CANCELLING), limit=1))


def _in(*states: StateType) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))))


def _stuck(client: SyncPrefectClient, patience: timedelta) -> Iterator[Finding]:
    now, alive = datetime.now(UTC), 0
    silent: list[tuple[FlowRun, timedelta]] = []
    waiting: dict[str, list[tuple[FlowRun, timedelta]]] = {}
    for run in client.read_flow_runs(flow_run_filter=_in(*_HOLDING), limit=_PAGE):
        assert run.state is not None
        if run.state.type == StateType.RUNNING:
            quiet = now - _last_sign(client, run, now - patience)
            alive += 1
            if quiet > patience:
                silent.append((run, quiet))
        elif run.state.name == "AwaitingConcurrencySlot":
            continue  # as it should: others hold the limit
        elif (since := now - _due(run)) > WAITING:
            waiting.setdefault(run.state.type.value.capitalize(), []).append((run, since))
    if silent:
        one = silent[0][0].id
        yield Finding(
            check="stuck runs",
            level="failure",
            found=f"{_listed(silent)} Running without a sign of life: the worker died, and the run keeps its slot",
            advice=f"end it: prefect api POST /flow_runs/{one}/set_state --data '{_CRASHED}'; then run its deployment "
            "again: it goes on from the store",
        )
    for state, late in waiting.items():
        advice = {
            "Scheduled": f"start a worker of its pool: prefect worker start --pool {late[0][0].work_pool_name}",
            "Pending": f"look at the worker's log; prefect flow-run cancel {late[0][0].id}",
            "Cancelling": f"its worker is gone: prefect flow-run delete {late[0][0].id}",
        }[state]
        found = f"{_listed(late)} {state}: nobody goes on with it"
        yield Finding(check="waiting runs", level="warning", found=found, advice=advice)
    if not silent and not waiting:
        yield Finding(check="runs", level="ok", found=f"{alive} running, none stands still")


def _last_sign(client: SyncPrefectClient, run: FlowRun, from_then: datetime) -> datetime:
    """When a running run was last heard of: its start, or its last heartbeat."""
    assert run.state is not None
    began = max(run.start_time or run.state.timestamp, run.state.timestamp)
    if began > from_then:
        return began
    of_run = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
    )
    heard = client.read_events(filter=of_run, limit=1).events
    return max(began, *(event.occurred for event in heard)) if heard else began


def _due(run: FlowRun) -> datetime:
    """Since when a run should have gone on."""
    assert run.state is not None
    due = run.next_scheduled_start_time or run.expected_start_time
    if run.state.type == StateType.SCHEDULED and due is not None:
        return due
    return run.state.timestamp


def _listed(runs: Sequence[tuple[FlowRun, timedelta]]) -> str:
    """Some of the runs, those that have stood still for longest first."""
    ordered = sorted(runs, key=lambda pair: pair[1], reverse=True)
    shown = ", ".join(f"{run.name} ({lasting(since)})" for run, since in ordered[:_SHOWN])
    if len(ordered) == 1:
        return f"1 run, {shown}, is"
    more = len(ordered) - _SHOWN
    return f"{len(ordered)} runs, {shown}{f' and {more} more' if more > 0 else ''}, are"
