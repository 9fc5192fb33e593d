"""Automations: what a Prefect server does by itself when a run falls silent, a run fails, or a version appears."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.reconciling import Thing

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events import EventTrigger
    from prefect.events.actions import ActionTypes
    from prefect.events.schemas.automations import ResourceSpecificationDict

ZOMBIES, FAILURES, PUBLICATIONS = "sonoforge: zombie runs", "sonoforge: failed runs", "sonoforge: after publication"

SILENCE_S = 150
"""Seconds without a sign of life after which a run counts as dead: five of the 30 that deployments set."""

KIND = "automation"

_HEARTBEAT = "heartbeat"
_SILENT = (  # states in which nobody expects a sign of life
    "Completed", "Cached", "Failed", "TimedOut", "Crashed", "Cancelled", "Paused", "Suspended", "AwaitingRetry",
    "AwaitingConcurrencySlot", "Scheduled", "Rescheduled",
)  # fmt: skip
_FAILED = ("Failed", "TimedOut", "Crashed")
_SETS = ("after", "expect", "for_each")
_FAILURE = """{"text": {{ ("Flow run " ~ flow_run.name ~ " of " ~ flow.name ~ " is " ~ flow_run.state.name ~ ": " \
~ (flow_run.state.message or "no reason given") ~ " " ~ flow_run|ui_url) | tojson }}}"""


def zombies(client: "SyncPrefectClient", tag: str, silence_s: float | None) -> Thing:
    """Runs that beat and fell silent are marked Crashed, which gives back the places they hold.

    `silence_s` None leaves it as it is on the server.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events import EventTrigger
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import Posture

    if silence_s is None:
        there = _found(client, ZOMBIES)
        silence_s = SILENCE_S if there is None else float(there["trigger"].get("within", SILENCE_S))
    trigger = EventTrigger(
        after={_of_run(_HEARTBEAT)},
        expect={_of_run(name) for name in (_HEARTBEAT, *_SILENT)},
        match=_runs(),
        match_related=_tagged(tag),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=silence_s),
    )
    crash = ChangeFlowRunState(
        state=StateType.CRASHED,
        name="Crashed",
        message=f"no sign of life for {silence_s:.0f} s: its process died. Run it again: it goes on from the store",
        force=False,
    )
    about = "Marks runs whose process was killed as Crashed: Prefect would leave them Running for ever."
    return _automation(client, ZOMBIES, about, trigger, crash)


def failures(client: "SyncPrefectClient", tag: str, block: UUID) -> Thing:
    """Failed, timed out and crashed runs are told to a webhook, as JSON with the one field that chats read: text."""
    from prefect.events import EventTrigger
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import Posture

    trigger = EventTrigger(
        expect={_of_run(name) for name in _FAILED},
        match=_runs(),
        match_related=_tagged(tag),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )
    call = CallWebhook(block_document_id=block, payload=_FAILURE)
    return _automation(client, FAILURES, "Tells a webhook of runs that did not end well.", trigger, call)


def publications(client: "SyncPrefectClient", event: str, deployment: UUID) -> Thing:
    """A published version starts a deployment, which is given its name and store."""
    from prefect.events import EventTrigger
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import Posture

    trigger = EventTrigger(
        expect={event},
        match={"prefect.resource.id": "sonoforge.dataset.*"},
        posture=Posture.Reactive,
        threshold=1,
    )
    start = RunDeployment(
        source="selected",
        deployment_id=deployment,
        job_variables=None,
        parameters={
            "version": _template("{{ event.payload.name }}@{{ event.payload.version }}"),
            "store": _template("{{ event.payload.store }}"),
        },
    )
    about = "Runs a flow for each published version. An example: point it at a deployment of your own."
    return _automation(client, PUBLICATIONS, about, trigger, start)


def _automation(
    client: "SyncPrefectClient", name: str, about: str, trigger: "EventTrigger", action: "ActionTypes"
) -> Thing:
    from prefect.events.schemas.automations import AutomationCore

    wanted = {
        "description": about,
        "trigger": _plain(trigger.model_dump(mode="json")),
        "actions": [action.model_dump(mode="json")],
    }

    def create() -> None:
        client.create_automation(AutomationCore.model_validate({"name": name, **wanted}))

    def update(changes: Mapping[str, Any]) -> None:
        (there,) = client.read_automations_by_name(name)[:1]
        content = {**there.model_dump(mode="json", exclude={"id", "owner_resource"}), **changes}
        client.update_automation(there.id, AutomationCore.model_validate(content))

    return Thing(KIND, name, wanted, lambda: _found(client, name), create, update)


def _found(client: "SyncPrefectClient", name: str) -> dict[str, Any] | None:
    for there in client.read_automations_by_name(name)[:1]:
        content = there.model_dump(mode="json", include={"description", "trigger", "actions"})
        return {**content, "trigger": _plain(content["trigger"])}
    return None


def _plain(trigger: dict[str, Any]) -> dict[str, Any]:
    """Sets as sorted lists."""
    return {name: sorted(value) if name in _SETS else value for name, value in json.loads(json.dumps(trigger)).items()}


def _of_run(name: str) -> str:
    return f"prefect.flow-run.{name}"


def _runs() -> "ResourceSpecificationDict":
    return {"prefect.resource.id": "prefect.flow-run.*"}


def _tagged(tag: str) -> "ResourceSpecificationDict":
    return {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}


def _template(text: str) -> dict[str, str]:
    return {"__prefect_kind": "jinja", "template": text}
