"""Export: write the files of a version and publish them; or say why the set may not be published."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from prefect import task

from storage import keys, retractions
from storage.formats import FORMATS
from storage.records import SOURCE_SCHEMA, Manifest, Outcome, Record, Ref, Written, parquet_options, sample_schema
from storage.store import Store
from storage.versions import About, manifest_uri, open_manifest, publish
from tasks import describe, illustrate, metrics, report
from tasks.announce import announce_gate, announce_samples, announce_scores
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.documents import licences
from tasks.documents.facts import Ingredient
from tasks.documents.licences import Combined, Licensed
from tasks.ingest import KEPT
from tasks.merge import merged, verdicts_of
from tasks.quality.extractors import ExtractorParams
from tasks.report.grid import Example, contact_sheet
from tasks.reuse import Done, reuse

ALGORITHM = 6
STEP = "export"
SHEET_COLUMNS = 6


class GateError(ValueError):
    """The kept set misses what the recipe's gate asks for; the message says what and where the report lies."""


class Facts(Record):
    """What the flow knows of a dataset besides the steps' references; `made_from` are scans and models, with licences;
    `start` is what the ControlNet goes on from."""

    name: str
    description: str
    recipe: dict[str, object]
    recipe_digest: str
    base: str
    start: str | None = None
    extractor: ExtractorParams = ExtractorParams()
    made_from: list[Licensed]
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


@task(name="export", task_run_name="export")
def export(
    store_url: str,
    facts: Facts,
    scans: Ref,
    shards: Sequence[Ref],
    curated: Ref,
    weights: Mapping[str, Ref],
    made_by: Sequence[str] = (),
) -> Published:
    """Publish the kept samples of `shards` as the next version of the dataset.

    `weights` are what was trained for it, by the name that its provenance gives them. `made_by` are the folders of
    all steps before, which the version keeps from garbage collection.

    Raises:
        LicenceConflictError: the licences of what it is made from contradict each other.
        RetractedError: this very set was published before, and retracted.
        GateError: the set misses the gate; its report is in the store, and nothing is published.
    """
    store = open_store(store_url)
    curation = Curation.model_validate_json(store.read(curated.key))
    metrics.decided(facts.name, curation)
    created = False

    def make(key: str) -> Ref:
        nonlocal created
        terms = licences.combine(facts.made_from)
        with store.staging() as folder:
            refused = illustrate.Watched(report.pick_rejected(lambda: verdicts_of(store, curation.table)))
            rows = _rows(store, facts, terms, shards, curation)
            written = _write_formats(facts, refused.passing(rows), folder)
            written["sources.parquet"] = _write_sources(store, scans, folder)
            step = keys.step_folder(keys.step_ref(STEP, key))
            real = illustrate.real_examples(store, scans, SHEET_COLUMNS)
            shown = illustrate.Shown(refused=refused.rows, real=real.by_label)
            page = illustrate.page(store, folder, _known(facts), curation, scans, shown, step)
            html, sheet = report.render(page), _contact_sheet(real.first, page)
            if curation.problems:
                raise _refusal(store, key, facts, curation, html, sheet)
            (folder / "report.html").write_text(html, encoding="utf-8")
            (folder / "samples.png").write_bytes(sheet)
            used = describe.ingredients(scans, facts.base, weights, facts.extractor, facts.start)
            _write_documents(facts, curation, used, written, folder)
            about = _about(facts, terms, curation, scans, written)
            about = about.model_copy(update={"inputs": [*made_by, step]})
            manifest, created = publish(store, facts.name, folder, about)
        manifest_key = keys.manifest_key(manifest.dataset, manifest.version)
        return Ref(key=manifest_key, sha256=manifest.digest, rows=manifest.kept)

    trained = [f"{name}={ref.sha256}" for name, ref in sorted(weights.items())]
    inputs = [scans.sha256, curated.sha256, *(shard.sha256 for shard in shards), *trained]
    done = reuse(store, STEP, ALGORITHM, facts, inputs, make)
    if not store.exists(done.ref.key):  # somebody removed the version, and left the step that made it
        store.delete(keys.step_ref(STEP, keys.step_key(STEP, ALGORITHM, facts, inputs)))
        done = reuse(store, STEP, ALGORITHM, facts, inputs, make)
    manifest = open_manifest(store, f"{facts.name}@{done.ref.key.split('/')[-2]}")
    retractions.refuse(store, manifest)
    files = {file.path: file.key for file in manifest.files}
    announce_gate(facts.name, manifest)
    announce_scores(facts.name, manifest.scores)
    announce_samples(facts.name, store.read(files["samples.png"]), files["samples.png"], files["report.html"])
    return Published(done=done, summary=_summary(store, manifest, up_to_date=not created))


