"""Flows that keep a store in order and a dataset up to date, made to be deployed: order, nothing else."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from datetime import timedelta
from typing import Annotated

from prefect import flow, tags
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field
from pydantic_core import to_jsonable_python

from flows.build_dataset import BuildResult, build_dataset
from flows.recipe import Recipe, parse
from storage import garbage, keys, manifests
from storage.errors import CorruptFileError, VersionNotFoundError
from storage.records import Manifest, Record, Ref
from storage.store import Store
from storage.verifying import verify
from storage.versions import open_manifest
from tasks.announce import announce_source, announce_verified
from tasks.connect import open_store
from tasks.export import GateError
from tasks.ingest import ingest
from tasks.quality.gate import GateParams
from tasks.quality.quotas import Quotas
from tasks.quality.selection import SelectParams
from tasks.quality.thresholds import Threshold
from tasks.reuse import look_up
from tasks.track import advance, track

RecipeField = Annotated[Recipe, Field(description="The dataset; flows/recipes/ holds whole examples.")]
StoreField = Annotated[str, Field(description="Folder, fsspec URL or block:NAME of the store.")]
LimitField = Annotated[
    str | None,
    Field(description="Name of the global concurrency limit that the build holds while it works; null: none."),
]
DatasetField = Annotated[str | None, Field(description="Only this dataset; null: all of the store.")]


class BrokenVersionsError(ValueError):
    """Versions are damaged; the message names them and what is wrong with each."""


class Sensed(Record):
    """What a look at the source found: `version` holds it, either since before or by `build`.

    None: the gate has refused to publish these scans by this recipe, and would again.
    """

    why: str
    version: str | None
    build: BuildResult | None = None


@flow(name="build-when-changed", flow_run_name="{recipe.name}")
def build_when_changed(recipe: RecipeField, store: StoreField, limit: LimitField = None) -> Sensed:
    """Build the dataset if its scans or its recipe are others than those of every version; else end in seconds.

    Names and bytes of all source files are compared, by digest, not their dates. A version that was retracted counts:
    it is not built again from the same. Nor is a set that missed its gate: the run that found it failed, those after it
    do not. `build-dataset` builds whatever was before.

    Raises:
        GateError: the set misses its gate, for the first time.
    """
    opened = open_store(store)
    scans = _ingested(store, recipe)
    same = _made_of(opened, recipe, scans)
    if same is not None:
        version = f"{same.dataset}@{same.version}"
        why = f"nothing new: {version} was made of these scans by this recipe"
        announce_source(recipe.name, why)
        return Sensed(why=why, version=version)
    refusal = _refusal(opened, recipe, scans)
    if refusal is not None:
        why = f"nothing new: of these scans by this recipe, {refusal}"
        announce_source(recipe.name, why)
        return Sensed(why=why, version=None)
    top = manifests.top(opened, recipe.name)
    why = f"scans or recipe are not those of {recipe.name}@{top}, or of one before" if top else "no version yet"
    announce_source(recipe.name, why)
    try:
        built = _built(recipe, store, limit)
    except GateError as error:
        opened.put(_refusal_key(recipe, _ingested(store, recipe)), str(error).encode())
        raise
    return Sensed(why=why, version=f"{built.dataset}@{built.version}", build=built)


def _ingested(store: str, recipe: Recipe) -> Ref | None:
    """The source's scans as ingest would leave them, None where it has not seen this source as it is now."""
    found = look_up(lambda: ingest.fn(store, recipe.source, recipe.screen, recipe.seed))
    return None if found is None else found.ref


def _made_of(store: Store, recipe: Recipe, scans: Ref | None) -> Manifest | None:
    """The newest version that was made of these scans by this recipe."""
    if scans is None:
        return None
    step, digest = keys.step_folder(scans.key), recipe.digest()
    for number in range(manifests.top(store, recipe.name), 0, -1):  # newest first: mostly one is read
        try:
            manifest = manifests.read(store, recipe.name, number)
        except FileNotFoundError:
            continue  # removed by hand
        if step in manifest.inputs and manifest.provenance.get("recipe_digest") == digest:
            return manifest
    return None


def _refusal(store: Store, recipe: Recipe, scans: Ref | None) -> str | None:
    """Why the gate refused what these scans give by this recipe, None where it did not."""
    try:
        return store.read(_refusal_key(recipe, scans)).decode()
    except FileNotFoundError:
        return None


def _refusal_key(recipe: Recipe, scans: Ref | None) -> str:
    seen = [] if scans is None else [scans.sha256]
    return keys.step_file("sense", keys.step_key("sense", 1, {"recipe": recipe.digest()}, seen), "refusal.txt")


def _built(recipe: Recipe, store: str, limit: str | None) -> BuildResult:
    """Build within this run. Its tags are handed on, by which automations know whose sign of life to miss."""
    with tags(*flow_run.tags):
        return build_dataset(recipe=recipe, store=store, limit=limit)


