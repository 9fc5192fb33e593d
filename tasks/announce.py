"""Announce a build on Prefect's page: a table of scores, and a picture of samples."""

import base64
import os
from collections.abc import Sequence

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext

from storage.records import Outcome, SetScore

PUBLIC_URL = "SONOFORGE_PUBLIC_URL"
"""Environment variable: where a web server shows the store; with it, pages link and show files by http."""


def announce_scores(dataset: str, scores: Sequence[SetScore]) -> None:
    """Put the set scores on the run's page, each with its N, extractor, interval and floor."""
    if not _is_run():
        return
    rows = [
        {
            "score": score.name,
            "value": "refused" if score.value is None else round(score.value, 4),
            "95 % interval": _interval(score.low, score.high),
            "real vs real": None if score.floor is None else round(score.floor, 4),
            "real vs real 95 %": _interval(score.floor_low, score.floor_high),
            "× its floor": None if score.over_floor is None else round(score.over_floor, 2),
            "p": score.p,
            "damaged on purpose": score.control,
            "N real": score.n_real,
            "N synthetic": score.n_synthetic,
            "extractor": score.extractor,
            "note": score.note,
        }
        for score in scores
    ]
    create_table_artifact(rows, key=f"{_key(dataset)}-scores", description=f"Set scores of {dataset}")


def announce_gate(dataset: str, outcome: Outcome, problems: Sequence[str] = ()) -> None:
    """Put the gate's verdict on the run's page: what it found, and what would change that."""
    if not _is_run():
        return
    lists = (("Problems", problems), ("Warnings", outcome.warnings), ("What would change that", outcome.advice))
    text = f"# {dataset}: {outcome.gate}\n\n{outcome.kept} of {outcome.planned} planned samples kept.\n"
    text += "".join(f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in lines) for title, lines in lists if lines)
    create_markdown_artifact(text, key=f"{_key(dataset)}-gate", description=f"Gate of {dataset}: {outcome.gate}")


def announce_samples(dataset: str, sheet: bytes, sheet_key: str, report_key: str) -> None:
    """Put a contact sheet on the run's page, by http where the store is served, else inside the page."""
    if not _is_run():
        return
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


def _is_run() -> bool:
    """Whether there is a page to put anything on: a task called as a plain function has none."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _key(dataset: str) -> str:
    return dataset.replace("_", "-")
