"""The nouns that cross layers, and the Arrow schemas of what is stored about them.

Glossary:

- **Scan**: one real image as its source delivers it, with mask, label and where it came from.
- **Group**: patient, exam or near-duplicate cluster; the unit of every split.
- **Sample**: one row of a dataset: image, mask, label, lineage, scores, verdict.
- **Ref**: what one step hands the next: where the bytes are, their digest, how many rows.
- **Score**: one number about a set of images, with its N, extractor, interval and floor.
- **Manifest**: the list of files that is a version. A version exists exactly when its manifest exists.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Record(BaseModel):
    """A frozen pydantic model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ref(Record):
    """What a step made: `key` in the store, the digest of its bytes, and counts worth showing.

    `sha256` identifies the content: equal digests mean equal rows.
    """

    key: str
    sha256: str
    rows: int = 0
    counts: dict[str, int] = {}


class SetScore(Record):
    """One number about a set of synthetic images against a set of real ones.

    `low`/`high` bound the central 95 % bootstrap interval. `floor*` is the same statistic between two
    disjoint halves of the real images at the same N: the best any generator could reach.
    `value` is None where the score refuses to be a number; `note` then says why.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    n_real: int
    n_synthetic: int
    extractor: str
    note: str = ""


class ManifestFile(Record):
    """One file of a version: its `path` for readers, the content-addressed `key` that holds its bytes."""

    path: str
    key: str
    sha256: str
    bytes: int
    rows: int | None = None


class Outcome(Record):
    """How the planned samples ended, and what the kept ones score.

    `rejected` counts every rejected sample once, under its first reason: planned = kept + sum(rejected) + failed.
    """

    planned: int
    kept: int
    rejected: dict[str, int]
    failed: int
    scores: list[SetScore]


class Manifest(Outcome):
    """Everything that is known of a published version. `digest` covers paths and contents of all files."""

    format: Literal["sonoforge-manifest-1"] = "sonoforge-manifest-1"
    dataset: str
    version: int
    digest: str
    created: str  # UTC, ISO 8601; not part of `digest`
    files: list[ManifestFile]
    licences: list[str]
    recipe: dict[str, object]
    provenance: dict[str, str]


@dataclass(frozen=True)
class Scan:
    """One file of a source, readable or not.

    `image` is grey, uint8, (height, width), and None where the file could not be used; `defects` then
    says why. `mask` is bool of the same shape, or None where the source draws none. `group` is the
    patient or exam where the source knows it, else None. `split` is the source's own, else None.
    """

    file: str
    image: NDArray[np.uint8] | None
    mask: NDArray[np.bool_] | None
    label: str
    organ: str
    group: str | None = None
    pixel_mm: float | None = None
    split: Split | None = None
    defects: tuple[str, ...] = ()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores an image: encoded bytes and a name."""

SCAN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE),
        ("mask", IMAGE),
        ("label", pa.string()),
        ("organ", pa.string()),
        ("dataset", pa.string()),
        ("file", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("pixel_mm", pa.float64()),
        ("sha256", pa.string()),
        ("verdict", pa.string()),  # kept | set aside
        ("reasons", pa.list_(pa.string())),
    ]
)
"""One ingested scan: a row for every file, with the reasons where it is set aside."""

LINEAGE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("background_id", pa.string()),
    ("background_kind", pa.string()),  # real | simulated | synthetic
    ("background_strength", pa.float32()),  # how much of the scan was redrawn; null unless synthetic
    ("background_similarity", pa.float32()),  # to that scan, -1 to 1; null unless synthetic
    ("mask_id", pa.string()),  # the real mask it was derived from or, of a model's masks, the nearest one
    ("mask_kind", pa.string()),  # donor | model
    ("margin", pa.string()),  # circumscribed | microlobulated | spiculated
    ("orientation", pa.string()),  # parallel | not parallel
    ("base_digest", pa.string()),
    ("adapter_digest", pa.string()),
    ("harmonizer_digest", pa.string()),  # null where seams are repaired by the label's own adapter
    ("decoder_digest", pa.string()),  # null where pictures are decoded by the base's own decoder
    ("levels_id", pa.string()),  # the real lesion whose grey levels it was given; null where as drawn
    ("prompt", pa.string()),
    ("sampler", pa.string()),
    ("steps", pa.int32()),
    ("guidance", pa.float32()),
    ("seed", pa.int64()),
    ("candidates", pa.int32()),
    ("critic", pa.float32()),
    ("outside_changed_px", pa.int32()),
]

SYNTHETIC_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE),
        ("mask", IMAGE),
        ("region", IMAGE),  # the declared region: outside it the background is untouched
        ("background", IMAGE),  # where it is synthetic; else null, and `background_id` says where it is
        ("label", pa.string()),
        ("organ", pa.string()),
        ("dataset", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("pixel_mm", pa.float64()),
        ("sha256", pa.string()),
        *LINEAGE_FIELDS,
        ("failure", pa.string()),  # null where the sample was made
    ]
)
"""One planned synthetic sample: made, or failed with the reason."""

LEDGER_FIELDS: list[tuple[str, pa.DataType]] = [("verdict", pa.string()), ("reasons", pa.list_(pa.string()))]
"""verdict: kept | rejected | failed."""


def sample_schema(score_names: list[str]) -> pa.Schema:
    """Schema of a published row: the synthetic sample, one float column a score, and its verdict."""
    fields = [field for field in SYNTHETIC_SCHEMA if field.name != "failure"]
    scores = [pa.field(name, pa.float32()) for name in score_names]
    tail = [pa.field(name, kind) for name, kind in LEDGER_FIELDS]
    extra = [pa.field("recipe_digest", pa.string()), pa.field("licence", pa.string())]
    return pa.schema([*fields, *scores, *extra, *tail])


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How a table is written as Parquet everywhere: options of `pyarrow.parquet.ParquetWriter`.

    PNG bytes stay as they are (they do not compress again, and zstd costs six times the time); all else is
    zstd. Dictionaries only for text that repeats. Page index and checksums for readers that seek and check.
    """
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    pixels = {f"{field.name}.bytes" for field in schema if field.type == IMAGE}
    repeating = {"label", "organ", "dataset", "split", "verdict", "licence", "background_kind", "base_digest"}
    repeating |= {"mask_kind", "margin", "orientation"}
    return {
        "compression": {leaf: "NONE" if leaf in pixels else "ZSTD" for leaf in leaves},
        "use_dictionary": sorted(repeating & set(schema.names)) or False,
        # Statistics of pixels would put whole images into the footer.
        "write_statistics": [leaf for leaf in leaves if leaf not in pixels],
        "write_page_index": True,
        "write_page_checksum": True,
    }


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    if pa.types.is_struct(kind):
        children = [kind.field(i) for i in range(kind.num_fields)]
        return [leaf for child in children for leaf in _leaves(f"{path}.{child.name}", child.type)]
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
