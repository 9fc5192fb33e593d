"""What people see of a build while it runs and after it has ended: name and tags, its slot, why it stopped, what to do.

Nothing here fails a build: where the Prefect API does not answer, its page says less.
"""

import contextlib
import logging
import shlex
import sys
from collections.abc import Generator, Sequence
from contextvars import ContextVar

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Failed

from flows import temporary
from tasks import stop
from tasks.reuse import Done

_COMMAND: ContextVar[str | None] = ContextVar("command", default=None)

LEASE_S = 60.0
"""Seconds for which a build that died keeps its slot."""


def started_by(arguments: Sequence[str]) -> None:
    """Remember the command line that builds, to say how to go on after a failure."""
    _COMMAND.set(shlex.join(["sonoforge", *arguments]))


def quiet() -> None:
    """No progress bars of libraries between the lines of a log."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def rename(text: str, *tags: str) -> None:
    """Rename this flow run, and add tags to it."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    run.name, run.tags = text, sorted({*run.tags, *tags})
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, name=text, tags=run.tags)
    except httpx.HTTPError as error:
        tell(f"this run could not be renamed: {error}")


@contextlib.contextmanager
def slot(limit: str | None) -> Generator[None]:
    """Hold a slot of a global concurrency limit, once one is free; None: hold nothing.

    A build whose lease could not be renewed goes on: a server that restarts should not end it.

    Raises:
        ValueError: there is no such limit.
    """
    if limit is None:
        yield
        return
    with get_client(sync_client=True) as client:
        try:
            found = client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound as error:
            raise ValueError(
                f"limit: {client.api_url} has no global concurrency limit {limit!r}: `sonoforge deploy` makes those of "
                "its deployments; `prefect gcl create` makes others"
            ) from error
    if found.active_slots >= found.limit:
        tell(f"all {found.limit} slots of {limit} are taken; this build waits for one", logging.INFO)
    with concurrency(limit, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False):
        yield


def failed(dataset: str, done: Sequence[Done], error: Exception) -> State[object]:
    """Say where and why a build stopped; the state of its flow run, which raises `error` again for who called it."""
    text = _told(dataset, done, f"{type(error).__name__}: {error}", error)
    expected = isinstance(error, (ValueError, OSError, stop.StoppedError))
    tell(text, logging.ERROR, None if expected else error)
    name = "TimedOut" if isinstance(error, stop.OutOfTimeError) else "Failed"
    return Failed(message=text, data=error, name=name)


def interrupted(dataset: str, done: Sequence[Done], error: BaseException) -> None:
    """Say where a build was interrupted: cancelled, or ended by a signal."""
    tell(_told(dataset, done, "it was cancelled or interrupted", error))


def tell(text: str, level: int = logging.WARNING, error: BaseException | None = None) -> None:
    """Log a line where logs are read, else print it: the command line shows no logs."""
    try:
        logger = get_run_logger()
    except RuntimeError:  # not in a run
        logger = logging.getLogger(__name__)
    if logger.isEnabledFor(level):
        logger.log(level, text, exc_info=error)
    elif level >= logging.WARNING:
        print(text, file=sys.stderr, flush=True)


def _told(dataset: str, done: Sequence[Done], why: str, error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    notes = sorted(dict.fromkeys(notes), key=lambda note: note.startswith("shard"))
    where = ", ".join(notes) or (f"after step {done[-1].step}" if done else "before its first step")
    then, resume = "What was finished is kept. Once the cause is gone, this goes on from there:", _resume()
    if FlowRunContext.get() is not None:
        title = f"{dataset} stopped {where}"
        page = f"# {title}\n\n```\n{why}\n```\n\n{then}\n\n```\n{resume}\n```\n"
        # A cancelled run has 30 s for its last words; Prefect would try for 60.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 2}), contextlib.suppress(httpx.HTTPError):
            create_markdown_artifact(page, key=f"{dataset.replace('_', '-')}-stopped", description=title)
    return f"{dataset} stopped {where}: {why}\n{then} {resume}"


def _resume() -> str:
    command = _COMMAND.get()
    if command is not None:
        return command
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        run = context.flow_run.id
        with contextlib.suppress(httpx.HTTPError):
            if deployment.id is not None:
                run = flow_run.root_flow_run_id or run
                return f"prefect flow-run retry {run}"
    return "the same call with the same recipe and store"


@contextlib.contextmanager
def events() -> Generator[None]:
    """Events from inside reach the server, and do not keep the process from ending where there is none any more.

    Prefect tries each for 10 s, also when all is done and the process only waits for them: with hundreds, for an hour.
    One that could not be sent is sent again with a later one. No client of our own: Prefect drops events for those it
    does not know.
    """
    if FlowRunContext.get() is None:  # called as a plain function: there is nobody to tell
        yield
        return
    EventsWorker.set_client_override(PrefectEventsClient, api_url=temporary.address(), reconnection_attempts=1)
    try:
        yield
    finally:
        EventsWorker.set_client_override(None)
