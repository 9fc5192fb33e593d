"""Announce a build: on its page in Prefect a table of scores and a picture; to whoever waits for versions, an event."""

import base64
import functools
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import ParamSpec

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventOrder, EventResourceFilter
from prefect.settings import PREFECT_API_URL

from storage.records import Manifest, Outcome, SetScore

Told = ParamSpec("Told")

PUBLIC_URL = "SONOFORGE_PUBLIC_URL"
"""Environment variable: where a web server shows the store; with it, pages link and show files by http."""

PUBLISHED = "sonoforge.version.published"
"""Name of the event of a new version; its resource is `sonoforge.dataset.<name>`."""

KEPT_AFTER, KEPT_FOR = timedelta(minutes=1), timedelta(days=1)
"""How long a server may take to keep an event, and for how long it surely remembers one."""


def _on_page(announce: Callable[Told, None]) -> Callable[Told, None]:
    """Announce where there is a page, and lose no work where Prefect does not answer."""

    @functools.wraps(announce)
    def tried(*args: Told.args, **kwargs: Told.kwargs) -> None:
        if not _is_run():
            return
        try:
            announce(*args, **kwargs)
        except httpx.HTTPError as error:
            get_run_logger().warning("Prefect's API does not take %s: %s", announce.__name__, error)

    return tried


@_on_page
def announce_version(dataset: str, version: int, digest: str, uri: str, store: str, outcome: Outcome) -> None:
    """Tell Prefect of a version that has just been published, so that automations can start what comes after it.

    `store` is what the flow was given to find its store: who reacts opens the same one. It is no secret: credentials
    are in the environment or in a block.
    """
    emit_event(
        PUBLISHED,
        resource={"prefect.resource.id": _resource(dataset), "prefect.resource.name": dataset},
        payload={
            "name": dataset,
            "version": version,
            "digest": digest,
            "uri": uri,
            "store": store,
            "kept": outcome.kept,
            "scores": {score.name: score.value for score in outcome.scores},
        },
    )


def is_untold(manifest: Manifest) -> bool:
    """Whether the configured server never had the event of a version that was there already.

    Its build was killed after it published. Not known, and so False, of versions of the last minute or older than a
    day, and where no server is configured or it does not answer.
    """
    published = datetime.fromisoformat(manifest.created)
    if not (_is_run() and PREFECT_API_URL.value() and KEPT_AFTER < datetime.now(UTC) - published < KEPT_FOR):
        return False
    about = EventFilter(
        occurred=EventOccurredFilter.model_validate({"since": published}),
        event=EventNameFilter(name=[PUBLISHED]),
        resource=EventResourceFilter(id=[_resource(manifest.dataset)]),
        order=EventOrder.ASC,  # its own is among the first
    )
    try:
        with get_client(sync_client=True) as client:
            told = client.read_events(filter=about, limit=50).events
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect's API does not say which versions it was told of: %s", error)
        return False
    return all(event.payload.get("digest") != manifest.digest for event in told)


@_on_page
def announce_source(dataset: str, why: str) -> None:
    """Put on the run's page what a look at a dataset's source found."""
    create_markdown_artifact(why, key=f"{_key(dataset)}-source", description=f"Source of {dataset}")


@_on_page
def announce_verified(manifest: Manifest, problems: Sequence[str]) -> None:
    """Put on the run's page what a published version is, and whether it arrived whole."""
    name = f"{manifest.dataset}@{manifest.version}"
    verdict = f"{len(problems)} problems" if problems else "every byte is as it was published"
    text = f"# {name}: {verdict}\n\n{manifest.kept} samples, digest `{manifest.digest}`, {manifest.created}\n"
    text += "".join(f"\n- {problem}" for problem in problems) + "\n\n| score | value |\n|---|---|\n"
    for score in manifest.scores:
        text += f"| {score.name} | {'refused' if score.value is None else f'{score.value:.4g}'} |\n"
    create_markdown_artifact(text, key=f"{_key(manifest.dataset)}-published", description=f"{name}: {verdict}")


@_on_page
def announce_scores(dataset: str, scores: Sequence[SetScore]) -> None:
    """Put the set scores on the run's page, each with its N, extractor, interval and floor."""
    rows = [
        {
            "score": score.name,
            "value": "refused" if score.value is None else round(score.value, 4),
            "95 % interval": _interval(score.low, score.high),
            "real vs real": None if score.floor is None else round(score.floor, 4),
            "real vs real 95 %": _interval(score.floor_low, score.floor_high),
            "× its floor": None if score.over_floor is None else round(score.over_floor, 2),
            "p": None if score.p is None else float(f"{score.p:.2g}"),
            "damaged on purpose": None if score.control is None else round(score.control, 4),
            "N real": score.n_real,
            "N synthetic": score.n_synthetic,
            "extractor": score.extractor,
            "note": score.note,
        }
        for score in scores
    ]
    create_table_artifact(rows, key=f"{_key(dataset)}-scores", description=f"Set scores of {dataset}")


@_on_page
def announce_gate(dataset: str, outcome: Outcome, problems: Sequence[str] = ()) -> None:
    """Put the gate's verdict on the run's page: what it found, and what would change that."""
    lists = (("Problems", problems), ("Warnings", outcome.warnings), ("What would change that", outcome.advice))
    text = f"# {dataset}: {outcome.gate}\n\n{outcome.kept} of {outcome.planned} planned samples kept.\n"
    text += "".join(f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in lines) for title, lines in lists if lines)
    create_markdown_artifact(text, key=f"{_key(dataset)}-gate", description=f"Gate of {dataset}: {outcome.gate}")


@_on_page
def announce_samples(dataset: str, sheet: bytes, sheet_key: str, report_key: str) -> None:
    """Put a contact sheet on the run's page, by http where the store is served, else inside the page."""
    public = os.environ.get(PUBLIC_URL, "").rstrip("/")
    caption = "Held-out real scans in the top row, synthetic ones below; masks outlined."
    if public:
        create_image_artifact(f"{public}/{sheet_key}", key=f"{_key(dataset)}-samples", description=caption)
        link = f"[Report]({public}/{report_key})"
    else:
        link = f"Report: `{report_key}` in the store. Set {PUBLIC_URL} to link it here."
    picture = f"{public}/{sheet_key}" if public else f"data:image/png;base64,{base64.b64encode(sheet).decode()}"
    text = f"# {dataset}\n\n![samples]({picture})\n\n{caption}\n\n{link}\n"
    create_markdown_artifact(text, key=f"{_key(dataset)}-report", description=f"Samples and report of {dataset}")


def _resource(dataset: str) -> str:
    return f"sonoforge.dataset.{dataset}"


def _is_run() -> bool:
    """Whether there is a page to put anything on: a task called as a plain function has none."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _key(dataset: str) -> str:
    return dataset.replace("_", "-")
