"""README.md of a version: a dataset card with the YAML header that the Hugging Face hub reads."""

import re
from collections.abc import Mapping, Sequence

import yaml

from storage.records import SPLITS, SetScore
from tasks.documents.columns import COLUMNS
from tasks.documents.croissant import cite_as
from tasks.documents.facts import Facts
from tasks.documents.licences import Combined, find
from tasks.documents.routes import SYNTHETIC, route
from tasks.documents.scorecard import FRAMEWORK, Scorecard

_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
_FILES = (
    ("", "`data/<split>-0000i-of-0000N.parquet`", "kept samples with their pixels"),
    ("", "`metadata.parquet`", "kept samples without pixels: quick to filter"),
    ("", "`ledger.parquet`", "all planned samples without pixels: kept, rejected and failed, with reasons"),
    ("", "`index.parquet`", "where each kept sample's PNGs lie in the data files, byte for byte"),
    ("", "`sources.parquet`", "the scans that samples descend from, without pixels"),
    ("coco", "`coco/<split>.json`", "COCO instance annotations (in the store; `pull --format coco` makes its own)"),
    (
        "webdataset",
        "`webdataset/<split>-00000i.tar`",
        "WebDataset shards (in the store; `pull --format webdataset` makes its own)",
    ),
    ("", "`recipe.yaml`", "all that decides the content"),
    ("", "`croissant.json`", "Croissant 1.1: every column, for machines"),
    ("", "`provenance.json`", "in-toto statement with SLSA provenance: what every file was made from"),
    ("", "`scorecard.json`", "what was measured, and what was not, under the 7 Cs"),
    ("", "`report.html`, `samples.png`", "the same for people, with pictures"),
)


