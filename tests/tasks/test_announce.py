import logging
from typing import Any

import httpx
import pytest

from storage.records import Outcome, SetScore
from tasks import announce

OUTCOME = Outcome(
    planned=10,
    kept=4,
    rejected={"segmenter_dice": 6},
    failed=0,
    scores=[],
    gate="fail",
    advice=["plan about 20 samples"],
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was put on the run's page."""
    pages: list[dict[str, Any]] = []
    monkeypatch.setattr(
        announce, "create_markdown_artifact", lambda text, **about: pages.append({"text": text, **about})
    )
    monkeypatch.setattr(announce, "_is_run", lambda: True)
    return pages


def test_the_verdict_is_announced_with_what_is_wrong_and_what_would_change_it(told: list[dict[str, Any]]) -> None:
    announce.announce_gate("breast_demo", OUTCOME, ["4 samples kept, at least 8 asked"])
    (page,) = told
    assert page["key"] == "breast-demo-gate"
    assert page["text"].startswith("# breast_demo: fail\n\n4 of 10 planned samples kept.")
    assert "## Problems\n\n- 4 samples kept, at least 8 asked" in page["text"]
    assert "- plan about 20 samples" in page["text"]
    assert "Warnings" not in page["text"]


def test_outside_a_run_nothing_is_announced(told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "_is_run", lambda: False)
    announce.announce_gate("breast_demo", OUTCOME)
    assert told == []


def test_a_version_is_announced_as_an_event_about_its_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(announce, "emit_event", lambda event, **about: events.append({"event": event, **about}))
    version = ("breast_demo", 3, "ab" * 32, "s3://bucket/breast_demo/versions/3/manifest.json", "block:clinic")
    announce.announce_version(*version, OUTCOME)
    assert events == []  # outside a run

    monkeypatch.setattr(announce, "_is_run", lambda: True)
    refused = SetScore(name="fid", value=None, low=None, high=None, n_real=9, n_synthetic=4, extractor="x", note="few")
    kid = refused.model_copy(update={"name": "kid", "value": 0.25})
    announce.announce_version(*version, OUTCOME.model_copy(update={"scores": [refused, kid]}))
    (event,) = events
    assert event["event"] == "sonoforge.version.published"
    assert event["resource"]["prefect.resource.id"] == "sonoforge.dataset.breast_demo"
    assert event["payload"] == {
        "name": "breast_demo",
        "version": 3,
        "digest": "ab" * 32,
        "uri": version[3],
        "store": "block:clinic",
        "kept": 4,
        "scores": {"fid": None, "kid": 0.25},
    }


def test_a_server_that_does_not_answer_costs_no_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(text: str, **about: str) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(announce, "create_markdown_artifact", refuse)
    monkeypatch.setattr(announce, "_is_run", lambda: True)
    monkeypatch.setattr(announce, "get_run_logger", lambda: logging.getLogger("run"))
    announce.announce_gate("breast_demo", OUTCOME)
    assert "Prefect's API does not take announce_gate: connection refused" in caplog.text
