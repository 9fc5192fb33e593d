"""What differs between two versions: rows, recipe, scores, counts, licences, software. Memory does not grow with rows.

Rows ascend by id in every version, so two tables are walked side by side, some thousand rows at a time.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from storage.checks.problems import printable
from storage.checks.tables import Rows, misses
from storage.checks.thin import INDEX, METADATA, SCHEMAS
from storage.errors import CorruptFileError
from storage.records import PIXEL_COLUMNS, Manifest, Record, SetScore
from storage.store import Store, scratch

WINDOW = 1024
"""Rows of each version in memory at a time."""


class RowChange(Record):
    """One row that both versions hold, and the columns in which it differs; pictures are compared by digest."""

    id: str
    columns: list[str]


class RowsDiff(Record):
    """How the kept rows differ. Lists of ids are the first few, in ascending order; `columns` counts changed rows."""

    before: int
    after: int
    added: int = 0
    removed: int = 0
    changed: int = 0
    columns: dict[str, int] = Field(default={})
    columns_added: list[str] = Field(default=[])
    columns_removed: list[str] = Field(default=[])
    first_added: list[str] = Field(default=[])
    first_removed: list[str] = Field(default=[])
    first_changed: list[RowChange] = Field(default=[])


class FieldChange(Record):
    """One field that differs, such as "plan.count"; the side that has none is None."""

    field: str
    change: Literal["added", "removed", "changed"]
    before: object = Field(default=None)
    after: object = Field(default=None)


class ScoreChange(Record):
    """One score of the set in both versions, equal or not.

    `apart` says that the two 95 % intervals do not overlap; None where one has no interval, or where the scores are not
    comparable: other extractors, or other numbers of images, on which distances depend.
    """

    name: str
    before: SetScore | None
    after: SetScore | None
    apart: bool | None = Field(default=None)


class Diff(Record):
    """What differs from version `a` to version `b`."""

    a: str
    b: str
    same: bool  # the same files, byte for byte
    rows: RowsDiff
    recipe: list[FieldChange]
    scores: list[ScoreChange]
    counts: list[FieldChange]  # planned, kept, failed, rejected.<reason>
    licences_added: list[str]
    licences_removed: list[str]
    provenance: list[FieldChange]  # versions of packages, digests of what it was made from


def compare(store: Store, a: Manifest, b: Manifest, *, limit: int = 10) -> Diff:
    """Compare two versions, of the same dataset or not.

    Args:
        store: where both are.
        a: the older one, say.
        b: the newer one.
        limit: how many ids of added, removed and changed rows are named; all are counted.

    Raises:
        CorruptFileError: a table needed is missing or damaged.
    """
    return Diff(
        a=f"{a.dataset}@{a.version}",
        b=f"{b.dataset}@{b.version}",
        same=a.digest == b.digest,
        rows=_rows(store, a, b, limit),
        recipe=_fields(flattened(a.recipe), flattened(b.recipe)),
        scores=_scores(a, b),
        counts=_fields(_counts(a), _counts(b)),
        licences_added=sorted(set(b.licences) - set(a.licences)),
        licences_removed=sorted(set(a.licences) - set(b.licences)),
        provenance=_fields(a.provenance, b.provenance),
    )


def lines(diff: Diff) -> list[str]:
    """A comparison as people read it: what is equal is left out, but for the scores."""
    found = [f"{diff.a} → {diff.b}" + (": the same files, byte for byte" if diff.same else "")]
    rows = diff.rows
    found.append(
        f"rows: {rows.before} → {rows.after}: {rows.added} added, {rows.removed} removed, {rows.changed} changed"
    )
    found += _named("added", rows.first_added, rows.added)
    found += _named("removed", rows.first_removed, rows.removed)
    found += _named("changed", [f"{row.id} ({', '.join(row.columns)})" for row in rows.first_changed], rows.changed)
    found += _named("changed in", [f"{name} {count}" for name, count in rows.columns.items()], len(rows.columns))
    found += _named("columns added", rows.columns_added, len(rows.columns_added))
    found += _named("columns removed", rows.columns_removed, len(rows.columns_removed))
    for title, changes in (("counts", diff.counts), ("recipe", diff.recipe), ("made with", diff.provenance)):
        found += [f"{title}:"] if changes else []
        found += [f"  {change.field}: {_shown(change.before)} → {_shown(change.after)}" for change in changes]
    found += _named("licences added", diff.licences_added, len(diff.licences_added))
    found += _named("licences removed", diff.licences_removed, len(diff.licences_removed))
    found += ["scores (95 % interval; floor: real against real; N real/synthetic):"] if diff.scores else []
    for score in diff.scores:
        verdict = {True: "  the intervals are apart", False: "  the intervals overlap", None: ""}[score.apart]
        found.append(f"  {score.name}: {_score(score.before)} → {_score(score.after)}{verdict}")
    return [printable(line, 2000) for line in found]


def _named(title: str, names: list[str], count: int) -> list[str]:
    more = f", … and {count - len(names)} more" if count > len(names) else ""
    return [f"  {title}: {', '.join(names)}{more}"] if names else []


def _shown(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _score(score: SetScore | None) -> str:
    if score is None:
        return "not scored"
    if score.value is None:
        return f"none ({score.note})"
    interval = "" if score.low is None or score.high is None else f" ({score.low:.3g} … {score.high:.3g})"
    floor = "" if score.floor is None else f", floor {score.floor:.3g}"
    return f"{score.value:.3g}{interval}{floor}, N {score.n_real}/{score.n_synthetic}"


def flattened(value: object, at: str = "") -> dict[str, object]:
    """Nested mappings and lists as one mapping from path to plain value.

    >>> flattened({"plan": {"count": 3}, "stages": [{"kind": "layout"}], "formats": []})
    {'plan.count': 3, 'stages[0].kind': 'layout', 'formats': []}
    """
    found: dict[str, object] = {}
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            found |= flattened(inner, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            found |= flattened(inner, f"{at}[{index}]")
    else:
        found[at] = value
    return found


def _fields(before: Mapping[str, object], after: Mapping[str, object]) -> list[FieldChange]:
    found: list[FieldChange] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            found.append(FieldChange(field=name, change="added", after=after[name]))
        elif name not in after:
            found.append(FieldChange(field=name, change="removed", before=before[name]))
        elif before[name] != after[name]:
            found.append(FieldChange(field=name, change="changed", before=before[name], after=after[name]))
    return found


def _counts(manifest: Manifest) -> dict[str, object]:
    rejected = {f"rejected.{reason}": count for reason, count in manifest.rejected.items()}
    return {"planned": manifest.planned, "kept": manifest.kept, "failed": manifest.failed, **rejected}


def _scores(a: Manifest, b: Manifest) -> list[ScoreChange]:
    before, after = ({score.name: score for score in manifest.scores} for manifest in (a, b))
    return [
        ScoreChange(
            name=name,
            before=before.get(name),
            after=after.get(name),
            apart=_apart(before.get(name), after.get(name)),
        )
        for name in dict.fromkeys([*before, *after])
    ]


def _apart(one: SetScore | None, two: SetScore | None) -> bool | None:
    if one is None or two is None or one.extractor != two.extractor:
        return None
    if (one.n_real, one.n_synthetic) != (two.n_real, two.n_synthetic):
        return None
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return None
    return one.high < two.low or two.high < one.low


def _rows(store: Store, a: Manifest, b: Manifest, limit: int) -> RowsDiff:
    tables = [{file.path: file for file in manifest.files} for manifest in (a, b)]
    kept = [table[METADATA].sha256 if METADATA in table else None for table in tables]
    places = [table[INDEX].sha256 if INDEX in table else None for table in tables]
    if a.digest == b.digest or (None not in kept + places and kept[0] == kept[1] and places[0] == places[1]):
        return RowsDiff(before=a.kept, after=b.kept)
    with scratch() as temporary:
        sides = [_Side(store, manifest, Path(temporary) / name) for name, manifest in (("before", a), ("after", b))]
        return _Walk(sides[0], sides[1], limit).diff()


class _Side:
    """The rows of one version in ascending order: thin columns, and a digest for each picture."""

    def __init__(self, store: Store, manifest: Manifest, folder: Path) -> None:
        folder.mkdir()
        self.name = f"{manifest.dataset}@{manifest.version}"
        files = {file.path: file for file in manifest.files}
        local: dict[str, Path] = {}
        for path in (METADATA, INDEX):
            if path not in files:
                raise CorruptFileError(f"{self.name} holds no {path}: its rows cannot be compared")
            local[path] = folder / path
            found = store.fetch(files[path].key, local[path])
            wrong = "its sha256 is not the manifest's" if found != files[path].sha256 else _unusable(path, local[path])
            if wrong:
                raise CorruptFileError(f"{path} of {self.name} is damaged ({wrong}): `sonoforge verify` says more")
        self._metadata, self._index = Rows(local[METADATA]), Rows(local[INDEX])
        self._waiting: pa.Table | None = None
        self.columns: list[str] = []
        self._last = ""
        self.count = 0
        self._fill()

    @property
    def last(self) -> str | None:
        """The highest id at hand; None where no rows are left."""
        return None if self._waiting is None else str(self._waiting.column("id")[-1])

    def upto(self, bound: str) -> pa.Table | None:
        """Take the rows at hand whose id is at most `bound`."""
        if self._waiting is None:
            return None
        ids = self._waiting.column("id")
        count = pc.call_function("sum", [pc.call_function("less_equal", [ids, pa.scalar(bound)])]).as_py()
        taken, rest = self._waiting.slice(0, count), self._waiting.slice(count)
        self._waiting = rest if rest.num_rows else None
        if self._waiting is None:
            self._fill()
        return taken

    def _fill(self) -> None:
        rows, places = self._metadata.take(WINDOW), self._index.take(WINDOW)
        if rows is None and places is None:
            return
        if rows is None or places is None or rows.column("id").to_pylist() != places.column("id").to_pylist():
            raise CorruptFileError(f"metadata and index of {self.name} list other rows: `sonoforge verify` says more")
        for name in rows.column("id").to_pylist():
            if name is None or name <= self._last:
                raise CorruptFileError(f"ids of {self.name} do not ascend at {name!r}: `sonoforge verify` says more")
            self._last = name
        for picture in PIXEL_COLUMNS:
            rows = rows.append_column(picture, places.column(f"{picture}_blake3"))
        self.columns = rows.column_names
        self._waiting = rows
        self.count += rows.num_rows


def _unusable(name: str, path: Path) -> str:
    try:
        return misses(path, SCHEMAS[name], exactly=name == INDEX)
    except ValueError as error:
        return str(error)


class _Walk:
    """Two sides walked together up to the same ids."""

    def __init__(self, before: _Side, after: _Side, limit: int) -> None:
        self._before, self._after, self._limit = before, after, limit
        self._columns: Counter[str] = Counter()
        self._added = self._removed = self._changed = 0
        self._first_added: list[str] = []
        self._first_removed: list[str] = []
        self._first_changed: list[RowChange] = []

    def diff(self) -> RowsDiff:
        """Walk to the end."""
        before, after = self._before.columns, self._after.columns
        both = before and after  # a version without rows has every column, so to speak
        while (bounds := [last for last in (self._before.last, self._after.last) if last is not None]) != []:
            self._window(self._before.upto(min(bounds)), self._after.upto(min(bounds)))
        return RowsDiff(
            before=self._before.count,
            after=self._after.count,
            added=self._added,
            removed=self._removed,
            changed=self._changed,
            columns=dict(sorted(self._columns.items(), key=lambda item: (-item[1], item[0]))),
            columns_added=[name for name in after if name not in before] if both else [],
            columns_removed=[name for name in before if name not in after] if both else [],
            first_added=self._first_added,
            first_removed=self._first_removed,
            first_changed=self._first_changed,
        )

    def _window(self, before: pa.Table | None, after: pa.Table | None) -> None:
        none: list[str] = []
        old = none if before is None else before.column("id").to_pylist()
        new = none if after is None else after.column("id").to_pylist()
        where_old, where_new = ({name: place for place, name in enumerate(ids)} for ids in (old, new))
        removed = [name for name in old if name not in where_new]
        added = [name for name in new if name not in where_old]
        self._removed += len(removed)
        self._added += len(added)
        self._first_removed += removed[: self._limit - len(self._first_removed)]
        self._first_added += added[: self._limit - len(self._first_added)]
        shared = [name for name in old if name in where_new]
        if before is not None and after is not None and shared:
            left = before.take(pa.array([where_old[name] for name in shared], pa.int64()))
            right = after.take(pa.array([where_new[name] for name in shared], pa.int64()))
            self._compare(shared, left, right)

    def _compare(self, ids: list[str], before: pa.Table, after: pa.Table) -> None:
        changed: dict[int, list[str]] = {}
        for name in before.column_names:
            if name in after.column_names:
                for row in _differing(before.column(name), after.column(name)):
                    changed.setdefault(row, []).append(name)
                    self._columns[name] += 1
        self._changed += len(changed)
        for row in sorted(changed)[: self._limit - len(self._first_changed)]:
            self._first_changed.append(RowChange(id=ids[row], columns=changed[row]))


def _differing(one: pa.ChunkedArray, two: pa.ChunkedArray) -> Iterator[int]:
    """Places at which two columns differ; NaN equals NaN."""
    if one.equals(two):
        return
    for place, (left, right) in enumerate(zip(one.to_pylist(), two.to_pylist(), strict=True)):
        if left != right and not (left != left and right != right):
            yield place
