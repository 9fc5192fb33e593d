"""The pages of the catalogue: an index of datasets, and one page for each. Same facts, same bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

from storage.records import Manifest, SetScore, Tombstone
from tasks.report import charts
from tasks.report.catalogue.snippets import Snippet, build
from tasks.report.page import STYLE, environment, inline, policy

TREND = 60
"""Versions that a trend shows, the last ones."""

INDEX = "index.html"
PAGES = "datasets"
"""Folder of the datasets' pages: no name of a dataset is that of another page."""

_ABOUT = 300  # characters of a description on the index


@dataclass(frozen=True)
class Links:
    """Where files of a version are, seen from the index; None where the catalogue does not lead there."""

    report: str | None = None
    samples: str | None = None
    card: str | None = None
    manifest: str | None = None


@dataclass(frozen=True)
class Entry:
    """A version that can be read. `created` is when, ISO 8601; `channels` are those that mean it now."""

    number: int
    created: str
    digest: str
    planned: int
    kept: int
    licences: Sequence[str]
    gate: Literal["pass", "warn", "fail"]
    warnings: Sequence[str]
    scores: Sequence[SetScore]
    description: str
    channels: Sequence[str]
    retracted: Tombstone | None
    links: Links


@dataclass(frozen=True)
class Unreadable:
    """A version of which nobody knows what it holds, and why not."""

    number: int
    reason: str


@dataclass(frozen=True)
class Dataset:
    """What the page of a dataset says.

    Attributes:
        name: its name.
        versions: all of them, the first first.
        problems: what else of it could not be read, one line each.
        snippets: code that reads `latest`.
        card: of `latest`, rendered; None where there is none.
        higher_is_better: of the set scores, those of which that is so.
    """

    name: str
    versions: Sequence[Entry | Unreadable]
    problems: Sequence[str] = ()
    snippets: Sequence[Snippet] = ()
    card: Markup | None = None
    higher_is_better: frozenset[str] = frozenset()

    @property
    def latest(self) -> Entry | None:
        """The highest version that was not retracted, as everywhere; None where there is none."""
        return latest(self.versions)


@dataclass(frozen=True)
class Line:
    """What the index says of a dataset. Counts are of versions."""

    name: str
    latest: Entry | None
    versions: int
    retracted: int
    unreadable: int
    page: str = field(default="")

    @property
    def about(self) -> str:
        """The beginning of the description."""
        text = "" if self.latest is None else self.latest.description
        return text if len(text) <= _ABOUT else f"{text[:_ABOUT].rstrip()}…"


def latest(versions: Sequence[Entry | Unreadable]) -> Entry | None:
    """The highest version that was not retracted."""
    live = (entry for entry in reversed(versions) if isinstance(entry, Entry) and entry.retracted is None)
    return next(live, None)


def entry(manifest: Manifest, channels: Sequence[str], retracted: Tombstone | None, links: Links) -> Entry:
    """What the catalogue says of a version."""
    description = manifest.recipe.get("description")
    return Entry(
        number=manifest.version,
        created=manifest.created,
        digest=manifest.digest,
        planned=manifest.planned,
        kept=manifest.kept,
        licences=manifest.licences,
        gate=manifest.gate,
        warnings=manifest.warnings,
        scores=manifest.scores,
        description=description.strip() if isinstance(description, str) else "",
        channels=channels,
        retracted=retracted,
        links=links,
    )


def line(dataset: Dataset) -> Line:
    """What the index says of it."""
    entries = [version for version in dataset.versions if isinstance(version, Entry)]
    return Line(
        name=dataset.name,
        latest=dataset.latest,
        versions=len(dataset.versions),
        retracted=sum(entry.retracted is not None for entry in entries),
        unreadable=len(dataset.versions) - len(entries),
        page=page_of(dataset.name),
    )


def page_of(dataset: str) -> str:
    """Where the page of a dataset is.

    >>> page_of("demo")
    'datasets/demo.html'
    """
    return f"{PAGES}/{dataset}.html"


def render_index(store_url: str, lines: Sequence[Line]) -> str:
    """The first page. `store_url` is where the datasets are."""
    return _render("index.html.j2", up="", store=store_url, lines=lines, build=build(store_url))


def render_dataset(store_url: str, dataset: Dataset) -> str:
    """The page of one dataset."""
    shown = dataset.latest
    names = _scored(dataset)
    return _render(
        "dataset.html.j2",
        up="../",
        store=store_url,
        dataset=dataset,
        latest=shown,
        versions=list(reversed(dataset.versions)),
        scores=[] if shown is None else [(score, charts.interval(score)) for score in shown.scores],
        extractors=names,
        table=[(entry, [_named(entry, name) for name in names]) for entry in reversed(_live(dataset))],
        trends=_trends(dataset, names),
        trend=TREND,
    )


def _render(template: str, **known: object) -> str:
    style, script = inline(STYLE, "catalogue/catalogue.css"), inline("catalogue/catalogue.js")
    page = environment().get_template(f"catalogue/{template}")
    return page.render(style=style, script=script, policy=policy(style, script, images="'self' data:"), **known)


def _live(dataset: Dataset) -> list[Entry]:
    return [entry for entry in dataset.versions if isinstance(entry, Entry) and entry.retracted is None]


def _scored(dataset: Dataset) -> dict[str, str]:
    """All scores, those of the latest version first, each with the extractor that it has there."""
    found: dict[str, str] = {}
    for entry in reversed(_live(dataset)):
        for score in entry.scores:
            found.setdefault(score.name, score.extractor)
    return found


def _named(entry: Entry | Unreadable, name: str) -> SetScore | None:
    if isinstance(entry, Unreadable) or entry.retracted is not None:
        return None
    return next((score for score in entry.scores if score.name == name), None)


def _trends(dataset: Dataset, names: Iterable[str]) -> list[tuple[str, Markup]]:
    """A chart of every score that is a number in two versions or more; a gap where a version is not to be used."""
    versions = dataset.versions[-TREND:]
    charted: list[tuple[str, Markup]] = []
    for name in names:
        points = [(str(version.number), _named(version, name)) for version in versions]
        if sum(score is not None and score.value is not None for _, score in points) > 1:
            charted.append((name, charts.trend(name, points, described=True)))
    return charted
