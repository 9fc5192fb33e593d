"""A Prefect server: whether it answers, and holds what `sonoforge deploy` puts there."""

import email.utils
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from packaging.version import InvalidVersion, Version
from prefect import __version__
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus, WorkPool
from prefect.client.schemas.responses import DeploymentResponse, GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import deploying
from flows.doctor import runs
from flows.doctor.findings import Finding, clock
from tasks.connect import BLOCK, SonoforgeStore

CONNECT_S, ANSWER_S = 3.0, 10.0
"""For a connection, and for one answer: a busy server takes seconds."""

DEPLOY = "sonoforge deploy (with --reset where somebody deleted it)"
LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
_IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
_PAGE = 200
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_server() -> Iterator[Finding]:
    """Everything on the server that PREFECT_API_URL names, or that there is none."""
    url = PREFECT_API_URL.value()
    if not url:
        yield Finding(
            check="server",
            level="information",
            found="PREFECT_API_URL is not set: a build starts a temporary Prefect API of its own, and nothing is "
            "scheduled",
            advice="for schedules, forms and several machines: prefect server start, then export "
            "PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
        return
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": httpx.Timeout(ANSWER_S, connect=CONNECT_S)}, sync_client=True) as client,
    ):
        found = list(_reached(client, url))
        yield from found
        if any(finding.level == "failure" for finding in found):
            return
        try:
            pools = client.read_work_pools(limit=_PAGE)
            deployments = client.read_deployments(limit=_PAGE)
            ours = _ours(deployments)
            yield from _pools(client, pools, deployments, url)
            yield from _limits(client)
            yield from _deployments(ours, url)
            yield from _blocks(client, ours.values())
            yield from runs.check_runs(client, list(ours.values()))
        except (httpx.HTTPError, ValueError) as error:
            yield _unanswered(url, error)


def _reached(client: SyncPrefectClient, url: str) -> Iterator[Finding]:
    """Whether there is a Prefect API that we may use, and of which version."""
    try:
        health = client.request("GET", "/health")
        if not _is_true(health):
            kind = health.headers.get("content-type", "nothing").split(";")[0]
            yield _no_api(url, f"answers with {kind}")
            return
        yield from _clocks(health)
        theirs = str(client.request("GET", "/admin/version").json())
    except (httpx.HTTPError, ValueError) as error:
        yield _unanswered(url, error)
        return
    yield Finding(check="server", level="ok", found=f"Prefect {theirs} answers at {url}")
    with suppress(InvalidVersion):  # of somebody's own build
        if Version(theirs) < Version(__version__):
            yield Finding(
                check="server: version",
                level="failure" if Version(theirs).major != Version(__version__).major else "warning",
                found=f"the server runs Prefect {theirs}, older than {__version__} here: it may refuse what is sent",
                advice=f"on the server: pip install prefect=={__version__}, then start it again",
            )


def _is_true(answer: httpx.Response) -> bool:
    try:
        return answer.json() is True
    except json.JSONDecodeError:
        return False


def _clocks(answer: httpx.Response) -> Iterator[Finding]:
    with suppress(KeyError, ValueError):  # a proxy that leaves the date out, or writes it otherwise
        yield clock("server: clock", email.utils.parsedate_to_datetime(answer.headers["date"]))


def _no_api(url: str, what: str) -> Finding:
    with_api = f"{url.rstrip('/')}/api"
    advice = f"export PREFECT_API_URL={with_api}" if not url.rstrip("/").endswith("/api") else f"curl -i {url}/health"
    return Finding(
        check="server",
        level="failure",
        found=f"{url} is no Prefect API: /health {what}, expected the JSON true",
        advice=f"{advice} (is it another program, a login page or a proxy that answers?)",
    )


