"""The bootstrap of a Prefect server: work pools, limits, blocks, deployments, automations. Twice is as good as once.

What people changed or deleted on the server since stays so, and is said: see `flows.reconciling`.
"""

import importlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import yaml

from flows import automations, blocks
from flows.reconciling import Line, Memory, Thing, settle

if TYPE_CHECKING:
    import httpx
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

POOLS: Mapping[str, str] = {
    "sonoforge": "Builds and all that serves them, on CPUs.",
    "gpu": "Builds on machines with a GPU: a worker with --limit 1 for each.",
    "shards": "Ranges of shards, for builds whose runner is a pool.",
}
"""Work pools, and what runs there. They are made of type process; a pool of another type that is there stays."""

LIMITS: Mapping[str, int] = {"sonoforge-builds": 1, "sonoforge-gpu": 1}
"""Global concurrency limits, and their slots until somebody gives them others."""

STORE_BLOCK = "sonoforge"
"""Name of the `SonoforgeStore` block that deployments publish to, as block:sonoforge."""

NOTIFY_BLOCK = "sonoforge-notify"
"""Name of the webhook block that is told of failed runs."""

NOTIFY_URL = "SONOFORGE_NOTIFY_URL"
"""Environment variable: the webhook's URL. It is a secret: who knows it can write there."""

HOME = "SONOFORGE_HOME"
"""Environment variable: the folder of sonoforge's code on the workers; that of this code where it is not set."""

TAG = "sonoforge"
"""Tag of all deployments, hence of their runs: automations act on those alone."""

AFTER_PUBLICATION = "after-publication/published"
"""The deployment that is run for each published version, as an example of what can be."""

ROOT = Path(__file__).parents[1]
PREFECT_FILE = ROOT / "deployment" / "prefect.yaml"

_MEMORY = "sonoforge_deployed"  # a variable on the server
_SET_DIRECTORY = "prefect.deployments.steps.set_working_directory"


def deploy(
    store: str | None = None, *, credentials: bool = False, zombie_after_s: float | None = None, reset: bool = False
) -> list[Line]:
    """Put everything sonoforge needs on the Prefect server that is configured.

    Args:
        store: folder or fsspec URL that deployments publish to; None: the one that was given before, or ./store.
        credentials: keep the S3 credentials of this environment in the block of the store, so workers need none.
        zombie_after_s: silence after which a run counts as dead; None: as it is, or `automations.SILENCE_S`.
        reset: undo what people changed or deleted on the server since the last time. Schedules that are switched on
            or off stay so.

    Returns:
        What became of each thing.

    Raises:
        ValueError: no server is configured, or it does not answer or refuses something.
    """
    with connected() as client:
        memory = _recall(client)
        before = {key: dict(fields) for key, fields in memory.items()}
        try:
            return list(_lines(client, memory, store, credentials, zombie_after_s, reset))
        finally:
            if memory != before:
                _remember(client, memory)


def changed(lines: Sequence[Line]) -> int:
    """How many things were created or updated."""
    return sum(line.state in ("created", "updated") for line in lines)


def _lines(
    client: "SyncPrefectClient",
    memory: Memory,
    store: str | None,
    credentials: bool,
    zombie_after_s: float | None,
    reset: bool,
) -> Iterator[Line]:
    for pool, description in POOLS.items():
        yield settle(_pool(client, pool, description), memory, reset=reset)
    for limit, slots in LIMITS.items():
        yield settle(_limit(client, limit, slots), memory, reset=reset)
    yield blocks.of_store(memory, STORE_BLOCK, store, credentials=credentials, reset=reset)
    yield blocks.of_webhook(memory, NOTIFY_BLOCK, NOTIFY_URL, reset=reset)
    for entry in entries():
        deployment = _deployment(client, entry)
        line = settle(deployment, memory, reset=reset)
        yield line
        if line.state != "left out":
            for schedule in entry.get("schedules", []):
                yield settle(_schedule(client, deployment.name, schedule), memory, reset=reset)
    told = zombie_after_s is not None
    yield settle(automations.zombies(client, TAG, zombie_after_s), memory, reset=reset or told)
    yield _failures(client, memory, reset)
    yield _publications(client, memory, reset)