def render(facts: Facts, scorecard: Scorecard) -> str:
    """The card as Markdown. Same facts, same text: it names no date and no version number."""
    header = yaml.safe_dump(_header(facts), sort_keys=False, allow_unicode=True)
    outcome = facts.outcome
    sections = [
        f"# {facts.dataset}",
        facts.description,
        _synthetic(facts),
        *(f"**Licence not settled:** {warning}." for warning in facts.terms.warnings),
        _use(facts),
        "## What is in it\n\n" + _samples_table(facts.tally.samples),
        f"{outcome.planned} planned = {outcome.kept} kept + {sum(outcome.rejected.values())} rejected + "
        f"{outcome.failed} failed. Rejected and failed samples are rows of `ledger.parquet`, each with its reasons.",
        _rejections_table(outcome.rejected),
        "## Quality of the set\n\n" + _scores_table(outcome.scores, facts.problems),
        "## Scorecard\n\n" + _scorecard_table(scorecard),
        "## Files\n\n" + _files_table(facts.formats),
        "## Columns\n\n" + _columns(facts.score_names),
        "## Licence and sources\n\n" + _licence(facts.terms, facts.sources),
        "## Citation\n\n```bibtex\n" + cite_as(facts) + "\n```",
        "## Recipe\n\n```yaml\n" + facts.recipe_yaml.strip() + "\n```",
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _synthetic(facts: Facts) -> str:
    said, rest = SYNTHETIC[route(facts.recipe)].split(" synthetic", 1)
    return (
        f"**{said} synthetic**{rest} Made to train and test models, not to diagnose anybody. A model trained on it "
        "must be tested on real scans that neither it nor the generator has seen."
    )


def number(value: float | None) -> str:
    """A score as people read it: three significant digits, a dash for none.

    >>> number(0.123456), number(1234.5), number(None)
    ('0.123', '1234', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _header(facts: Facts) -> dict[str, object]:
    kept = sum(sum(labels.values()) for labels in facts.tally.samples.values())
    terms = facts.terms
    splits = [split for split in SPLITS if facts.tally.samples.get(split)]
    header: dict[str, object] = {
        "pretty_name": facts.dataset,
        "license": terms.hub[0] if len(terms.hub) == 1 else terms.hub,
        "task_categories": ["image-classification", "image-segmentation"],
        "tags": ["medical", "ultrasound", "synthetic", "sonoforge"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [next((name for limit, name in _SIZES if kept < limit), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    }
    if "other" in terms.hub:
        header["license_name"] = _slug(terms)
    return header


def _slug(terms: Combined) -> str:
    """The licences that the hub does not know, as it names such: lower case, digits, dots and dashes."""
    unknown = " ".join(name.removeprefix("other: ") for name in terms.names if find(name).hub == "other")
    return re.sub(r"[^a-z0-9.]+", "-", unknown.lower()).strip("-.")


def _use(facts: Facts) -> str:
    """How to read it; every Python block runs as it stands in the folder above the pulled one."""
    name = facts.dataset
    splits = [split for split in SPLITS if facts.tally.samples.get(split)]
    first = splits[0] if splits else "train"
    files = ", ".join(f'"{split}": "{name}/data/{split}-*.parquet"' for split in splits)
    blocks = [
        f"```sh\nsonoforge pull {name}@latest {name}\n```",
        f"""```python
import pandas as pd
table = pd.read_parquet("{name}/metadata.parquet")  # no pixels: quick to filter

import duckdb
pictures = duckdb.sql("SELECT d.id, d.image.bytes FROM '{name}/data/*.parquet' d WHERE d.pixel_mm > 0")

from datasets import load_dataset
rows = load_dataset("parquet", data_files={{{files}}}, streaming=True)

import mlcroissant
samples = mlcroissant.Dataset("{name}/croissant.json").records("samples")  # reads the whole set into memory
```""",
    ]
    blocks.append(f"""```sh
sonoforge pull {name}@latest {name}-coco --format coco  # images/, masks/ and annotations/<split>.json
sonoforge pull {name}@latest {name}-tars --format webdataset
```

```python
from pycocotools.coco import COCO
outlined = COCO("{name}-coco/annotations/{first}.json")

import glob
import webdataset
stream = webdataset.WebDataset(sorted(glob.glob("{name}-tars/{first}-*.tar")), shardshuffle=False)
```""")
    blocks += [_byte_ranges(name), _without_pulling(name)]
    return "## Use it\n\n" + "\n\n".join(blocks)


def _byte_ranges(name: str) -> str:
    return f"""PNG bytes lie in the data files uncompressed and in one piece each. `index.parquet` says where: `file`,
`image_at` (first byte), `image_bytes` (how many) and `image_blake3` (first 16 bytes of their BLAKE3); the same for
`mask`, `region` and `background`. So one picture is one range of bytes, on disk as over HTTP:

```python
import pandas as pd
row = pd.read_parquet("{name}/index.parquet").iloc[0]
with open("{name}/" + row.file, "rb") as file:
    file.seek(row.image_at)
    png = file.read(row.image_bytes)
```"""


def _without_pulling(name: str) -> str:
    return f"""Without pulling: a version's files lie in the store under their digests, and its manifest says which.
For a store at `s3://bucket/folder`, with credentials where the AWS tools look for them:

```py
import duckdb, fsspec
from storage.store import Store
from storage.versions import open_manifest
store = Store("s3://bucket/folder")
at = {{file.path: store.uri(file.key) for file in open_manifest(store, "{name}@latest").files}}
duckdb.register_filesystem(fsspec.filesystem("s3"))  # or DuckDB's own: INSTALL httpfs; LOAD httpfs
duckdb.sql(f"SELECT label, count(*) FROM '{{at['metadata.parquet']}}' GROUP BY label")
```"""


def _samples_table(samples: Mapping[str, Mapping[str, int]]) -> str:
    labels = sorted({label for counts in samples.values() for label in counts})
    lines = [_line(["split", *labels, "all"]), _line(["---", *["---:"] * (len(labels) + 1)])]
    for split in SPLITS:
        counts = samples.get(split, {})
        if counts:
            cells = [str(counts.get(label, 0)) for label in labels]
            lines.append(_line([split, *cells, str(sum(counts.values()))]))
    lines.append("\nSplits are by group (patient, exam or near-duplicate cluster), of what a sample descends from.")
    return "\n".join(lines)


def _rejections_table(rejected: Mapping[str, int]) -> str:
    if not rejected:
        return ""
    ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(["| rejected because | samples |", "| --- | ---: |", *(_line([k, str(n)]) for k, n in ordered)])


def _scores_table(scores: Sequence[SetScore], gate: Sequence[str]) -> str:
    if not scores:
        return "No set scores were asked for."
    head = [
        "score",
        "value",
        "95 % interval",
        "floor: real against real",
        "times the floor",
        "N real",
        "N synthetic",
        "extractor",
    ]
    lines = [_line(head), _line(["---", "---:", "---", "---", "---:", "---:", "---:", "---"])]
    for score in scores:
        interval = f"{number(score.low)} … {number(score.high)}" if score.low is not None else "–"
        floor = number(score.floor)
        if score.floor_low is not None:
            floor += f" ({number(score.floor_low)} … {number(score.floor_high)})"
        counts = [str(score.n_real), str(score.n_synthetic)]
        times = number(score.over_floor)
        lines.append(_line([score.name, number(score.value), interval, floor, times, *counts, score.extractor]))
    notes = [f"- {score.name}: {said}" for score in scores if (said := _said(score))]
    if gate:
        notes.append("- **Not met:** " + "; ".join(gate))
    return "\n".join(lines) + ("\n\n" + "\n".join(notes) if notes else "")


def _said(score: SetScore) -> str:
    tested = [] if score.p is None else [f"permutation p = {score.p:.2g}"]
    tested += [] if score.control is None else [f"{number(score.control)} on images damaged on purpose"]
    return "; ".join([*tested, *([score.note] if score.note else [])])


def _scorecard_table(scorecard: Scorecard) -> str:
    lines = [
        "Under the headings of a paper from the FDA's laboratories, which have not seen this dataset. A verdict stands "
        f"only where something was asked for in advance; `scorecard.json` has every number. {FRAMEWORK}",
        "",
        _line(["criterion", "verdict", "checks that hold", "numbers", "not measured"]),
        _line(["---", "---", "---:", "---:", "---"]),
    ]
    for criterion in scorecard.criteria:
        held = sum(check.verdict == "pass" for check in criterion.checks)
        checks = f"{held} of {len(criterion.checks)}" if criterion.checks else "–"
        numbers = str(sum(measurement.value is not None for measurement in criterion.measured))
        missing = "; ".join(criterion.not_measured)
        lines.append(_line([criterion.name, criterion.verdict, checks, numbers, missing]))
    return "\n".join(lines)


def _files_table(formats: Sequence[str]) -> str:
    listed = [_line([path, what]) for needs, path, what in _FILES if not needs or needs in formats]
    return "\n".join([_line(["file", "what"]), _line(["---", "---"]), *listed])


def _columns(score_names: Sequence[str]) -> str:
    lines = [_line([f"`{name}`", what]) for name, what in COLUMNS.items() if name != "file"]
    scores = ", ".join(f"`{name}`" for name in score_names) or "one column a score"
    return "\n".join(
        [_line(["column", "meaning"]), _line(["---", "---"]), *lines, _line([scores, "scores of the picture"])]
    )


def _licence(terms: Combined, sources: Sequence[str]) -> str:
    asked = {
        "name whom it descends from": terms.terms.attribution,
        "pass on what you make from it under the same licence": terms.terms.share_alike,
        "no commercial use": terms.terms.non_commercial,
        "no use that the licences name as forbidden": terms.terms.use_restrictions,
    }
    duties = "; ".join(duty for duty, holds in asked.items() if holds)
    lines = [
        f"Combined from the licences of all sources: **{terms.name}**." + (f" In short: {duties}." if duties else ""),
        *([f"SPDX: `{terms.spdx}`."] if terms.spdx else []),
        "This is no legal advice.",
    ]
    named = "\n".join(f"- {line}" for line in sources)
    return " ".join(lines) + "\n\n" + named


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
