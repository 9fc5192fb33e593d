"""The DAG of one dataset: order, nothing else. Every step's work is in `tasks/`."""

import resource
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, cast

from prefect import flow
from prefect.context import FlowRunContext
from pydantic import Field

from flows import pins, temporary, watching
from flows.recipe import Recipe
from flows.runners import fan_out
from storage import keys, leases, manifests
from storage.records import Ref
from storage.store import Store
from storage.versions import open_manifest
from tasks import plan, stop, synthesis
from tasks.announce import announce_version, is_untold
from tasks.audit import audit_membership
from tasks.catalogue import rebuild
from tasks.connect import open_store
from tasks.curate import CurateParams, curate_set
from tasks.describe import licensed
from tasks.detect import detect_synthetic
from tasks.documents import licences
from tasks.export import Facts, Summary, export
from tasks.ingest import ingest
from tasks.narrow import narrow
from tasks.reuse import Done
from tasks.score import describe_real, score_shard
from tasks.synthesis.background import HEALTHY
from tasks.synthesize import Generator, synthesize_shard
from tasks.track import track
from tasks.train import train_adapter, train_controlnet, train_harmonizer, train_picture_adapter
from tasks.train_judges import JUDGES, train_critic, train_judge
from tasks.tune import tune_decoder


class BuildResult(Summary):
    """What one build did. `seconds` and `reused` are by step; a step of many shards adds them up."""

    seconds: dict[str, float]
    reused: dict[str, int]
    peak_memory_mb: float


@dataclass(frozen=True)
class Made:
    """What there is of a dataset before it is published; `weights` are all that were trained for it, by name."""

    scans: Ref
    weights: dict[str, Ref]
    adapters: dict[str, Ref]
    critic: Ref
    shards: list[Ref]
    scores: list[Ref]
    real: Ref
    detected: Ref
    curated: Ref


@flow(name="build-dataset", flow_run_name="{recipe.name}")
def build_dataset(
    recipe: Annotated[Recipe, Field(description="The dataset to build; flows/recipes/ holds whole examples.")],
    store: Annotated[str, Field(description="Folder or fsspec URL the dataset is published to.")] = "./store",
    limit: Annotated[
        str | None,
        Field(description="Name of the global concurrency limit that the build holds while it works; null: none."),
    ] = None,
    time_limit_s: Annotated[
        float | None,
        Field(gt=0, description="Seconds of work after which it stops between two batches; null: none. Run it again."),
    ] = None,
) -> BuildResult:
    """Build, judge and publish one version of a synthetic dataset.

    Steps whose inputs and parameters are unchanged are reused, whoever made them and whenever. So a build that was
    cancelled, ran out of time or failed goes on where it stopped when it is run again.
    """
    temporary.tie()
    watching.quiet()
    done: list[Done] = []
    try:
        with watching.events(), watching.slot(limit), stop.within(time_limit_s):
            return _build(recipe, store, done)
    except Exception as error:
        if FlowRunContext.get() is None:
            raise
        # Prefect raises it from the state, which says more than it does.
        return cast(BuildResult, watching.failed(recipe.name, done, error))
    except BaseException as error:
        watching.interrupted(recipe.name, done, error)
        raise


def _build(recipe: Recipe, store: str, done: list[Done]) -> BuildResult:
    opened = open_store(store)
    opened.probe()
    facts = facts_of(recipe)
    licences.combine(facts.made_from)  # a conflict is told before hours of work
    watching.rename(
        f"{recipe.name}, building version {manifests.top(opened, recipe.name) + 1}", f"dataset:{recipe.name}"
    )
    with relied_on(opened, f"build {recipe.name}"):
        made = make(recipe, store, done)
        published = export(store, facts, made.scans, made.shards, made.curated, made.weights, folders_of(done))
    done.append(published.done)
    _announce(opened, store, published.summary)
    return BuildResult(
        **dict(published.summary),
        seconds=_by_step((step.step, round(step.seconds, 2)) for step in done),
        reused=dict(Counter(step.step for step in done if step.reused)),
        peak_memory_mb=_peak_memory_mb(),
    )


def _announce(opened: Store, store: str, summary: Summary) -> None:
    """Tell people and programs of the version, where it is new to them; nothing here takes it back."""
    version = f"{summary.dataset}@{summary.version}"
    tags = (f"version:{summary.version}", f"gate:{summary.gate}")
    watching.rename(f"{version}, up to date" if summary.up_to_date else version, *tags)
    if summary.up_to_date and not is_untold(open_manifest(opened, version)):
        return
    announce_version(summary.dataset, summary.version, summary.digest, summary.uri, store, summary)
    try:
        rebuild(opened)
    except Exception as error:  # noqa: BLE001 (whatever it is: the version is published)
        watching.tell(
            f"{version} is published, but the catalogue does not show it yet ({type(error).__name__}: {error}): "
            f"sonoforge catalogue {opened.uri(keys.CATALOGUE)} --store {store} writes it anew; so does the next one"
        )