@contextmanager
def connected() -> Generator["SyncPrefectClient"]:
    """A client of the configured server, once it has answered; what it refuses is told in one line."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise ValueError(
            "PREFECT_API_URL names no Prefect server to deploy to: start one (`prefect server start`) and "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`; deployment/README.md says more"
        )
    with get_client(sync_client=True) as client:
        if silent := client.api_healthcheck():
            raise ValueError(f"no Prefect server answers at {url} ({silent}): is it running, is PREFECT_API_URL right?")
        try:
            yield client
        except httpx.HTTPStatusError as error:
            request = f"{error.request.method} {error.request.url.path}"
            # The whole answer repeats the request, and thereby the secrets of blocks; so does the error.
            told = f"{url} refused {request} with {error.response.status_code}: {_reason(error.response)}"
            raise ValueError(told) from None


def _reason(response: "httpx.Response") -> str:
    """Why the server refused, without what it was sent."""
    try:
        content: dict[str, Any] = response.json()
    except ValueError:
        return response.reason_phrase
    problems: list[dict[str, Any]] = content.get("exception_detail", [])
    listed = [f"{'.'.join(map(str, problem.get('loc', [])))}: {problem.get('msg')}" for problem in problems]
    return "; ".join(listed) or str(content.get("detail") or content.get("exception_message") or "no reason given")


def _recall(client: "SyncPrefectClient") -> Memory:
    variable = client.read_variable_by_name(_MEMORY)
    return {} if variable is None else cast(Memory, variable.value)


def _remember(client: "SyncPrefectClient", memory: Memory) -> None:
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    value = cast(Any, memory)
    if client.read_variable_by_name(_MEMORY) is None:
        client.create_variable(VariableCreate(name=_MEMORY, value=value, tags=[TAG]))
    else:
        client.update_variable(VariableUpdate(name=_MEMORY, value=value))


def _pool(client: "SyncPrefectClient", name: str, description: str) -> Thing:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    def read() -> Mapping[str, Any] | None:
        try:
            return {"description": client.read_work_pool(name).description}
        except ObjectNotFound:
            return None

    def create() -> None:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
        )

    def update(changes: Mapping[str, Any]) -> None:
        client.update_work_pool(name, WorkPoolUpdate.model_validate(changes))

    return Thing("work pool", name, {"description": description}, read, create, update)


def _limit(client: "SyncPrefectClient", name: str, slots: int) -> Thing:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectNotFound

    def read() -> Mapping[str, Any] | None:
        try:
            return {"slots": client.read_global_concurrency_limit_by_name(name).limit}
        except ObjectNotFound:
            return None

    def create() -> None:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))

    def update(changes: Mapping[str, Any]) -> None:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=changes["slots"]))

    return Thing("limit", name, {"slots": slots}, read, create, update)


def entries() -> list[dict[str, Any]]:
    """The deployments of deployment/prefect.yaml."""
    return yaml.safe_load(PREFECT_FILE.read_text())["deployments"]


def _deployment(client: "SyncPrefectClient", entry: Mapping[str, Any]) -> Thing:
    """A deployment without its schedules."""
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.client.schemas.objects import ConcurrencyOptions

    flow, form = _flow_and_form(entry["entrypoint"])
    pool: Mapping[str, Any] = entry["work_pool"]
    limit: Mapping[str, Any] | None = entry.get("concurrency_limit")
    wanted: dict[str, Any] = {
        "entrypoint": entry["entrypoint"],
        "pull_steps": [{_SET_DIRECTORY: {"directory": os.environ.get(HOME) or str(ROOT)}}],
        "parameter_openapi_schema": form,
        "enforce_parameter_schema": True,
        "description": entry["description"],
        "tags": entry["tags"],
        "parameters": entry.get("parameters", {}),
        "work_pool_name": pool["name"],
        "work_queue_name": pool["work_queue_name"],
        "job_variables": pool.get("job_variables", {}),
        "at_once": None if limit is None else [limit["limit"], limit["collision_strategy"]],
    }
    name = f"{flow.name}/{entry['name']}"

    def read() -> Mapping[str, Any] | None:
        there = _read_deployment(client, name)
        if there is None:
            return None
        at_once = there.global_concurrency_limit
        options = there.concurrency_options
        content = {field: getattr(there, field) for field in wanted if field != "at_once"}
        strategy = None if options is None else options.collision_strategy.value
        return {**content, "at_once": None if at_once is None else [at_once.limit, strategy]}

    def fields(content: Mapping[str, Any]) -> dict[str, Any]:
        """As Prefect's client takes them."""
        given = {field: value for field, value in content.items() if field != "at_once"}
        if content.get("at_once"):
            given["concurrency_limit"], strategy = content["at_once"]
            given["concurrency_options"] = ConcurrencyOptions(collision_strategy=strategy)
        return given

    def create() -> None:
        client.create_deployment(flow_id=client.create_flow(flow), name=entry["name"], **fields(wanted))

    def update(changes: Mapping[str, Any]) -> None:
        there = _read_deployment(client, name)
        assert there is not None
        client.update_deployment(there.id, DeploymentUpdate.model_validate(fields(changes)))

    ours = frozenset({"entrypoint", "pull_steps", "parameter_openapi_schema"})
    return Thing("deployment", name, wanted, read, create, update, ours)


