"""Metrics of steps: nothing by default, else what Prometheus reads; and log lines as JSON where asked for."""

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from storage import keys
from storage.records import Outcome, Ref, SetScore
from storage.store import Store
from tasks import metrics, track
from tasks.reuse import Done, reuse
from tests import REPOSITORY
from tests.servers.supervisor import free_ports

OUTCOME = Outcome(
    planned=48,
    kept=36,
    rejected={"segmenter_dice": 7, "lesion_presence": 3},
    failed=2,
    scores=[
        SetScore(name="kid", value=0.25, low=0.1, high=0.4, n_real=44, n_synthetic=36, extractor="fake"),
        SetScore(
            name="fid", value=None, low=None, high=None, n_real=44, n_synthetic=36, extractor="fake", note="refused"
        ),
    ],
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process writes its metrics during the test."""
    monkeypatch.setenv(metrics.VARIABLE, f"{tmp_path}/")
    return tmp_path / metrics.FILE


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels, these in the order of their names, as Prometheus' own parser reads them."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of_ours(file: Path) -> dict[tuple[str, ...], float]:
    return {key: value for key, value in samples(file.read_text()).items() if key[0].startswith("sonoforge")}


def test_a_step_counts_its_items_and_says_how_fast_it_is(file: Path) -> None:
    with track.track("synthesize", 40):
        threads = [threading.Thread(target=track.advance, args=("synthesize", 2.5)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    metrics.finished(Done(step="synthesize", ref=Ref(key="k", sha256="s"), reused=False, seconds=2.0))
    found = of_ours(file)
    assert found["sonoforge_items_total", "synthesize", "images"] == 20
    assert found["sonoforge_progress_ratio", "synthesize", "images"] == 0.5
    assert found["sonoforge_items_per_second", "synthesize", "images"] > 20
    assert "process_resident_memory_bytes" in file.read_text()


def test_steps_that_end_are_timed_and_reused_ones_told_apart(file: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def make(key: str) -> Ref:
        where = keys.step_file("draw", key, "out")
        store.put(where, b"pixels")
        return Ref(key=where, sha256="ab")

    done = [reuse(store, "draw", 1, {}, [], make) for _ in range(3)]
    found = of_ours(file)
    assert found["sonoforge_step_seconds_count", "false", "draw"] == 1
    assert found["sonoforge_step_seconds_count", "true", "draw"] == 2
    assert found["sonoforge_step_seconds_sum", "false", "draw"] == pytest.approx(done[0].seconds)


def test_what_became_of_the_samples(file: Path) -> None:
    metrics.decided("demo", OUTCOME)
    found = of_ours(file)
    assert found["sonoforge_acceptance_ratio", "demo"] == 0.75
    verdicts = {key[2]: value for key, value in found.items() if key[0] == "sonoforge_samples"}
    assert verdicts == {"kept": 36, "rejected": 10, "failed": 2}
    reasons = {key[2]: value for key, value in found.items() if key[0] == "sonoforge_rejected_samples"}
    assert reasons == {"segmenter_dice": 7, "lesion_presence": 3}
    scores = {key[2]: value for key, value in found.items() if key[0] == "sonoforge_set_score"}
    assert scores == {"kid": 0.25}, "a refused score has no value"


def test_another_curation_leaves_no_reason_of_the_one_before(file: Path) -> None:
    metrics.decided("demo", OUTCOME)
    metrics.decided("other", OUTCOME)
    metrics.decided("demo", OUTCOME.model_copy(update={"kept": 43, "rejected": {"lesion_presence": 3}, "scores": []}))
    found = of_ours(file)
    assert ("sonoforge_rejected_samples", "demo", "segmenter_dice") not in found
    assert ("sonoforge_set_score", "demo", "kid") not in found
    assert found["sonoforge_rejected_samples", "other", "segmenter_dice"] == 7


def test_whoever_reads_the_file_finds_a_whole_one(file: Path) -> None:
    metrics.decided("demo", OUTCOME)
    whole, ended = len(of_ours(file)), threading.Event()
    torn: list[str] = []

    def read() -> None:
        while not ended.is_set():
            text = file.read_text()
            if not text.endswith("\n") or len(samples(text)) < whole:
                torn.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        metrics.decided("demo", OUTCOME)
    ended.set()
    reader.join()
    assert not torn


def test_metrics_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv(metrics.VARIABLE, f"127.0.0.1:{port}")
    metrics.decided("demo", OUTCOME)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = samples(answer.read().decode())
    assert found["sonoforge_acceptance_ratio", "demo"] == 0.75


def test_a_port_that_is_taken_costs_the_metrics_not_the_build(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv(metrics.VARIABLE, f"127.0.0.1:{taken.getsockname()[1]}")
        metrics.decided("demo", OUTCOME)
        metrics.decided("demo", OUTCOME)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "sonoforge.metrics"]
    assert "no metrics: cannot serve them" in said
    assert "a .prom file" in said


def test_a_folder_that_goes_away_costs_the_metrics_not_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path / "nowhere" / "build.prom"))
    metrics.decided("demo", OUTCOME)
    metrics.decided("demo", OUTCOME)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "sonoforge.metrics"]
    assert "no more metrics: cannot write" in said


@pytest.mark.parametrize("text", ["9464", ":99999", "nowhere", "metrics.txt", "http://host:1/"])
def test_a_place_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(metrics.VARIABLE, text)
    with pytest.raises(ValueError, match=r"SONOFORGE_METRICS is .*; expected :PORT"), track.track("draw", 1):
        pass


def test_a_worker_that_counts_for_nobody_is_silent(file: Path) -> None:
    metrics.silence()
    metrics.decided("demo", OUTCOME)
    assert not file.exists()


def test_nothing_is_imported_where_nobody_asked(tmp_path: Path) -> None:
    assert importlib.util.find_spec("prometheus_client") is not None
    # tasks.metrics by itself: Prefect brings prometheus_client for its own ends.
    text = (
        "import sys; from tasks import metrics; metrics.current(); metrics.silence(); "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('prometheus_client', 'torch')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != metrics.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_progress_goes_into_the_log_as_json_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.logging.formatters import JsonFormatter

    monkeypatch.setattr(track, "LINE_SECONDS", -1.0)
    monkeypatch.setenv(track.LOG, "json")
    with caplog.at_level(logging.INFO), track.display(), track.track("draw", 4):
        track.advance("draw", 3)
    record = next(record for record in caplog.records if record.name == "sonoforge.progress")
    line = json.loads(JsonFormatter("default", "", "%").format(record))
    assert (line["step"], line["done"], line["total"], line["unit"]) == ("draw", 3, 4, "images")
    assert line["msg"].startswith("draw: 3/4 images")
    assert capsys.readouterr().err == ""
    monkeypatch.delenv(track.LOG)
    with track.track("draw", 4):
        track.advance("draw", 3)
    assert capsys.readouterr().err.startswith("draw: 3/4 images")


def test_gpu_memory_is_told_once_the_gpu_is_used(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if not torch.cuda.is_available():  # what torch says where there are two
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 8 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (device + 1) * 2**30)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    metrics.decided("demo", OUTCOME)
    assert "sonoforge_gpu_memory_bytes{" not in file.read_text(), "asking would take memory of a GPU that nobody uses"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    metrics.decided("demo", OUTCOME)
    found = of_ours(file)
    for device in range(torch.cuda.device_count()):
        used, tensors, peak = (
            found["sonoforge_gpu_memory_bytes", str(device), kind] for kind in ("used", "tensors", "peak")
        )
        assert 0 <= tensors <= peak <= used
