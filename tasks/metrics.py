"""Metrics of steps for Prometheus: served on a port, or in a file that node_exporter's textfile collector reads.

Off unless `SONOFORGE_METRICS` says where: ":9464" or "host:9464" to serve, a folder or a file ending in .prom to write.
Then every process that builds exports its own; where it says nothing, prometheus_client is not even imported.
"""

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from storage.records import Outcome, Record

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

    from tasks.reuse import Done

VARIABLE = "SONOFORGE_METRICS"
FILE = "sonoforge.prom"
WRITE_SECONDS = 5.0
"""Between two writings of the file; what ends a step is written at once."""

_ADDRESS = re.compile(r"(?P<host>[\w.-]*|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_log = logging.getLogger("sonoforge.metrics")


class Served(Record):
    """An address to serve metrics at; host "" for all of this machine."""

    host: str
    port: int


def parse(text: str) -> Served | Path:
    """Where metrics go.

    >>> parse(":9464"), parse("/var/lib/node_exporter").name
    (Served(host='', port=9464), 'sonoforge.prom')

    Raises:
        ValueError: it is neither an address nor a folder or .prom file.
    """
    address = _ADDRESS.fullmatch(text)
    if address is not None and int(address["port"]) < 2**16:
        return Served(host=address["host"].strip("[]"), port=int(address["port"]))
    path = Path(text).expanduser()
    if "://" not in text:
        if path.is_dir() or text.endswith("/"):
            return path / FILE
        if path.suffix == ".prom":
            return path
    raise ValueError(
        f"{VARIABLE} is {text!r}; expected :PORT or HOST:PORT (up to 65535) to serve at, a folder that is there, or "
        "a file ending in .prom"
    )


class Metrics:
    """What one process exports. Nothing here fails a build: what cannot be exported is a warning, once."""

    def __init__(self, where: Served | Path) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, Summary, start_http_server

        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Gpus())  # type: ignore[arg-type] - a collector is whatever has `collect`
        of_step, of_dataset = ("step", "unit"), ("dataset",)
        self._items = Counter("sonoforge_items", "Items done, reused ones too", of_step, registry=self._registry)
        self._rate = Gauge(
            "sonoforge_items_per_second", "Items a second since the step began", of_step, registry=self._registry
        )
        self._share = Gauge(
            "sonoforge_progress_ratio", "Share of the step's items that are done", of_step, registry=self._registry
        )
        self._steps = Summary(
            "sonoforge_step_seconds", "Seconds of steps that ended", ("step", "reused"), registry=self._registry
        )
        self._samples = Gauge(
            "sonoforge_samples", "Planned samples by how they ended", ("dataset", "verdict"), registry=self._registry
        )
        self._rejected = Gauge(
            "sonoforge_rejected_samples", "Rejected samples by reason", ("dataset", "reason"), registry=self._registry
        )
        self._acceptance = Gauge(
            "sonoforge_acceptance_ratio",
            "Share of the planned samples that are kept",
            of_dataset,
            registry=self._registry,
        )
        self._scores = Gauge(
            "sonoforge_set_score", "Scores of the kept set", ("dataset", "score"), registry=self._registry
        )
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._written = 0.0
        if isinstance(where, Path):
            self._path = where
            atexit.register(self.write)
            return
        try:
            start_http_server(where.port, where.host or "0.0.0.0", self._registry)
        except OSError as error:
            _log.warning(
                "no metrics: cannot serve them at port %s (%s). Another build on this machine? Give each its own "
                "port, or a .prom file, in %s",
                where.port,
                error,
                VARIABLE,
            )

    def advanced(self, step: str, unit: str, count: float, rate: float, share: float) -> None:
        """A step of a bar moved on by `count` items."""
        self._items.labels(step, unit).inc(count)
        self._rate.labels(step, unit).set(rate)
        self._share.labels(step, unit).set(share)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def finished(self, step: str, reused: bool, seconds: float) -> None:
        """A step ended."""
        self._steps.labels(step, str(reused).lower()).observe(seconds)
        self.write()

    def decided(self, dataset: str, outcome: Outcome) -> None:
        """The samples of a dataset were judged."""
        rejected = sum(outcome.rejected.values())
        for family in (self._rejected, self._scores):
            family.remove_by_labels({"dataset": dataset})  # those of a curation before
        for verdict, count in (("kept", outcome.kept), ("rejected", rejected), ("failed", outcome.failed)):
            self._samples.labels(dataset, verdict).set(count)
        for reason, count in outcome.rejected.items():
            self._rejected.labels(dataset, reason).set(count)
        self._acceptance.labels(dataset).set(outcome.kept / max(outcome.planned, 1))
        for score in outcome.scores:
            if score.value is not None:
                self._scores.labels(dataset, score.name).set(score.value)
        self.write()

    def write(self) -> None:
        """Write the file, if it is one; whoever reads it finds the old one or the new one."""
        if self._path is None:
            return
        from prometheus_client import write_to_textfile

        with self._lock:
            self._written = time.monotonic()
            try:
                write_to_textfile(str(self._path), self._registry)
            except OSError as error:
                _log.warning("no more metrics: cannot write %s (%s); correct %s", self._path, error, VARIABLE)
                self._path = None


class _Gpus:
    """Memory of the GPUs that this process computes on, asked when somebody looks."""

    def collect(self) -> Generator["GaugeMetricFamily"]:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(
            "sonoforge_gpu_memory_bytes",
            "GPU memory: used by anybody, held by this process' tensors, and the most they held",
            labels=("device", "kind"),
        )
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():  # asking for more would take memory of the GPU
            for device in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(device)
                family.add_metric((str(device), "used"), total - free)
                family.add_metric((str(device), "tensors"), torch.cuda.memory_allocated(device))
                family.add_metric((str(device), "peak"), torch.cuda.max_memory_allocated(device))
        yield family


@cache
def _started(text: str) -> Metrics:
    return Metrics(parse(text))


def current() -> Metrics | None:
    """What this process exports; None where nobody asked for it."""
    text = os.environ.get(VARIABLE)
    return _started(text) if text else None


def silence() -> None:
    """In a process that works for a build elsewhere, which counts what it does."""
    os.environ.pop(VARIABLE, None)


def finished(done: "Done") -> "Done":
    """Count a step that ended; it is handed back."""
    metrics = current()
    if metrics is not None:
        metrics.finished(done.step, done.reused, done.seconds)
    return done


def decided(dataset: str, outcome: Outcome) -> None:
    """Count what became of a dataset's samples."""
    metrics = current()
    if metrics is not None:
        metrics.decided(dataset, outcome)
