"""The web page of a version: one HTML file that needs nothing else. No date: same facts, same bytes."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

from storage.images import decode_grey, decode_mask
from storage.records import LINEAGE_FIELDS, SetScore
from tasks.imaging import Grey, Mask
from tasks.report import charts, headlines
from tasks.report.page import STYLE, environment, inline, policy
from tasks.report.pictures import Picture, picture
from tasks.report.summary import Batches, Bins, Limits, cause, spread

PER_LABEL = 8
"""Pictures shown of each label, real and synthetic."""

REJECTED = 24
"""Pictures of rejected samples."""

EXTREMES = 144
"""Pictures with the lowest and highest values of all scores together, about; 2 of each label and end at least."""

WHOLE_COPY, LESION_COPY = "picture_similarity", "nearest_similarity"
"""The image scores that say how near a sample comes to a training image: all of it, or what its mask marks."""

_LINEAGE = [name for name, _ in LINEAGE_FIELDS]


@dataclass(frozen=True)
class Gate:
    """What the set gate found. `limits` are what set scores may be, in words, by score; `advice` is what would have
    to change. A problem or warning about a set score begins with its name."""

    verdict: Literal["pass", "warn", "fail"] = "pass"
    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()
    advice: Sequence[str] = ()
    limits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Original:
    """The training image nearest to sample `id`; `image` is None where the page may not show it.

    `similarity` is -1..1. `declared` says what of the sample's declared lineage it is: its background, say; empty
    where the lineage does not name it.
    """

    id: str
    similarity: float
    scan_id: str
    file: str
    declared: str
    image: Grey | None
    mask: Mask | None


@dataclass(frozen=True)
class Earlier:
    """A version that was there before. `changes` are what its recipe changed from the version before it."""

    version: int
    planned: int
    kept: int
    scores: Sequence[SetScore]
    changes: Sequence[str]


@dataclass(frozen=True)
class Selection:
    """What set selection did: `changes` are set scores before and after, on images it did not look at."""

    summary: str
    changes: Sequence[tuple[str, SetScore, SetScore]]


@dataclass(frozen=True)
class Facts:
    """What the report says.

    Attributes:
        title: name of the dataset.
        description: one or two sentences.
        planned, kept, failed: samples.
        rejected: samples by reason, each counted once.
        gate: what the set gate found.
        scores: of the set of kept samples.
        failures: failed samples by reason.
        examples: kept rows that the page shows, with their pictures: those of `spread`, `extremes` and `originals`.
        spread: ids of examples that stand for all kept ones, by label.
        extremes: ids of the kept samples with the lowest and the highest values, by image score.
        refused: rejected rows that the page shows, with their pictures.
        originals: nearest training images of samples that come near to one, the nearest first.
        withheld: why the page shows no training images; empty where it does.
        histograms: spread of every per-image score, by its name, which is a column of the rows.
        thresholds: what an image score may be.
        explained: one sentence on each score, by its name.
        higher_is_better: of the set scores and image scores, those of which that is so.
        real: real examples that the page shows: image, mask, label.
        selection: what set selection did, where there was any.
        quotas: one line on each, where there are any.
        history: versions that were there before, oldest first.
        changes: what the recipe changed from the last of them.
        sources: one line each: name, licence, citation.
        recipe_yaml: the recipe.
        synthetic: what of a sample is no scan, in a sentence or two.
    """

    title: str
    description: str
    planned: int
    kept: int
    rejected: Mapping[str, int]
    failed: int
    gate: Gate
    scores: Sequence[SetScore]
    failures: Mapping[str, int]
    examples: Sequence[Mapping[str, Any]]
    spread: Sequence[str]
    extremes: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    refused: Sequence[Mapping[str, Any]]
    originals: Sequence[Original]
    withheld: str
    histograms: Mapping[str, Bins]
    thresholds: Mapping[str, Limits]
    explained: Mapping[str, str]
    higher_is_better: frozenset[str]
    real: Sequence[tuple[Grey, Mask | None, str]]
    selection: Selection | None
    quotas: Sequence[str]
    history: Sequence[Earlier]
    changes: Sequence[str]
    sources: Sequence[str]
    recipe_yaml: str
    synthetic: str


def copy_score(names: Collection[str]) -> str | None:
    """The score by which copies are shown, of those that there are: whole pictures where they are compared."""
    return next((name for name in (WHOLE_COPY, LESION_COPY) if name in names), None)


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
    style, script = inline(STYLE), inline("report.js")
    limits = facts.thresholds
    kept = {row["id"]: _pictured(row) for row in facts.examples}
    refused = [_pictured(row) for row in facts.refused]
    shown = {row.id: row for row in (*kept.values(), *refused)}
    near = copy_score({*facts.histograms, *limits})
    most = limits.get(near or "", (None, None))[1]
    nearest = [original.similarity for original in facts.originals if original.id in kept]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            style=style,
            script=script,
            policy=policy(style, script),
            headlines=[
                headlines.counted(facts.planned, facts.kept, facts.rejected, facts.failed),
                *headlines.scored(facts.scores, facts.higher_is_better),
                *headlines.copied(max(nearest, default=None), most),
            ],
            counts={"kept": facts.kept, "rejected": sum(facts.rejected.values()), "failed": facts.failed},
            bar=charts.bar({"kept": facts.kept, "rejected": sum(facts.rejected.values()), "failed": facts.failed}),
            rejected=_by_count(facts.rejected),
            failures=_by_count(facts.failures),
            scores=[(score, charts.interval(score), _passed(score.name, facts.gate)) for score in facts.scores],
            labels=_side_by_side(facts.real, [kept[id] for id in facts.spread]),
            others=[row for id, row in kept.items() if id not in set(facts.spread)],
            refused=refused,
            copies=[_Copy(shown[original.id], original, most) for original in facts.originals],
            most=most,
            whole=near == WHOLE_COPY,
            histograms=[
                (name, charts.histogram(name, bins, *limits.get(name, (None, None))))
                for name, bins in facts.histograms.items()
            ],
            trends=_trends(facts),
            page={
                "extremes": facts.extremes,
                "scores": [
                    {"name": name, "higher": name in facts.higher_is_better, "limits": limits.get(name, (None, None))}
                    for name in facts.histograms
                ],
                "samples": {row["id"]: _details(row, facts) for row in (*facts.examples, *facts.refused)},
            },
            lineage=[row for row in facts.examples if row["id"] in set(facts.spread)],
        )
    )


@dataclass(frozen=True)
class _Row:
    """A sample on the page."""

    id: str
    label: str
    kept: bool
    picture: Picture
    reasons: list[str]
    cause: str


class _Copy:
    """A sample beside its nearest training image."""

    def __init__(self, row: _Row, original: Original, most: float | None) -> None:
        self.row, self.original = row, original
        self.picture = None if original.image is None else picture(original.image, original.mask)
        self.over = most is not None and original.similarity > most


def _side_by_side(
    real: Sequence[tuple[Grey, Mask | None, str]], kept: Sequence[_Row]
) -> list[tuple[str, list[Picture], list[_Row]]]:
    labels = sorted({label for _, _, label in real} | {row.label for row in kept})
    sides: list[tuple[str, list[Picture], list[_Row]]] = []
    for label in labels:
        pictures = [picture(image, mask) for image, mask, name in real if name == label]
        sides.append((label, pictures, [row for row in kept if row.label == label]))
    return sides


def _pictured(row: Mapping[str, Any]) -> _Row:
    image, mask, reasons = row["image"], row["mask"], row["reasons"] or []
    if image is None or image["bytes"] is None:
        raise ValueError(f"the report shows {row['id']}, whose image was left out")
    drawn = None if mask is None or mask["bytes"] is None else decode_mask(mask["bytes"])
    shown = picture(decode_grey(image["bytes"]), drawn)
    return _Row(row["id"], row["label"], row["verdict"] == "kept", shown, reasons, cause(reasons))


def _details(row: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """What the viewer says of a sample."""
    names = ["split", "group", "pixel_mm", "head_circumference_mm", *_LINEAGE]
    return {
        "scores": {name: charts.number(row[name]) for name in facts.histograms if row[name] is not None},
        "lineage": {name: _short(name, row[name]) for name in names if row.get(name) is not None},
    }


def _short(name: str, value: object) -> str:
    """A value as people read it; of a digest its beginning."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{str(value)[:12]}…" if name.endswith("_digest") else str(value)


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _passed(name: str, gate: Gate) -> str:
    """How a set score stands with the gate; empty where nothing limits it."""

    def named(lines: Sequence[str]) -> bool:
        return any(line.split(" ", 1)[0].rstrip(":") == name for line in lines)

    if named(gate.problems):
        return "fail"
    if named(gate.warnings):
        return "warn"
    return "pass" if name in gate.limits else ""


def _trends(facts: Facts) -> list[tuple[str, Markup]]:
    """A chart of every set score that is a number in two versions or more."""
    versions = [(str(earlier.version), earlier.scores) for earlier in facts.history] + [("this", facts.scores)]
    counts = Counter(score.name for _, scores in reversed(versions) for score in scores if score.value is not None)
    points = {
        name: [(version, next((s for s in scores if s.name == name), None)) for version, scores in versions]
        for name, count in counts.items()
        if count > 1
    }
    return [(name, charts.trend(name, points[name])) for name in points]