def _refusal(store: Store, key: str, facts: Facts, curation: Curation, html: str, sheet: bytes) -> GateError:
    """Leave report and samples of a set that misses its gate in the store; the error that says where."""
    html_key, sheet_key = keys.step_file(STEP, key, "report.html"), keys.step_file(STEP, key, "samples.png")
    store.put(html_key, html.encode())
    store.put(sheet_key, sheet)
    announce_gate(facts.name, curation, curation.problems)
    announce_scores(facts.name, curation.scores)
    announce_samples(facts.name, sheet, sheet_key, html_key)
    listed = "".join(f"\n  - {problem}" for problem in curation.problems)
    if curation.advice:
        listed += "\nwhat would change that:" + "".join(f"\n  - {advice}" for advice in curation.advice)
    return GateError(f"{facts.name} is not published: the set misses its gate{listed}\nreport: {store.uri(html_key)}")


def _summary(store: Store, manifest: Manifest, *, up_to_date: bool) -> Summary:
    shared = {name: getattr(manifest, name) for name in ("dataset", "version", "digest", *Outcome.model_fields)}
    return Summary(**shared, uri=manifest_uri(store, manifest), up_to_date=up_to_date)


def _write_formats(facts: Facts, rows: Iterator[pa.RecordBatch], folder: Path) -> dict[str, Written]:
    """Every format and the recipe into `folder`; what the formats wrote."""
    written = FORMATS["parquet"].write(rows, folder)
    for name in facts.formats:
        if name != "parquet":
            written |= FORMATS[name].write(folder, folder)
    (folder / "recipe.yaml").write_text(_yaml(facts.recipe))
    return written


def _write_documents(
    facts: Facts, curation: Curation, used: Sequence[Ingredient], written: Mapping[str, Written], folder: Path
) -> None:
    """Card, scorecard, Croissant and provenance, about everything that is in `folder` by now."""
    known = describe.gather(
        folder,
        dataset=facts.name,
        description=facts.description,
        recipe=facts.recipe,
        recipe_digest=facts.recipe_digest,
        formats=facts.formats,
        score_names=facts.score_names,
        made_from=facts.made_from,
        used=used,
        curation=curation,
    )
    describe.write(folder, known, written)


def _rows(
    store: Store, facts: Facts, terms: Combined, shards: Sequence[Ref], curation: Curation
) -> Iterator[pa.RecordBatch]:
    """All planned samples with scores and verdict."""
    extra = {"recipe_digest": facts.recipe_digest, "licence": terms.name}
    return merged(store, shards, curation.table, sample_schema(facts.score_names), extra)


def _write_sources(store: Store, scans: Ref, folder: Path) -> Written:
    """Every real scan that was kept, without its pictures: what the rows' background and mask ids point to."""
    table = store.open_table(scans.key, SOURCE_SCHEMA.names).filter(KEPT).sort_by("id")
    pq.write_table(table.combine_chunks(), folder / "sources.parquet", **parquet_options(table.schema))
    return Written(rows=table.num_rows)


def _known(facts: Facts) -> illustrate.Known:
    return illustrate.Known(
        dataset=facts.name,
        description=facts.description,
        recipe=facts.recipe,
        recipe_yaml=_yaml(facts.recipe),
        made_from=facts.made_from,
        sources=describe.named(facts.made_from),
        score_names=facts.score_names,
    )


def _contact_sheet(real: Sequence[Example], page: report.Facts) -> bytes:
    """A row of real scans above the first rows of kept samples."""
    shown = sorted(page.spread)[: 3 * SHEET_COLUMNS]
    kept = {row["id"]: row for row in page.examples}
    return contact_sheet(real, [illustrate.example(kept[id]) for id in shown], columns=SHEET_COLUMNS)


def _yaml(recipe: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def _about(facts: Facts, terms: Combined, curation: Curation, scans: Ref, written: Mapping[str, Written]) -> About:
    return About(
        **curation.model_dump(include=set(Outcome.model_fields)),
        licences=terms.names,
        recipe=facts.recipe,
        provenance={"recipe_digest": facts.recipe_digest, "scans_sha256": scans.sha256, **describe.packages()},
        written=dict(written),
    )
