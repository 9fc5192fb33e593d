"""The web page of a version: one HTML file that needs nothing else. No date: same facts, same bytes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import pyarrow as pa

from storage.images import decode_grey, decode_mask
from storage.records import SetScore
from tasks.imaging import Grey, Mask
from tasks.report import charts
from tasks.report.pictures import Picture, picture

T = TypeVar("T")

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
        rows: every planned sample, `records.sample_schema(…)`. Images may be null except those of `choose`.
        score_names: columns of `rows` that hold per-image scores.
        thresholds: (least, most) that a score may be, None where there is no limit.
        real: real examples: image, mask, label.
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
    rows: pa.Table
    score_names: Sequence[str]
    thresholds: Mapping[str, tuple[float | None, float | None]]
    real: Sequence[tuple[Grey, Mask | None, str]]
    gate: Sequence[str]
    sources: Sequence[str]
    recipe_yaml: str


@dataclass(frozen=True)
class Shown:
    """Ids of the samples whose pictures a report shows."""

    kept: list[str]
    rejected: list[str]


def choose(rows: pa.Table) -> Shown:
    """The samples to show: of each label, and of each first reason, evenly spaced over the ids.

    Args:
        rows: needs only `id`, `label`, `verdict` and `reasons`.
    """
    thin = rows.select(["id", "label", "verdict", "reasons"]).sort_by("id").to_pylist()
    kept = [row for row in thin if row["verdict"] == "kept"]
    rejected = [row for row in thin if row["verdict"] == "rejected"]
    by_reason = _grouped(rejected, [_cause(row["reasons"]) for row in rejected])
    each = max(1, REJECTED // max(1, len(by_reason)))
    return Shown(
        kept=[id for ids in _grouped(kept, [row["label"] for row in kept]).values() for id in _spread(ids, PER_LABEL)],
        rejected=[id for ids in by_reason.values() for id in _spread(ids, each)][:REJECTED],
    )


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
    shown = choose(facts.rows)
    rows = {row["id"]: row for row in _only(facts.rows, {*shown.kept, *shown.rejected})}
    reasons = Counter(reason for row in _failed(facts.rows) for reason in row["reasons"] or ["no reason given"])
    return environment.get_template("report.html.j2").render(
        facts=facts,
        counts=charts.shares({"kept": facts.kept, "rejected": sum(facts.rejected.values()), "failed": facts.failed}),
        rejected=sorted(facts.rejected.items(), key=lambda item: (-item[1], item[0])),
        failures=sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        scores=[(score, charts.interval(score)) for score in facts.scores],
        labels=_side_by_side(facts.real, [rows[id] for id in shown.kept]),
        refused=[_pictured(rows[id]) for id in shown.rejected],
        histograms=[(name, _histogram(facts, name)) for name in facts.score_names],
        lineage=[rows[id] for id in shown.kept],
    )


@dataclass(frozen=True)
class _Row:
    """A sample on the page."""

    id: str
    picture: Picture
    reasons: list[str]


def _side_by_side(
    real: Sequence[tuple[Grey, Mask | None, str]], kept: list[dict[str, Any]]
) -> list[tuple[str, list[Picture], list[_Row]]]:
    labels = sorted({label for _, _, label in real} | {row["label"] for row in kept})
    sides: list[tuple[str, list[Picture], list[_Row]]] = []
    for label in labels:
        examples = [(image, mask) for image, mask, name in real if name == label]
        pictures = [picture(image, mask) for image, mask in _spread(examples, PER_LABEL)]
        sides.append((label, pictures, [_pictured(row) for row in kept if row["label"] == label]))
    return sides


def _pictured(row: dict[str, Any]) -> _Row:
    image, mask = row["image"], row["mask"]
    if image is None or image["bytes"] is None:
        raise ValueError(f"the report shows {row['id']}, whose image was left out: keep those that choose() names")
    drawn = None if mask is None or mask["bytes"] is None else decode_mask(mask["bytes"])
    return _Row(row["id"], picture(decode_grey(image["bytes"]), drawn), row["reasons"] or [])


def _histogram(facts: Facts, name: str) -> charts.Markup:
    table = facts.rows.select([name, "verdict"]).to_pydict()
    pairs = [(v, verdict) for v, verdict in zip(table[name], table["verdict"], strict=True) if v is not None and v == v]
    least, most = facts.thresholds.get(name, (None, None))
    kept = [value for value, verdict in pairs if verdict == "kept"]
    rejected = [value for value, verdict in pairs if verdict == "rejected"]
    return charts.histogram(name, kept, rejected, least, most)


def _only(rows: pa.Table, ids: set[str]) -> list[dict[str, Any]]:
    places = [place for place, id in enumerate(rows.column("id").to_pylist()) if id in ids]
    return rows.take(pa.array(places, pa.int64())).to_pylist()


def _failed(rows: pa.Table) -> list[dict[str, Any]]:
    thin = rows.select(["verdict", "reasons"])
    return [row for row in thin.to_pylist() if row["verdict"] == "failed"]


def _grouped(rows: list[dict[str, Any]], groups: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row, group in sorted(zip(rows, groups, strict=True), key=lambda pair: (pair[1], pair[0]["id"])):
        found.setdefault(group, []).append(row["id"])
    return found


def _cause(reasons: list[str] | None) -> str:
    """What a reason is about, without its numbers: the first word."""
    return reasons[0].split(" ")[0] if reasons else ""


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly spaced, the first among them."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]