def make(recipe: Recipe, store: str, done: list[Done]) -> Made:
    """All steps of a dataset up to its curation, inside a flow; `done` gets how each ended."""
    pins.check(recipe)
    seed, labels = recipe.seed, sorted(recipe.plan.labels)

    scans = _ref(done, ingest(store, recipe.source, recipe.screen, seed))
    if recipe.training_scans is not None:
        scans = _ref(done, narrow(store, scans, recipe.training_scans, seed))
    judges = {name: _ref(done, train_judge(store, scans, name, recipe.judges, seed)) for name in JUDGES}
    generator = _generator(recipe, store, scans, done)
    whole = not synthesis.needs_background(recipe.stages)
    critic = _ref(done, train_critic(store, scans, generator, seed, None if whole else recipe.judges.critic))
    generator = generator.model_copy(update={"critic": critic})

    made = {"store_url": store, "scans": scans, "generator": generator, "plan": recipe.plan, "seed": seed}
    ranges = [{"first": shard.start, "last": shard.stop} for shard in plan.shards(recipe.plan)]
    with track("synthesize", recipe.plan.samples):
        shards = _refs(done, fan_out(synthesize_shard, [{**made, **r} for r in ranges], recipe.runner))

    names, scoring = recipe.scored_images, {**judges, "critic": critic}
    judged = {"store_url": store, "scans": scans, "judges": scoring, "extractor": recipe.extractor, "names": names}
    with track("score", recipe.plan.samples):
        asked = [{**judged, "shard": shard, "seed": seed} for shard in shards]
        scores = _refs(done, fan_out(score_shard, asked, recipe.runner))
    real = _ref(done, describe_real(store, scans, scoring, recipe.extractor, labels, names, seed))
    detected = _ref(done, detect_synthetic(store, shards, scans, labels, recipe.judges.detector.seeing(whole), seed))
    audits: list[Ref] = []
    if recipe.audit is not None:
        learned, words = synthesis.learned(recipe.stages), synthesis.attributes_of(recipe.stages)
        weights = generator.adapters, recipe.audit, seed, learned, words, generator.controlnet
        attacked = audit_membership(store, scans, recipe.base, *weights)
        audits.append(_ref(done, attacked))
    curated = _ref(done, curate_set(store, scores, detected, real, _curate_params(recipe), seed, audits))

    return Made(scans, _weights(generator, judges), generator.adapters, critic, shards, scores, real, detected, curated)


def _generator(recipe: Recipe, store: str, scans: Ref, done: list[Done]) -> Generator:
    """Train what draws: an adapter for each label of lesions, or one, perhaps with a ControlNet, for whole pictures."""
    base, seed, labels = recipe.base, recipe.seed, sorted(recipe.plan.labels)
    learned, controlnet, healthy = synthesis.learned(recipe.stages), None, None
    if synthesis.needs_background(recipe.stages):
        each = {label: train_adapter(store, scans, base, recipe.lora, label, seed) for label in labels}
        adapters = {label: _ref(done, trained) for label, trained in each.items()}
    else:
        words = synthesis.attributes_of(recipe.stages)
        whole = _ref(
            done, train_picture_adapter(store, scans, base, recipe.lora, labels, learned == "pair", words, seed)
        )
        held = train_controlnet(store, scans, base, whole, recipe.controlnet, labels, words, seed)
        adapters, controlnet = dict.fromkeys(labels, whole), _ref(done, held)
    if recipe.background == "synthetic":
        healthy = _ref(done, train_adapter(store, scans, base, recipe.lora, HEALTHY, seed))
    return Generator(
        base=base,
        decoder=_ref(done, tune_decoder(store, scans, base, recipe.decoder, seed, learned)),
        adapters=adapters,
        harmonizer=_ref(done, train_harmonizer(store, scans, base, recipe.harmonizer, labels, seed)),
        stages=recipe.stages,
        background=None if healthy is None else recipe.background_drawing,
        healthy=healthy,
        controlnet=controlnet,
    )


def _curate_params(recipe: Recipe) -> CurateParams:
    return CurateParams(
        thresholds=recipe.curate,
        quotas=recipe.quotas,
        select=recipe.select,
        gate=recipe.gate,
        set_scores=recipe.scored_sets,
        image_scores=recipe.scored_images,
    )


def _weights(generator: Generator, judges: Mapping[str, Ref]) -> dict[str, Ref]:
    """Everything that was trained, by the name that provenance gives it."""
    adapters = {f"adapter/{label}": ref for label, ref in generator.adapters.items()}
    if not synthesis.needs_background(generator.stages):
        adapters = {"adapter": next(iter(generator.adapters.values()))}  # one for all labels
    named = {
        "decoder": generator.decoder,
        "harmonizer": generator.harmonizer,
        "critic": generator.critic,
        "controlnet": generator.controlnet,
        f"adapter/{HEALTHY}": generator.healthy,
        **adapters,
        **{f"judge/{name}": ref for name, ref in judges.items()},
    }
    return {name: ref for name, ref in named.items() if ref is not None}


def relied_on(store: Store, holder: str) -> AbstractContextManager[object]:
    """Keeps garbage collection from what steps have made and from what is on its way into the store."""
    return leases.hold(store, holder, [f"{keys.BUILDS}/", f"{keys.SCRATCH}/"])


def folders_of(done: Iterable[Done]) -> list[str]:
    """The folders in which steps left what they made."""
    return sorted({keys.step_folder(step.ref.key) for step in done})


def facts_of(recipe: Recipe) -> Facts:
    """What the recipe says about the dataset."""
    start = None if recipe.controlnet is None else recipe.controlnet.start
    return Facts(
        name=recipe.name,
        description=recipe.description,
        recipe=recipe.published(),
        recipe_digest=recipe.digest(),
        base=recipe.base,
        start=start,
        extractor=recipe.extractor,
        made_from=licensed(recipe.source, recipe.base, start),
        formats=recipe.formats,
        score_names=recipe.scored_images,
    )


def _ref(done: list[Done], step: Done) -> Ref:
    done.append(step)
    return step.ref


def _refs(done: list[Done], steps: list[Done]) -> list[Ref]:
    done += steps
    return [step.ref for step in steps]


def _by_step(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for step, number in pairs:
        total[step] = round(total.get(step, 0) + number, 2)
    return total


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)
