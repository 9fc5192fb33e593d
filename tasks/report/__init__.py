"""The web page of a version: one HTML file that needs nothing else. No date: same facts, same bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from storage.images import decode_grey, decode_mask
from storage.records import SetScore
from tasks.imaging import Grey, Mask
from tasks.report import charts
from tasks.report.pictures import Picture, picture
from tasks.report.summary import Batches, Bins, Limits, cause, spread

PER_LABEL = 8
"""Pictures shown of each label, real and synthetic."""

REJECTED = 24
"""Pictures of rejected samples."""


@dataclass(frozen=True)
class Facts:
    """What the report says.

    Attributes:
        title: name of the dataset.
        description: one or two sentences.
        planned, kept, failed: samples.
        rejected: samples by reason, each counted once.
        scores: of the set of kept samples.
        failures: failed samples by reason.
        examples: kept rows that the page shows, with their pictures, by label.
        refused: rejected rows that the page shows, with their pictures.
        histograms: spread of every per-image score, by its name, which is a column of the rows.
        thresholds: what a score may be.
        real: real examples that the page shows: image, mask, label.
        gate: what the set gate found wrong; empty where it is met.
        sources: one line each: name, licence, citation.
        recipe_yaml: the recipe.
    """

    title: str
    description: str
    planned: int
    kept: int
    rejected: Mapping[str, int]
    failed: int
    scores: Sequence[SetScore]
    failures: Mapping[str, int]
    examples: Sequence[Mapping[str, Any]]
    refused: Sequence[Mapping[str, Any]]
    histograms: Mapping[str, Bins]
    thresholds: Mapping[str, Limits]
    real: Sequence[tuple[Grey, Mask | None, str]]
    gate: Sequence[str]
    sources: Sequence[str]
    recipe_yaml: str


def pick_kept(rows: Batches) -> list[str]:
    """Ids of the kept samples to show: of each label, evenly spaced. Needs `id`, `label` and `verdict`."""

    def labelled() -> Iterator[tuple[str, str]]:
        for batch in rows():
            for row in batch.select(["id", "label", "verdict"]).to_pylist():
                if row["verdict"] == "kept":
                    yield row["label"], row["id"]

    return spread(labelled, lambda labels: PER_LABEL)


def pick_rejected(rows: Batches) -> list[str]:
    """Ids of the rejected samples to show: of each cause, evenly spaced. Needs `id`, `verdict` and `reasons`."""

    def caused() -> Iterator[tuple[str, str]]:
        for batch in rows():
            for row in batch.select(["id", "verdict", "reasons"]).to_pylist():
                if row["verdict"] == "rejected":
                    yield cause(row["reasons"]), row["id"]

    return spread(caused, lambda causes: max(1, REJECTED // max(1, causes)))[:REJECTED]


def render(facts: Facts) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = charts.number
    return environment.get_template("report.html.j2").render(
        facts=facts,
        counts=charts.shares({"kept": facts.kept, "rejected": sum(facts.rejected.values()), "failed": facts.failed}),
        rejected=sorted(facts.rejected.items(), key=lambda item: (-item[1], item[0])),
        failures=sorted(facts.failures.items(), key=lambda item: (-item[1], item[0])),
        scores=[(score, charts.interval(score)) for score in facts.scores],
        labels=_side_by_side(facts.real, facts.examples),
        refused=[_pictured(row) for row in facts.refused],
        histograms=[
            (name, charts.histogram(name, bins, *facts.thresholds.get(name, (None, None))))
            for name, bins in facts.histograms.items()
        ],
        lineage=facts.examples,
    )


@dataclass(frozen=True)
class _Row:
    """A sample on the page."""

    id: str
    picture: Picture
    reasons: list[str]


def _side_by_side(
    real: Sequence[tuple[Grey, Mask | None, str]], kept: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[Picture], list[_Row]]]:
    labels = sorted({label for _, _, label in real} | {row["label"] for row in kept})
    sides: list[tuple[str, list[Picture], list[_Row]]] = []
    for label in labels:
        pictures = [picture(image, mask) for image, mask, name in real if name == label]
        sides.append((label, pictures, [_pictured(row) for row in kept if row["label"] == label]))
    return sides


def _pictured(row: Mapping[str, Any]) -> _Row:
    image, mask = row["image"], row["mask"]
    if image is None or image["bytes"] is None:
        raise ValueError(f"the report shows {row['id']}, whose image was left out")
    drawn = None if mask is None or mask["bytes"] is None else decode_mask(mask["bytes"])
    return _Row(row["id"], picture(decode_grey(image["bytes"]), drawn), row["reasons"] or [])