@cache
def _flow_and_form(entrypoint: str) -> "tuple[Flow[Any, Any], dict[str, Any]]":
    """A flow, and the schema of its parameters."""
    path, attribute = entrypoint.split(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    flow: Flow[Any, Any] = getattr(module, attribute)
    return flow, _form(flow)


def _form(flow: "Flow[Any, Any]") -> dict[str, Any]:
    """The schema of a flow's parameters; Prefect's own leaves out what `Field` says of them."""
    from prefect.utilities.callables import parameter_schema
    from pydantic.fields import FieldInfo

    form = parameter_schema(flow).model_dump_for_openapi()
    for name, hint in get_type_hints(flow.fn, include_extras=True).items():
        for said in getattr(hint, "__metadata__", ()):
            if isinstance(said, FieldInfo) and said.description:
                form["properties"][name]["description"] = said.description
    return form


def _read_deployment(client: "SyncPrefectClient", name: str) -> "DeploymentResponse | None":
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _schedule(client: "SyncPrefectClient", deployment: str, entry: Mapping[str, Any]) -> Thing:
    """A schedule of a deployment. Whether it is active is said when it is made, and never again."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.schedules import CronSchedule

    slug: str = entry["slug"]
    when = CronSchedule(cron=entry["cron"], timezone=entry["timezone"])

    def there() -> tuple["DeploymentResponse", DeploymentSchedule | None]:
        found = _read_deployment(client, deployment)
        assert found is not None
        return found, next((schedule for schedule in found.schedules if schedule.slug == slug), None)

    def read() -> Mapping[str, Any] | None:
        _, schedule = there()
        return None if schedule is None else {"when": schedule.schedule.model_dump(mode="json")}

    def create() -> None:
        found, _ = there()
        made = DeploymentScheduleCreate(schedule=when, active=entry["active"], slug=slug)
        client.create_deployment_schedules(found.id, [made])

    def update(changes: Mapping[str, Any]) -> None:
        found, schedule = there()
        assert schedule is not None
        client.update_deployment_schedule(found.id, schedule.id, schedule=when)

    return Thing("schedule", f"{deployment} {slug}", {"when": when.model_dump(mode="json")}, read, create, update)


def _failures(client: "SyncPrefectClient", memory: Memory, reset: bool) -> Line:
    from prefect.exceptions import ObjectNotFound

    try:
        block = client.read_block_document_by_name(NOTIFY_BLOCK, "webhook").id
    except ObjectNotFound:
        note = f"there is no block {NOTIFY_BLOCK} to tell"
        return Line(kind=automations.KIND, name=automations.FAILURES, state="off", note=note)
    return settle(automations.failures(client, TAG, block), memory, reset=reset)


def _publications(client: "SyncPrefectClient", memory: Memory, reset: bool) -> Line:
    from tasks.announce import PUBLISHED

    deployment = _read_deployment(client, AFTER_PUBLICATION)
    if deployment is None:
        note = f"there is no deployment {AFTER_PUBLICATION} to run"
        return Line(kind=automations.KIND, name=automations.PUBLICATIONS, state="off", note=note)
    return settle(automations.publications(client, PUBLISHED, deployment.id), memory, reset=reset)
