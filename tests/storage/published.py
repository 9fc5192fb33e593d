"""A folder with every kind of file that a version has, and what its publisher says of it."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.formats import coco, parquet, webdataset
from storage.records import SOURCE_SCHEMA, SetScore, Written, parquet_options
from storage.versions import About
from tests.fakes.samples import table

FID = SetScore(name="fid", value=1.5, low=1.1, high=2.0, n_real=20, n_synthetic=24, extractor="fake@000000000000")


def fill(folder: Path, count: int = 24, seed: int = 0, px: int = 32) -> About:
    """Write `count` made-up rows as Parquet and COCO, with a card; the matching About."""
    about = write(folder, table(count, px, seed), tars=False)
    return about.model_copy(update={"scores": [FID], "recipe": {"name": "demo", "count": count}})


def write(folder: Path, rows: pa.Table | None = None, *, tars: bool = True) -> About:
    """A folder that verifies, made of `rows`, and what an honest publisher says of it."""
    rows = table(24) if rows is None else rows
    written = parquet.write(rows.to_batches(), folder)
    written["sources.parquet"] = _sources(rows, folder / "sources.parquet")
    written |= coco.write(folder, folder)
    written |= webdataset.write(folder, folder) if tars else {}
    (folder / "README.md").write_text("# demo\n")
    verdicts = rows.column("verdict").to_pylist()
    reasons = zip(verdicts, rows.column("reasons").to_pylist(), strict=True)
    rejected = [why[0].split(" ")[0] for verdict, why in reasons if verdict == "rejected"]
    return About(
        planned=rows.num_rows,
        kept=verdicts.count("kept"),
        rejected=dict(Counter(rejected)),
        failed=verdicts.count("failed"),
        scores=[],
        licences=["Apache-2.0"],
        recipe={"name": "demo"},
        provenance={"pyarrow": "any"},
        written=written,
    )


def _sources(rows: pa.Table, path: Path) -> Written:
    scans: dict[str, dict[str, Any]] = {}
    for row in rows.to_pylist():
        for column in ("background_id", "mask_id"):
            if row[column] is not None:
                scans[row[column]] = {
                    "id": row[column],
                    "label": "normal",
                    "organ": "breast",
                    "dataset": "phantom",
                    "file": f"{row[column]}.png",
                    "group": row["group"],
                    "split": row["split"],
                    "sha256": hashlib.sha256(row[column].encode()).hexdigest(),
                    "verdict": "kept",
                    "reasons": [],
                }
    listed = pa.Table.from_pylist([scans[name] for name in sorted(scans)], schema=SOURCE_SCHEMA)
    pq.write_table(listed, path, **parquet_options(listed.schema))
    return Written(rows=listed.num_rows)