@flow(name="recurate", flow_run_name="{recipe.name}")
def recurate(
    *,  # the form is in this order: a recipe is long
    curate: Annotated[
        list[Threshold] | None, Field(description="What an image must reach to be kept; null: as the recipe says.")
    ] = None,
    quotas: Annotated[
        Quotas | None, Field(description="How many samples of each kind are kept; null: as the recipe says.")
    ] = None,
    select: Annotated[
        SelectParams | None,
        Field(description="Leaving out samples to bring the set nearer to the real one; null: as the recipe says."),
    ] = None,
    gate: Annotated[
        GateParams | None, Field(description="What the kept set must reach to be published; null: as the recipe says.")
    ] = None,
    recipe: RecipeField,
    store: StoreField,
    limit: LimitField = None,
) -> BuildResult:
    """Keep or reject the samples of a dataset anew, by other thresholds, and publish what is kept.

    What was drawn and scored for the recipe is reused; thresholds decide nothing before curation.

    Raises:
        ValueError: nothing was made of these scans by this recipe yet.
    """
    asked = {"curate": curate, "quotas": quotas, "select": select, "gate": gate}
    given = {name: to_jsonable_python(field) for name, field in asked.items() if field is not None}
    changed = parse({**recipe.model_dump(mode="json"), **given})
    if _ingested(store, recipe) is None:
        raise ValueError(
            f"{open_store(store).url} holds nothing that was made of the scans of {recipe.name} as they are now, so "
            "there is nothing to curate anew: build-dataset makes it"
        )
    return _built(changed, store, limit)


@flow(name="collect-garbage")
def collect_garbage(
    store: StoreField,
    dataset: DatasetField = None,
    older_than_h: Annotated[float, Field(ge=0, description="Hours; what is younger stays.")] = 24,
    builds: Annotated[bool, Field(description="Also steps of builds that no version was made from.")] = False,
    delete: Annotated[bool, Field(description="Delete; else only say what would be.")] = False,
) -> garbage.Garbage:
    """Find what no version refers to and, if asked, delete it; never what a running build or publisher relies on."""
    opened = open_store(store)
    age = timedelta(hours=older_than_h)
    found = garbage.collect(opened, dataset=dataset, older_than=age, builds=builds, delete=delete)
    told = "\n".join(garbage.lines(found))
    create_markdown_artifact(f"```\n{told}\n```", key="garbage", description=f"Garbage of {opened.url}")
    return found


@flow(name="verify-versions")
def verify_versions(
    store: StoreField,
    dataset: DatasetField = None,
    deep: Annotated[bool, Field(description="Read every byte, row and picture; else manifests and sizes.")] = True,
) -> int:
    """Look for damage in every version, retracted ones too; how many were looked at.

    Raises:
        BrokenVersionsError: some are damaged; all were looked at before.
        VersionNotFoundError: there is no such dataset.
    """
    opened = open_store(store)
    asked = manifests.datasets(opened) if dataset is None else [dataset]
    numbered = [(name, number) for name in asked for number in range(1, manifests.top(opened, name) + 1)]
    if dataset is not None and not numbered:
        raise VersionNotFoundError(manifests.absent(opened, dataset))
    rows: list[dict[str, object]] = []
    broken: dict[str, list[str]] = {}
    with track("verify", len(numbered), "versions"):
        for name, number in numbered:
            problems = _problems(opened, name, number, deep)
            advance("verify", 1)
            if problems is None:
                continue
            version = f"{name}@{number}"
            rows.append({"version": version, "problems": len(problems), "first": next(iter(problems), "")})
            if problems:
                broken[version] = problems
    create_table_artifact(rows, key="verification", description=f"Versions of {opened.url}: {_share(rows, broken)}")
    if broken:
        raise BrokenVersionsError(f"{_share(rows, broken)} in {opened.url}:{''.join(_told(broken))}")
    return len(rows)


def _problems(store: Store, dataset: str, number: int, deep: bool) -> list[str] | None:
    """What is wrong with a version; None where somebody removed it by hand."""
    try:
        return verify(store, manifests.read(store, dataset, number), deep=deep)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:  # of the manifest itself
        return [str(error)]


def _share(rows: Sized, broken: Sized) -> str:
    return f"{len(broken)} of {len(rows)} versions are damaged"


def _told(broken: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for version, problems in broken.items():
        more = f" (and {len(problems) - 1} more: `sonoforge verify {version} --deep`)" if len(problems) > 1 else ""
        yield f"\n  - {version}: {problems[0]}{more}"


@flow(name="after-publication", flow_run_name="{version}")
def after_publication(
    version: Annotated[str, Field(description="NAME@VERSION, as the event of its publication says.")],
    store: StoreField,
) -> str:
    """Read every byte of a version that was just published, and say on the run's page what it is; its digest.

    An example of what an event can start: put a training, a copy to another site or a message in its place.

    Raises:
        BrokenVersionsError: it is damaged.
    """
    opened = open_store(store)
    manifest = open_manifest(opened, version)
    problems = verify(opened, manifest, deep=True)
    announce_verified(manifest, problems)
    if problems:
        raise BrokenVersionsError(f"{version} in {opened.url} is damaged:{''.join(_told({version: problems}))}")
    return manifest.digest
