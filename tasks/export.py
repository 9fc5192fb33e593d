"""Export: write the files of a version and publish them; or say why the set may not be published."""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from prefect import task

from storage import keys
from storage.images import decode_grey, decode_mask
from storage.records import Manifest, Outcome, Record, Ref, sample_schema
from storage.store import Store, scratch
from storage.versions import About, manifest_uri, open_manifest, publish
from tasks import report, sources
from tasks.announce import announce_samples, announce_scores
from tasks.curate import Curation
from tasks.formats import FORMATS, card
from tasks.formats.card import Card
from tasks.ingest import KeptScan, kept_scans
from tasks.report.grid import Example, contact_sheet
from tasks.reuse import Done, reuse

ALGORITHM = 2
STEP = "export"
SHEET_COLUMNS = 6
PACKAGES = (
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "monai",
    "numpy",
    "pillow",
    "pyarrow",
    "pycocotools",
)


class GateError(ValueError):
    """The kept set misses what the recipe's gate asks for; the message says what and where the report lies."""


class Facts(Record):
    """What the flow knows of a dataset besides the steps' references."""

    name: str
    description: str
    recipe: dict[str, object]
    recipe_digest: str
    source: str
    formats: list[str]
    score_names: list[str]


class Summary(Outcome):
    """What was published, or found to be there already."""

    dataset: str
    version: int
    uri: str
    digest: str
    up_to_date: bool


class Published(Record):
    """A version and the step that made it."""

    done: Done
    summary: Summary


@task(name="export")
def export(store_url: str, facts: Facts, scans: Ref, shards: Sequence[Ref], curated: Ref) -> Published:
    """Publish the kept samples of `shards` as the next version of the dataset.

    Raises:
        GateError: the set misses the gate; its report is in the store, and nothing is published.
    """
    store = Store(store_url)
    curation = Curation.model_validate_json(store.read(curated.key))
    created = False

    def make(key: str) -> Ref:
        nonlocal created
        kept = kept_scans(store, scans)
        with scratch() as temporary:
            folder = Path(temporary)
            rows = _write_formats(store, facts, shards, curation, folder)
            shown = _shown(store, shards, folder)
            html = report.render(_report_facts(facts, curation, kept, shown))
            sheet = _contact_sheet(kept, shown)
            if curation.problems:
                raise _refusal(store, key, facts, curation, html, sheet)
            (folder / "report.html").write_text(html)
            (folder / "samples.png").write_bytes(sheet)
            manifest, created = publish(store, facts.name, folder, _about(facts, curation, scans, rows))
        manifest_key = keys.manifest_key(manifest.dataset, manifest.version)
        return Ref(key=manifest_key, sha256=manifest.digest, rows=manifest.kept)

    inputs = [scans.sha256, curated.sha256, *(shard.sha256 for shard in shards)]
    done = reuse(store, STEP, ALGORITHM, facts, inputs, make)
    if not store.exists(done.ref.key):  # somebody removed the version, and left the step that made it
        store.delete(keys.step_ref(STEP, keys.step_key(STEP, ALGORITHM, facts, inputs)))
        done = reuse(store, STEP, ALGORITHM, facts, inputs, make)
    manifest = open_manifest(store, f"{facts.name}@{done.ref.key.split('/')[-2]}")
    files = {file.path: file.key for file in manifest.files}
    announce_scores(facts.name, manifest.scores)
    announce_samples(facts.name, store.read(files["samples.png"]), files["samples.png"], files["report.html"])
    return Published(done=done, summary=_summary(store, manifest, up_to_date=not created))


def _refusal(store: Store, key: str, facts: Facts, curation: Curation, html: str, sheet: bytes) -> GateError:
    """Leave report and samples of a set that misses its gate in the store; the error that says where."""
    html_key, sheet_key = keys.step_file(STEP, key, "report.html"), keys.step_file(STEP, key, "samples.png")
    store.put(html_key, html.encode())
    store.put(sheet_key, sheet)
    announce_scores(facts.name, curation.scores)
    announce_samples(facts.name, sheet, sheet_key, html_key)
    listed = "".join(f"\n  - {problem}" for problem in curation.problems)
    return GateError(f"{facts.name} is not published: the set misses its gate{listed}\nreport: {store.uri(html_key)}")


def _summary(store: Store, manifest: Manifest, *, up_to_date: bool) -> Summary:
    shared = {name: getattr(manifest, name) for name in ("dataset", "version", "digest", *Outcome.model_fields)}
    return Summary(**shared, uri=manifest_uri(store, manifest), up_to_date=up_to_date)


