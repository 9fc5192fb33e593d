"""The nouns that cross layers, and the Arrow schemas of what is stored about them.

Glossary:

- **Scan**: one real image as its source delivers it, with mask, label and where it came from.
- **Group**: patient, exam or near-duplicate cluster; the unit of every split.
- **Sample**: one row of a dataset: image, mask, label, lineage, scores, verdict.
- **Ref**: what one step hands the next: where the bytes are, their digest, how many rows.
- **Score**: one number about a set of images, with its N, extractor, interval and floor.
- **Manifest**: the list of files that is a version. A version exists exactly when its manifest exists.
- **Channel**: a name such as "production" that is moved from version to version; a log of `ChannelEntry`.
- **Tombstone**: says that a version was retracted, and why.
- **Lease**: says which files somebody is working with, so that garbage collection leaves them alone.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage import keys

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
    disjoint halves of the real images at the same N: the best any generator could reach. `over_floor*` is the value
    in multiples of that floor, also where the value itself is refused. `p` is the permutation p-value of a test that
    the two sets do not differ. `control` is what the same score says of images damaged on purpose: a score that does
    not tell those apart proves nothing by telling nothing apart.
    `value` is None where the score refuses to be a number; `note` then says why.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    over_floor: float | None = None
    over_floor_low: float | None = None
    over_floor_high: float | None = None
    p: float | None = None
    control: float | None = None
    n_real: int
    n_synthetic: int
    extractor: str
    note: str = ""


class ManifestFile(Record):
    """One file of a version: its `path` for readers, the content-addressed `key` that holds its bytes."""

    path: str
    key: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=50 * 2**40)  # no object store holds larger objects
    rows: int | None = Field(default=None, ge=0, le=10**12)


class Outcome(Record):
    """How the planned samples ended, and what the kept ones score.

    `rejected` counts every rejected sample once, under its first reason: planned = kept + sum(rejected) + failed.
    `gate` is pass where every limit on the set holds with its whole interval, warn where only the value holds, else
    fail: a failed set is not published. `warnings` say what only just held, `advice` what would change that.
    """

    planned: int = Field(ge=0, le=10**12)
    kept: int = Field(ge=0, le=10**12)
    rejected: dict[str, Annotated[int, Field(ge=0, le=10**12)]]
    failed: int = Field(ge=0, le=10**12)
    scores: list[SetScore]
    gate: Literal["pass", "warn", "fail"] = "pass"
    warnings: list[str] = []
    advice: list[str] = []


class Written(Record):
    """What a format says of one file that it wrote: its rows, and its digest where it was worked out on the way."""

    rows: int
    sha256: str | None = None


class Manifest(Outcome):
    """Everything that is known of a published version. `digest` covers paths and contents of all files."""

    format: Literal["sonoforge-manifest-2"] = "sonoforge-manifest-2"
    dataset: str
    version: int
    digest: str
    publication: str  # random: tells this claim of the number from an equal one of somebody else
    created: str  # UTC, ISO 8601; not part of `digest`
    files: list[ManifestFile]
    licences: list[str]
    recipe: dict[str, object]
    provenance: dict[str, str]
    inputs: list[str] = []  # keys of the steps it was made from (builds/<step>/<key>): garbage collection keeps them

    @model_validator(mode="after")
    def _stays_inside(self) -> "Manifest":
        keys.check_paths(file.path for file in self.files)
        for file in self.files:
            expected = keys.object_key(self.dataset, file.sha256)
            if file.key not in (expected, expected + PurePosixPath(file.key).suffix):
                raise ValueError(f"{file.path!r} is kept under {file.key!r}, expected {expected}")
        return self


class ChannelEntry(Record):
    """One move of a channel: from entry `number` on, until the next, it means `version`."""

    format: Literal["sonoforge-channel-1"] = "sonoforge-channel-1"
    dataset: str
    channel: str
    number: int  # 1, 2, 3 …, as in the key
    version: int
    moved: str  # UTC, ISO 8601
    id: str  # random: tells this move from an equal one of somebody else


class Tombstone(Record):
    """A retraction. The version's files stay; nobody is given them any more."""

    format: Literal["sonoforge-tombstone-1"] = "sonoforge-tombstone-1"
    dataset: str
    version: int
    reason: str
    retracted: str  # UTC, ISO 8601
    id: str


class Lease(Record):
    """What somebody relies on while it runs. Renewed until it ends; else it runs out, by the store's clock."""

    format: Literal["sonoforge-lease-1"] = "sonoforge-lease-1"
    id: str
    holder: str  # "publish demo on HOST, process 4711"
    keys: list[str]  # objects, or folders of them (ending in "/"), that must not be collected
    expires: str  # UTC, ISO 8601, by the holder's clock: for people


class Stored(Record):
    """One object of a store as a listing shows it."""

    key: str
    bytes: int
    modified: datetime  # with time zone


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
    ("background_kind", pa.string()),  # real | simulated | synthetic; null, as its id, where a picture is drawn whole
    ("background_strength", pa.float32()),  # how much of the scan was redrawn; null unless synthetic
    ("background_similarity", pa.float32()),  # to that scan, -1 to 1; null unless synthetic
    ("mask_id", pa.string()),  # the real mask it was derived from or, of a model's masks, the nearest one
    ("mask_kind", pa.string()),  # donor | model | ellipse | drawn (with its picture)
    ("margin", pa.string()),  # circumscribed | microlobulated | spiculated
    ("orientation", pa.string()),  # parallel | not parallel
    ("base_digest", pa.string()),
    ("adapter_digest", pa.string()),
    ("controlnet_digest", pa.string()),  # null where no ControlNet held the picture to its mask
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
        ("region", IMAGE),  # the declared region: outside it the background is untouched; null: drawn whole
        ("background", IMAGE),  # where it is synthetic; else null, and `background_id` says where it is
        ("label", pa.string()),
        ("organ", pa.string()),
        ("dataset", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("pixel_mm", pa.float64()),
        ("head_circumference_mm", pa.float64()),  # of the mask, where it is a head's and the pixel size is known
        ("sha256", pa.string()),
        *LINEAGE_FIELDS,
        ("failure", pa.string()),  # null where the sample was made
    ]
)
"""One planned synthetic sample: made, or failed with the reason."""

SOURCE_SCHEMA = pa.schema([field for field in SCAN_SCHEMA if field.type != IMAGE])
"""One real scan without its pixels: a row of `sources.parquet`, to which lineage ids point."""

PIXEL_COLUMNS = ("image", "mask", "region", "background")
"""Columns of a sample that hold a PNG, each optional but the first."""

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),  # "data/train-00000-of-00002.parquet"
        *(
            field
            for name in PIXEL_COLUMNS
            for field in (
                pa.field(f"{name}_at", pa.int64()),  # where the PNG begins in that file; null where there is none
                pa.field(f"{name}_bytes", pa.int32()),
                pa.field(f"{name}_blake3", pa.binary(16)),  # of the PNG: `images.png_digest`
            )
        ),
    ]
)
"""One kept sample: where its PNGs lie, byte for byte, so that one can be fetched without its neighbours."""

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
