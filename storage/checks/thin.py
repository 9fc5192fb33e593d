"""The tables without pixels: ledger, metadata, index and sources, and that no group or ancestor spans two splits."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.checks.notebook import Notebook
from storage.checks.problems import Problems
from storage.checks.tables import BATCH, Ascending, Rows, batches, different, equals, misses, pairs
from storage.records import IMAGE, INDEX_SCHEMA, SOURCE_SCHEMA, SPLITS, Manifest, sample_schema

METADATA, LEDGER, INDEX, SOURCES = "metadata.parquet", "ledger.parquet", "index.parquet", "sources.parquet"
THIN = (METADATA, LEDGER, INDEX, SOURCES)
ANCESTORS = ("background_id", "mask_id", "levels_id")
"""Columns of a sample that name real scans."""

SCHEMAS = {
    METADATA: pa.schema([field for field in sample_schema([]) if field.type != IMAGE]),
    LEDGER: pa.schema([field for field in sample_schema([]) if field.type != IMAGE]),
    INDEX: INDEX_SCHEMA,
    SOURCES: SOURCE_SCHEMA,
}
_KINDS = 10_000  # labels, reasons and the like are few; a stranger's may not be


def check_thin(tables: dict[str, Path], manifest: Manifest, notebook: Notebook, problems: Problems) -> None:
    """Check those of `THIN` that could be fetched: `tables` holds them by name."""
    usable: dict[str, Path] = {}
    declared = {file.path: file.rows for file in manifest.files}
    for name, path in tables.items():
        try:
            wrong = misses(path, SCHEMAS[name], exactly=name in (INDEX, SOURCES))
            rows = pq.read_metadata(path).num_rows
            if declared[name] not in (None, rows):
                problems.add(name, f"{rows} rows, {declared[name]} declared")
        except ValueError as error:
            wrong = str(error)
        if wrong:
            problems.add(name, wrong)
        else:
            usable[name] = path
    checks = {METADATA: _metadata, LEDGER: _ledger, INDEX: _index, SOURCES: _sources}
    for name, path in usable.items():
        try:
            checks[name](path, usable, manifest, notebook, problems)
        except (ValueError, OSError, pa.ArrowException) as error:
            problems.add(name, f"does not decode: {str(error).splitlines()[0]}")
    for leak in notebook.leaks():
        problems.add("splits", leak)
    if SOURCES in usable:
        for orphan in notebook.orphans():
            problems.add(SOURCES, orphan)


def _metadata(path: Path, _: dict[str, Path], manifest: Manifest, notebook: Notebook, problems: Problems) -> None:
    ascending = Ascending(METADATA, problems)
    rows = 0
    ancestors = [name for name in ANCESTORS if name in pq.read_schema(path).names]
    for batch in batches(path, BATCH, ["id", "split", "group", "verdict", *ancestors]):
        rows += batch.num_rows
        ascending.check(batch.column("id"))
        for (split,) in pairs(batch, "split") - {(split,) for split in SPLITS}:
            problems.add(METADATA, f"split {split!r}, expected {', '.join(SPLITS)}")
        for (verdict,) in pairs(batch, "verdict") - {("kept",)}:
            problems.add(METADATA, f"verdict {verdict!r}, expected kept ones alone")
        for name in ("split", "verdict"):
            if batch.column(name).null_count:
                problems.add(METADATA, f"{batch.column(name).null_count} rows without a {name}")
        notebook.belongs(pairs(batch, "group", "split"))
        for name in ancestors:
            role = name.removesuffix("_id")
            found: dict[tuple[str, str], str] = {}
            for ancestor, split, row in pairs(batch, name, "split", "id"):
                found[ancestor, split] = row
            notebook.descends((ancestor, split, role, row) for (ancestor, split), row in found.items())
    if rows != manifest.kept:
        problems.add(METADATA, f"{rows} rows, but the manifest counts {manifest.kept} samples as kept")


def _ledger(path: Path, usable: dict[str, Path], manifest: Manifest, _: Notebook, problems: Problems) -> None:
    ascending = Ascending(LEDGER, problems)
    verdicts: Counter[Any] = Counter()
    reasons: Counter[str] = Counter()
    for batch in batches(path, BATCH, ["id", "verdict", "reasons"]):
        ascending.check(batch.column("id"))
        for verdict, why in zip(batch.column("verdict").to_pylist(), batch.column("reasons").to_pylist(), strict=True):
            if verdict in verdicts or len(verdicts) < _KINDS:
                verdicts[verdict] += 1
            if verdict == "rejected":
                reason = _first(why, manifest)
                reasons[reason if reason in reasons or len(reasons) < _KINDS else ""] += 1
    found = {"kept": verdicts["kept"], "rejected": verdicts["rejected"], "failed": verdicts["failed"]}
    rejected = sum(manifest.rejected.values())
    expected = {"kept": manifest.kept, "rejected": rejected, "failed": manifest.failed}
    for verdict in sorted(set(map(str, verdicts)) - set(found)):
        problems.add(LEDGER, f"verdict {verdict!r}, expected kept, rejected or failed")
    for verdict, count in expected.items():
        if found[verdict] != count:
            problems.add(LEDGER, f"{found[verdict]} rows {verdict}, but the manifest counts {count}")
    if sum(verdicts.values()) != manifest.planned:
        problems.add(LEDGER, f"{sum(verdicts.values())} rows, but the manifest counts {manifest.planned} as planned")
    for reason in sorted(set(reasons) | set(manifest.rejected)):
        if reasons[reason] != manifest.rejected.get(reason, 0):
            count = manifest.rejected.get(reason, 0)
            problems.add(LEDGER, f"{reasons[reason]} rows rejected for {reason!r}, but the manifest counts {count}")
    if METADATA in usable:
        _same_kept_rows(path, usable[METADATA], problems)


def _first(reasons: list[Any] | None, manifest: Manifest) -> str:
    """Under which of the manifest's reasons a rejected sample was counted: "score 0.31 < 0.50" counts as "score"."""
    first = str(reasons[0]) if reasons else ""
    return first if first in manifest.rejected else first.split(" ", 1)[0]


def _same_kept_rows(ledger: Path, metadata: Path, problems: Problems) -> None:
    kept = Rows(ledger, keep=equals("verdict", "kept"))
    _in_step(METADATA, "ledger.parquet", Rows(metadata), kept, problems)


def _in_step(name: str, other: str, one: Rows, two: Rows, problems: Problems) -> None:
    """That two tables hold the same rows in the same order."""
    while True:
        left, right = one.take(BATCH), two.take(BATCH)
        if left is None and right is None:
            return
        found = different(left, right)
        for row, what in found:
            problems.add(name, f"row {row} {what}, against {other}")
        if len(found) > BATCH // 2:
            return  # out of step: all others would differ as well


def _index(path: Path, usable: dict[str, Path], _: Manifest, __: Notebook, problems: Problems) -> None:
    if METADATA in usable:
        _in_step(INDEX, METADATA, Rows(path, ["id"]), Rows(usable[METADATA], ["id"]), problems)


def _sources(path: Path, _: dict[str, Path], __: Manifest, notebook: Notebook, problems: Problems) -> None:
    ascending = Ascending(SOURCES, problems)
    for batch in batches(path, BATCH, ["id", "group", "split"]):
        ascending.check(batch.column("id"))
        notebook.belongs(pairs(batch, "group", "split"))
        notebook.source(zip(batch.column("id").to_pylist(), batch.column("split").to_pylist(), strict=True))
