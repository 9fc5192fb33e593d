"""A folder with every kind of file that a version has, and what its publisher says of it."""

from pathlib import Path

from storage.records import SetScore
from storage.versions import About
from tasks.formats import coco, parquet
from tests.fakes.samples import table

FID = SetScore(name="fid", value=1.5, low=1.1, high=2.0, n_real=20, n_synthetic=24, extractor="fake@000000000000")


def fill(folder: Path, count: int = 24, seed: int = 0) -> About:
    """Write Parquet, COCO and a card; the matching About."""
    rows = table(count, seed=seed)
    written = parquet.write(rows.to_batches(), folder)
    written |= coco.write(folder, folder)
    (folder / "README.md").write_text("# demo\n")
    verdicts = rows.column("verdict").to_pylist()
    return About(
        planned=count,
        kept=verdicts.count("kept"),
        rejected={"segmenter_dice": verdicts.count("rejected")},
        failed=verdicts.count("failed"),
        scores=[FID],
        licences=["Apache-2.0"],
        recipe={"name": "demo", "count": count},
        provenance={"pyarrow": "any"},
        rows=written,
    )
