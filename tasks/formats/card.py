"""README.md of a version: a dataset card with the YAML header that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from storage.records import SPLITS, SetScore

_HUB_LICENCES = {
    "apache-2.0": "apache-2.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc by-nc 4.0": "cc-by-nc-4.0",
    "cc by-nc-sa 4.0": "cc-by-nc-sa-4.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc0": "cc0-1.0",
    "cc0 1.0": "cc0-1.0",
    "cc0-1.0": "cc0-1.0",
    "mit": "mit",
}
_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]


@dataclass(frozen=True)
class Card:
    """What the card says.

    `samples` holds the kept samples by split and label. `rejected` counts each rejected sample once.
    `sources` are one line each: name, licence, citation. `gate` lists the set gates that were not met.
    """

    dataset: str
    description: str
    samples: Mapping[str, Mapping[str, int]]
    planned: int
    rejected: Mapping[str, int]
    failed: int
    scores: Sequence[SetScore]
    licences: Sequence[str]
    sources: Sequence[str]
    gate: Sequence[str]
    recipe_yaml: str


def render(card: Card) -> str:
    """The card as Markdown. Same facts, same text: it names no date and no version number."""
    header = yaml.safe_dump(_header(card), sort_keys=False, allow_unicode=True)
    kept = sum(sum(labels.values()) for labels in card.samples.values())
    sections = [
        f"# {card.dataset}",
        card.description,
        "**Every lesion here is synthetic**, drawn into the background that its row names; a real background is a real "
        "patient. Made to train and test models, not to diagnose anybody. A model trained on it must be tested on "
        "real scans that neither it nor the generator has seen.",
        _use(card),
        "## What is in it\n\n" + _samples_table(card.samples),
        f"{card.planned} planned = {kept} kept + {sum(card.rejected.values())} rejected + {card.failed} "
        "failed. Rejected and failed samples are rows of `ledger.parquet`, each with its reasons.",
        _rejections_table(card.rejected),
        "## Quality of the set\n\n" + _scores_table(card.scores, card.gate),
        _columns(),
        "## Sources and licences\n\n" + "\n".join(f"- {line}" for line in card.sources),
        "## Recipe\n\n```yaml\n" + card.recipe_yaml.strip() + "\n```",
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def number(value: float | None) -> str:
    """A score as people read it: three significant digits, a dash for none.

    >>> number(0.123456), number(1234.5), number(None)
    ('0.123', '1234', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _header(card: Card) -> dict[str, object]:
    kept = sum(sum(labels.values()) for labels in card.samples.values())
    names = sorted({_HUB_LICENCES.get(licence.lower(), "other") for licence in card.licences})
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS if card.samples.get(split)]
    header: dict[str, object] = {
        "pretty_name": card.dataset,
        "license": names[0] if len(names) == 1 else names,
        "task_categories": ["image-classification", "image-segmentation"],
        "tags": ["medical", "ultrasound", "synthetic", "sonoforge"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [next((name for limit, name in _SIZES if kept < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    if "other" in names:
        header["license_name"] = "; ".join(card.licences)
    return header


def _use(card: Card) -> str:
    splits = [split for split in SPLITS if card.samples.get(split)]
    files = ", ".join(f'"{split}": "{card.dataset}/data/{split}-*.parquet"' for split in splits)
    return f"""## Use it

```sh
sonoforge pull {card.dataset}@latest {card.dataset} --format parquet
```

```python
from datasets import load_dataset
rows = load_dataset("parquet", data_files={{{files}}})

import pandas as pd
table = pd.read_parquet("{card.dataset}/metadata.parquet")  # no pixels: quick to filter
```

`--format coco` gives `images/`, `masks/` and `annotations/<split>.json`."""


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
        "N real",
        "N synthetic",
        "extractor",
    ]
    lines = [_line(head), _line(["---", "---:", "---", "---", "---:", "---:", "---"])]
    for score in scores:
        interval = f"{number(score.low)} … {number(score.high)}" if score.low is not None else "–"
        floor = number(score.floor)
        if score.floor_low is not None:
            floor += f" ({number(score.floor_low)} … {number(score.floor_high)})"
        counts = [str(score.n_real), str(score.n_synthetic)]
        lines.append(_line([score.name, number(score.value), interval, floor, *counts, score.extractor]))
    notes = [f"- {score.name}: {score.note}" for score in scores if score.note]
    if gate:
        notes.append("- **Not met:** " + "; ".join(gate))
    return "\n".join(lines) + ("\n\n" + "\n".join(notes) if notes else "")


def _columns() -> str:
    return """## Columns

| column | meaning |
| --- | --- |
| `id` | unique in the dataset |
| `image`, `mask` | PNG: 8-bit grey; 1-bit, exact by construction, absent where there is none |
| `region` | the declared region: outside it, the image equals its background bit for bit |
| `label`, `organ`, `dataset` | what it shows; where its background comes from |
| `group`, `split` | patient, exam or near-duplicate cluster it descends from |
| `pixel_mm` | millimetres per pixel where known |
| `background_id`, `mask_id`, `levels_id` | lineage: the scans it was made from |
| `base_digest`, `decoder_digest`, `adapter_digest`, `harmonizer_digest` | lineage: the weights it was made with |
| `mask_kind` | the outline is a real one deformed (donor) or drawn from a shape model (model) |
| `margin`, `orientation` | BI-RADS terms, measured on the mask |
| `background_kind` | real, simulated or synthetic |
| `background_strength`, `background_similarity` | of a synthetic one: share redrawn, likeness to its scan |
| `prompt`, `sampler`, `steps`, `guidance`, `seed`, `candidates`, … | lineage: how |
| one column a score | per-image scores |
| `verdict`, `reasons` | kept; in the ledger also rejected or failed, and why |
| `recipe_digest`, `licence` | what made it, and on which terms |"""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
