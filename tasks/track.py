"""Track a long step: a bar on the terminal, lines in a log, a progress artifact on Prefect's page, metrics."""

import logging
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from tasks import metrics, stop

LOG = "SONOFORGE_LOG"
"""Environment variable: "json" for log lines as JSON objects; Prefect's own formatter writes them."""

LINE_SECONDS = 15.0
ARTIFACT_SECONDS = 5.0

_log = logging.getLogger("sonoforge.progress")
_lock = threading.Lock()
_open: dict[str, "_Bar"] = {}
_display: Progress | None = None


class _Rate(ProgressColumn):
    """Items per second and time left."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        rate = task.speed or task.finished_speed or 0.0
        return Text(
            f"{rate:6.1f} {task.fields['unit']}/s   {'--' if left is None else int(left)} s left",
            style="cyan",
        )


class _Bar:
    """One long step: counts items and tells whoever watches."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.count = 0.0
        self.start = self.last_line = self.last_artifact = time.monotonic()
        self.artifact: UUID | None = None
        self.metrics = metrics.current()
        self.task = None if _display is None else _display.add_task(what, total=total, unit=unit)
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            with _or_without():
                made = create_progress_artifact(0.0, key=_artifact_key(what), description=self.line())
                self.artifact = made if isinstance(made, UUID) else None

    def rate(self) -> float:
        """Items a second since the step began."""
        return self.count / max(time.monotonic() - self.start, 1e-9)

    def line(self) -> str:
        """Where the step stands, in one line."""
        rate = self.rate()
        left = f"{max(self.total - self.count, 0) / rate:.0f} s left" if rate else "time left unknown"
        return f"{self.what}: {self.count:.0f}/{self.total:.0f} {self.unit}, {rate:.1f} {self.unit}/s, {left}"

    def advance(self, count: float, *, last: bool = False) -> None:
        """Count `count` more items."""
        now = time.monotonic()
        self.count += count
        if self.metrics is not None:
            self.metrics.advanced(self.what, self.unit, count, self.rate(), self.count / max(self.total, 1))
        if _display is not None and self.task is not None:
            _display.update(self.task, completed=self.count)
        elif now - self.last_line > LINE_SECONDS:
            self.last_line = now
            self.say()
        if self.artifact is not None and (last or now - self.last_artifact > ARTIFACT_SECONDS):
            self.last_artifact = now
            percent = 100.0 * self.count / max(self.total, 1)
            with _or_without():  # the next turn tries again
                update_progress_artifact(self.artifact, progress=min(percent, 100.0), description=self.line())

    def say(self) -> None:
        """Tell who reads the log where the step stands."""
        if not _is_json():
            print(self.line(), file=sys.stderr, flush=True)
            return
        _log.setLevel(logging.INFO)
        about = {"step": self.what, "done": self.count, "total": self.total, "unit": self.unit}
        _log.info(self.line(), extra={**about, "per_second": round(self.rate(), 3)})


@contextmanager
def _or_without() -> Generator[None]:
    """A server that is away costs the page, not the build: Prefect would try for a minute, and all who draw wait."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), suppress(httpx.HTTPError):
        yield


@contextmanager
def display() -> Generator[None]:
    """Draw bars on standard error while inside, if that is a terminal; else tracked steps print lines."""
    global _display
    console = Console(stderr=True)
    if not console.is_terminal or _is_json():
        yield
        return
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, console=console) as progress:
        _display = progress
        try:
            yield
        finally:
            _display = None


@contextmanager
def track(what: str, total: float, unit: str = "images") -> Generator[None]:
    """Open the bar of a long step of `total` items; `advance(what, n)` moves it from any thread."""
    bar = _Bar(what, total, unit)
    with _lock:
        _open[what] = bar
    try:
        yield
    finally:
        with _lock:
            del _open[what]
            bar.advance(0, last=True)


def advance(what: str, count: float) -> None:
    """Count `count` more items of the step `what`, where its bar is open in this process.

    Raises:
        StoppedError: the run is to stop, which it does here, between two batches.
    """
    stop.check()
    with _lock:
        bar = _open.get(what)
        if bar is not None:
            bar.advance(count)


def _is_json() -> bool:
    return os.environ.get(LOG) == "json"


def _artifact_key(what: str) -> str:
    return "progress-" + "".join(c if c.isalnum() else "-" for c in what.lower())
