from typing import Any

import pytest

from storage.records import Outcome
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
