"""A folder of made-up rows with the facts that its documents are rendered from."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.formats import coco, parquet
from storage.records import SOURCE_SCHEMA, Outcome, SetScore
from tasks.documents import licences, tally
from tasks.documents.facts import Facts, Ingredient, PublishedFile
from tasks.documents.licences import Licensed
from tests.fakes.samples import SCORES, table

FID = SetScore(
    name="fid",
    value=1.2345,
    low=1.0,
    high=1.5,
    floor=0.3,
    floor_low=0.2,
    floor_high=0.4,
    over_floor=4.115,
    p=0.004,
    control=0.9,
    n_real=100,
    n_synthetic=12,
    extractor="x@0123456789ab",
)
KID = SetScore(name="kid", value=None, low=None, high=None, n_real=1, n_synthetic=1, extractor="x@0", note="too few")
PHANTOM = Licensed(name="scans of phantom", licence="Apache-2.0", attribution="phantom simulator")
BASE = Licensed(name="base sonoforge-base", licence="apache-2.0")
INGREDIENTS = [
    Ingredient(name="scans", sha256="5c" * 32, uri="store:builds/ingest/ab/scans.parquet"),
    Ingredient(name="base", sha256="ba" * 32, uri="sonoforge:models/sonoforge-base"),
    Ingredient(name="adapter/malignant", sha256="ad" * 32, uri="store:builds/train-adapter/cd/w.safetensors"),
    Ingredient(name="judge/classifier", sha256="1d" * 32),
]


def fill(folder: Path, count: int = 30) -> Path:
    """Write Parquet and COCO of `count` planned rows, and the scans that they descend from; the folder."""
    parquet.write(table(count).to_batches(), folder)
    scan = {"label": "normal", "organ": "breast", "dataset": "phantom", "split": "train", "verdict": "kept"}
    scans = [scan | {"id": f"phantom-{index:04d}", "group": f"g{index // 3}", "reasons": []} for index in range(count)]
    pq.write_table(pa.Table.from_pylist(scans, schema=SOURCE_SCHEMA), folder / "sources.parquet")
    coco.write(folder, folder)
    return folder


def facts(folder: Path, **changes: Any) -> Facts:
    """The facts of a filled folder."""
    ledger = pq.read_table(folder / "ledger.parquet")
    verdicts = ledger.column("verdict").to_pylist()
    known: dict[str, Any] = {
        "dataset": "demo",
        "description": "Speckle with an ellipse.",
        "recipe": {"name": "demo", "gate": {"min_kept": 1}},
        "recipe_yaml": "name: demo\n",
        "recipe_digest": "cafe" * 16,
        "outcome": Outcome(
            planned=len(verdicts),
            kept=verdicts.count("kept"),
            rejected={"segmenter_dice": verdicts.count("rejected")},
            failed=verdicts.count("failed"),
            scores=[FID, KID],
        ),
        "tally": tally.count(
            pq.read_table(folder / "metadata.parquet").to_batches(max_chunksize=7), ledger.to_batches(), SCORES
        ),
        "terms": licences.combine([PHANTOM, BASE]),
        "sources": ["scans of phantom: Apache-2.0. phantom simulator", "base sonoforge-base: apache-2.0."],
        "formats": ["parquet", "coco"],
        "score_names": SCORES,
        "limits": {"segmenter_dice": (0.5, None)},
        "gates": {"samples kept": "at least 1 samples kept", "fid": "fid ≤ 5"},
        "ingredients": INGREDIENTS,
        "packages": {"sonoforge": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu"},
    }
    return Facts(**{**known, **changes})


def files(folder: Path) -> list[PublishedFile]:
    """Every file of a folder."""
    return [
        PublishedFile(
            path=path.relative_to(folder).as_posix(),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            bytes=path.stat().st_size,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