def _write_formats(
    store: Store, facts: Facts, shards: Sequence[Ref], curation: Curation, folder: Path
) -> dict[str, int]:
    """Every format, the recipe and the card into `folder`; rows of each file."""
    rows = FORMATS["parquet"].write(_rows(store, facts, shards, curation), folder)
    for name in facts.formats:
        if name != "parquet":
            rows |= FORMATS[name].write(folder, folder)
    (folder / "recipe.yaml").write_text(_yaml(facts.recipe))
    (folder / "README.md").write_text(card.render(_card(facts, curation, folder)))
    return rows


def _rows(store: Store, facts: Facts, shards: Sequence[Ref], curation: Curation) -> Iterator[pa.RecordBatch]:
    """All planned samples with scores and verdict, one batch of one shard in memory at a time."""
    decided = {row["id"]: row for row in store.open_table(curation.table.key).to_pylist()}
    schema = sample_schema(facts.score_names)
    for shard in shards:
        for batch in store.batches(shard.key):
            merged: list[dict[str, object]] = []
            for row in batch.to_pylist():
                verdict = decided[row["id"]]
                extra = {
                    "recipe_digest": facts.recipe_digest,
                    "licence": sources.SOURCES[facts.source].LICENCE,
                }
                merged.append({name: (row | verdict | extra)[name] for name in schema.names})
            yield pa.RecordBatch.from_pylist(merged, schema=schema)


def _shown(store: Store, shards: Sequence[Ref], folder: Path) -> pa.Table:
    """Every planned sample without pixels, but for those that a report shows."""
    rows = {row["id"]: row for row in pq.read_table(folder / "ledger.parquet").to_pylist()}
    chosen = report.choose(pa.Table.from_pylist(list(rows.values())))
    wanted = {*chosen.kept, *chosen.rejected}
    for shard in shards:
        for batch in store.batches(shard.key, ["id", "image", "mask", "region"]):
            for row in batch.to_pylist():
                pixels = row if row["id"] in wanted else dict.fromkeys(row)
                rows[row["id"]] |= {**pixels, "id": row["id"]}
    return pa.Table.from_pylist(list(rows.values()))


def _sources(facts: Facts) -> list[str]:
    source = sources.SOURCES[facts.source]
    return [f"{facts.source}: {source.LICENCE}. {source.CITATION}"]


def _real_examples(kept: Sequence[KeptScan]) -> list[Example]:
    """Lesion scans of held-out groups, so that no picture beside the synthetic ones was trained on."""
    return [
        (scan.image, scan.mask, scan.label)
        for scan in kept
        if scan.split != "train" and scan.mask is not None and scan.mask.any()
    ]


def _report_facts(facts: Facts, curation: Curation, kept: Sequence[KeptScan], shown: pa.Table) -> report.Facts:
    return report.Facts(
        title=facts.name,
        description=facts.description,
        planned=curation.planned,
        kept=curation.kept,
        failed=curation.failed,
        rejected=curation.rejected,
        scores=curation.scores,
        rows=shown,
        score_names=facts.score_names,
        thresholds={threshold.score: (threshold.min, threshold.max) for threshold in curation.thresholds},
        real=_real_examples(kept),
        gate=curation.problems,
        sources=_sources(facts),
        recipe_yaml=_yaml(facts.recipe),
    )


def _card(facts: Facts, curation: Curation, folder: Path) -> Card:
    metadata = pq.read_table(folder / "metadata.parquet", columns=["split", "label"]).to_pylist()
    samples: dict[str, Counter[str]] = defaultdict(Counter)
    for row in metadata:
        samples[row["split"]][row["label"]] += 1
    return Card(
        dataset=facts.name,
        description=facts.description,
        samples=samples,
        planned=curation.planned,
        rejected=curation.rejected,
        failed=curation.failed,
        scores=curation.scores,
        licences=[sources.SOURCES[facts.source].LICENCE],
        sources=_sources(facts),
        gate=curation.problems,
        recipe_yaml=_yaml(facts.recipe),
    )


def _contact_sheet(kept: Sequence[KeptScan], shown: pa.Table) -> bytes:
    rows = [row for row in shown.to_pylist() if row["verdict"] == "kept" and row["image"] is not None]
    synthetic = [
        (decode_grey(row["image"]["bytes"]), decode_mask(row["mask"]["bytes"]), row["label"])
        for row in rows[: 3 * SHEET_COLUMNS]
    ]
    return contact_sheet(_real_examples(kept)[:SHEET_COLUMNS], synthetic, columns=SHEET_COLUMNS)


def _yaml(recipe: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def _about(facts: Facts, curation: Curation, scans: Ref, rows: Mapping[str, int]) -> About:
    return About(
        **curation.model_dump(include=set(Outcome.model_fields)),
        licences=[sources.SOURCES[facts.source].LICENCE],
        recipe=facts.recipe,
        provenance={
            "recipe_digest": facts.recipe_digest,
            "scans_sha256": scans.sha256,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        rows=dict(rows),
    )