def _unanswered(url: str, error: Exception) -> Finding:
    """What went wrong while the server was asked."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        path = urlsplit(str(error.request.url)).path
        if status in (401, 403):
            return Finding(
                check="server: credentials",
                level="failure",
                found=f"{url} answers {path} with {status}: it does not take the credentials of this environment",
                advice="export PREFECT_API_AUTH_STRING=user:password (or PREFECT_API_KEY), as the server has it",
            )
        if path.endswith("/health"):
            return _no_api(url, f"answers with {status}")
        advice = (
            "look into the server's log. `database is locked`: PostgreSQL instead of SQLite; after an update of "
            "Prefect: prefect server database upgrade -y"
        )
        return Finding(check="server", level="failure", found=f"{url} answers {path} with {status}", advice=advice)
    if isinstance(error, httpx.TimeoutException):
        silence = CONNECT_S if isinstance(error, httpx.ConnectTimeout) else ANSWER_S
        found = f"{url} does not answer within {silence:g} s"
        return Finding(check="server", level="failure", found=found, advice=f"curl -m 5 {url}/health; {_start(url)}")
    if isinstance(error, httpx.HTTPError):
        said = f"nobody answers at {url}: {type(error).__name__}: {error}"
        return Finding(check="server", level="failure", found=said, advice=_start(url))
    found = f"{url} answers with something else than Prefect's API: {type(error).__name__}: {error}".splitlines()[0]
    return Finding(check="server", level="failure", found=found, advice=f"curl -i {url}/admin/version")


def _start(url: str) -> str:
    parts = urlsplit(url)
    return f"prefect server start --host {parts.hostname} --port {parts.port or 4200}; or correct PREFECT_API_URL"


def _pools(
    client: SyncPrefectClient, pools: list[WorkPool], deployments: list[DeploymentResponse], url: str
) -> Iterator[Finding]:
    """Work pools that deployments need, with workers that live."""
    there = {pool.name: pool for pool in pools}
    scheduled = {
        deployment.work_pool_name
        for deployment in deployments
        if not deployment.paused and any(schedule.active for schedule in deployment.schedules)
    }
    online = 0
    for name in deploying.POOLS:
        check = f"work pool {name}"
        pool = there.get(name)
        if pool is None:
            advice = f"{DEPLOY} makes it; or prefect work-pool create {name} --type process"
            yield Finding(check=check, level="failure", found="there is no such work pool", advice=advice)
            continue
        if pool.is_paused:
            found = "paused: its workers take no runs"
            yield Finding(check=check, level="warning", found=found, advice=f"prefect work-pool resume {name}")
        workers = client.read_workers_for_work_pool(name, limit=_PAGE)
        living = [worker.name for worker in workers if worker.status == WorkerStatus.ONLINE]
        online += len(living)
        if living:
            found = f"{len(living)} of {len(workers)} workers live: {', '.join(living[:5])}"
            yield Finding(check=check, level="ok", found=found)
            continue
        waits = name in scheduled
        found = "no worker lives" + (f" of {len(workers)} that it had" if workers else "")
        found += ", though schedules send runs to it" if waits else ": what is sent there waits"
        advice = f"on the machine that should work: prefect worker start --pool {name}"
        yield Finding(check=check, level="failure" if waits else "warning", found=found, advice=advice)
    yield _database(client, url, online)


def _database(client: SyncPrefectClient, url: str, workers: int) -> Finding:
    kind = _kind_of_database(client, url)
    if kind is None:
        return Finding(
            check="server: database",
            level="warning" if workers > 1 else "information",
            found="the server does not tell which it uses"
            + (f"; {workers} workers are too many for SQLite" if workers > 1 else ""),
            advice="on the server: prefect config view | grep DATABASE; PostgreSQL for more than one worker",
        )
    if kind == "SQLite" and workers > 1:
        return Finding(
            check="server: database",
            level="warning",
            found=f"SQLite, with {workers} workers: it answers `database is locked` to some",
            advice="PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://user@host/prefect for the server",
        )
    return Finding(check="server: database", level="ok", found=f"{kind}, {workers} workers live")


def _kind_of_database(client: SyncPrefectClient, url: str) -> str | None:
    """What the server says, else what a server of this machine was given or has open; None where nobody tells."""
    with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        driver = client.request("GET", "/admin/settings").json()["server"]["database"]["driver"]
        if driver:
            return "SQLite" if "sqlite" in driver else "PostgreSQL"
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return None
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            at = connection.laddr
            if connection.status == psutil.CONN_LISTEN and at and at.port == parts.port and connection.pid:
                process = psutil.Process(connection.pid)
                if given := process.environ().get("PREFECT_SERVER_DATABASE_CONNECTION_URL"):
                    return "SQLite" if given.startswith("sqlite") else "PostgreSQL"
                return "SQLite" if any(file.path.endswith(".db") for file in process.open_files()) else None
    return None


def _limits(client: SyncPrefectClient) -> Iterator[Finding]:
    """Global concurrency limits that builds acquire: a missing one fails them."""
    there = {limit.name: limit for limit in client.read_global_concurrency_limits(limit=_PAGE, offset=0)}
    with suppress(httpx.HTTPStatusError, KeyError, TypeError):  # a server that does not tell its settings
        if client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"] == _IN_MEMORY:
            yield Finding(
                check="limits",
                level="warning",
                found="the server notes in memory alone who holds a slot: after its restart those slots stay taken",
                advice=f"for the server: {LEASES}=prefect.server.concurrency.lease_storage.filesystem",
            )
    for name, slots in deploying.LIMITS.items():
        check, limit = f"limit {name}", there.get(name)
        if limit is None:
            found = "there is no such global concurrency limit: builds that ask for it fail"
            advice = f"{DEPLOY} makes it; or prefect gcl create {name} --limit {slots}"
            yield Finding(check=check, level="failure", found=found, advice=advice)
        elif not limit.active:
            found = "switched off: any number of builds run at once"
            yield Finding(check=check, level="warning", found=found, advice=f"prefect gcl enable {name}")
        elif limit.limit < 1:
            advice = f"prefect gcl update {name} --limit {slots}"
            yield Finding(check=check, level="failure", found="has no slots: every build waits for ever", advice=advice)
        else:
            yield _slots(client, check, limit)


def _slots(client: SyncPrefectClient, check: str, limit: GlobalConcurrencyLimitResponse) -> Finding:
    """Slots that are taken though nothing runs come back when their leases end, if the server still knows these."""
    taken = limit.active_slots or 0
    found = f"{taken} of {limit.limit} slots taken"
    if not taken or runs.are_running(client):
        return Finding(check=check, level="ok", found=found)
    return Finding(
        check=check,
        level="warning",
        found=f"{found}, though nothing is running",
        advice=f"if so for more than 5 minutes: prefect gcl update {limit.name} --active-slots 0",
    )


def _ours(deployments: Iterable[DeploymentResponse]) -> dict[tuple[str, str], DeploymentResponse]:
    """Those of deployment/prefect.yaml that are there, by entry point and name."""
    expected = {(entry["entrypoint"], entry["name"]) for entry in deploying.entries()}
    found = {(deployment.entrypoint or "", deployment.name): deployment for deployment in deployments}
    return {place: deployment for place, deployment in found.items() if place in expected}


def _deployments(there: Mapping[tuple[str, str], DeploymentResponse], url: str) -> Iterator[Finding]:
    """Those of deployment/prefect.yaml: whether they are there, where they run, when."""
    if not there:
        found = f"none of {deploying.PREFECT_FILE.name} is there: nothing can be started from the server"
        yield Finding(check="deployments", level="failure", found=found, advice=DEPLOY)
        return
    for entry in deploying.entries():
        entrypoint, name = entry["entrypoint"], entry["name"]
        check, deployment = f"deployment {name}", there.get((entrypoint, name))
        if deployment is None:
            found = f"there is no deployment {name} of {entrypoint}"
            yield Finding(check=check, level="failure", found=found, advice=DEPLOY)
            continue
        folder = _folder(deployment)
        if folder is not None and _is_wrong(folder, url):
            yield Finding(
                check=check,
                level="failure",
                found=f"runs in the folder {folder!r}, which is none: each of its runs fails",
                advice=f"export {deploying.HOME}=$PWD in the repository, then sonoforge deploy",
            )
            continue
        if deployment.paused:
            found = "paused as a whole: it runs neither on a schedule nor on demand"
            advice = f"prefect api PATCH /deployments/{deployment.id} --data '{{\"paused\": false}}'"
            yield Finding(check=check, level="warning", found=found, advice=advice)
            continue
        yield _schedules(check, deployment)


def _blocks(client: SyncPrefectClient, deployments: Iterable[DeploymentResponse]) -> Iterator[Finding]:
    """Blocks that deployments name as their store: whether they are there, not whether they open."""
    stores = {str(deployment.parameters.get("store", "")) for deployment in deployments}
    for store in sorted(name for name in stores if name.startswith(BLOCK)):
        name, check = store.removeprefix(BLOCK), f"store {store}"
        try:
            client.read_block_document_by_name(name, SonoforgeStore.get_block_type_slug())
        except ObjectNotFound:
            found = "deployments publish there, and there is no such block: each of their runs fails"
            yield Finding(check=check, level="failure", found=found, advice=f"{DEPLOY} --store URL")
        else:
            advice = f"whether it opens and can be written: sonoforge doctor --store {store}"
            yield Finding(check=check, level="ok", found=f"the block is there; {advice}")


def _schedules(check: str, deployment: DeploymentResponse) -> Finding:
    if not deployment.schedules:
        return Finding(check=check, level="ok", found="on demand")
    told = [f"{_when(schedule.schedule)}{'' if schedule.active else ' (paused)'}" for schedule in deployment.schedules]
    paused = [schedule for schedule in deployment.schedules if not schedule.active]
    return Finding(
        check=check,
        level="information" if paused else "ok",
        found=f"schedule {'; '.join(told)}",
        advice=f"to switch it on: prefect api PATCH /deployments/{deployment.id}/schedules/{paused[0].id} "
        "--data '{\"active\": true}', or the switch in the UI"
        if paused
        else "",
    )


def _when(schedule: Any) -> str:
    """A cron, interval or calendar rule as people write it."""
    rule = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None)
    text = str(rule) if rule else f"every {getattr(schedule, 'interval', schedule)}"
    zone = getattr(schedule, "timezone", None)
    return f"{text} {zone}" if zone else text


def _folder(deployment: DeploymentResponse) -> str | None:
    """The working folder that a deployment's runs go to; None where it says nothing of one."""
    for step in deployment.pull_steps or []:
        for name, given in step.items():
            if name.endswith("set_working_directory"):
                return str(given.get("directory") or "")
    return None


def _is_wrong(folder: str, url: str) -> bool:
    """Whether a working folder cannot be one; those of other machines are not known here."""
    if not folder or "{{" in folder:
        return True
    return urlsplit(url).hostname in _LOOPBACK and not Path(folder).is_dir()
