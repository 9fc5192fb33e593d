"""The DAG of one dataset: order, nothing else. Every step's work is in `tasks/`."""

import multiprocessing
import os
import resource
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from prefect import Task, flow
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.recipe import Recipe, Runner
from storage import keys, leases
from storage.records import Ref
from storage.store import Store
from tasks import plan
from tasks.audit import audit_membership
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
from tasks.track import advance, track
from tasks.train import train_adapter, train_harmonizer
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
) -> BuildResult:
    """Build, judge and publish one version of a synthetic dataset.

    Steps whose inputs and parameters are unchanged are reused, whoever made them and whenever.
    """
    opened = open_store(store)
    opened.probe()
    facts = facts_of(recipe)
    licences.combine(facts.made_from)  # a conflict is told before hours of work
    done: list[Done] = []
    with relied_on(opened, f"build {recipe.name}"):
        made = make(recipe, store, done)
        published = export(store, facts, made.scans, made.shards, made.curated, made.weights, folders_of(done))
    done.append(published.done)
    return BuildResult(
        **dict(published.summary),
        seconds=_by_step((step.step, round(step.seconds, 2)) for step in done),
        reused=dict(Counter(step.step for step in done if step.reused)),
        peak_memory_mb=_peak_memory_mb(),
    )


def make(recipe: Recipe, store: str, done: list[Done]) -> Made:
    """All steps of a dataset up to its curation, inside a flow; `done` gets how each ended."""
    seed, labels = recipe.seed, sorted(recipe.plan.labels)

    scans = _ref(done, ingest(store, recipe.source, recipe.screen, seed))
    if recipe.training_scans is not None:
        scans = _ref(done, narrow(store, scans, recipe.training_scans, seed))
    adapters = {
        label: _ref(done, train_adapter(store, scans, recipe.base, recipe.lora, label, seed)) for label in labels
    }
    judges = {name: _ref(done, train_judge(store, scans, name, recipe.judges, seed)) for name in JUDGES}
    generator = Generator(
        base=recipe.base,
        decoder=_ref(done, tune_decoder(store, scans, recipe.base, recipe.decoder, seed)),
        adapters=adapters,
        harmonizer=_ref(done, train_harmonizer(store, scans, recipe.base, recipe.harmonizer, labels, seed)),
        stages=recipe.stages,
    )
    if recipe.background == "synthetic":
        healthy = _ref(done, train_adapter(store, scans, recipe.base, recipe.lora, HEALTHY, seed))
        ground = {"background": recipe.background_drawing, "healthy": healthy}
        generator = generator.model_copy(update=ground)
    critic = _ref(done, train_critic(store, scans, generator, seed, recipe.judges.critic))
    generator = generator.model_copy(update={"critic": critic})

    made = {"store_url": store, "scans": scans, "generator": generator, "plan": recipe.plan, "seed": seed}
    ranges = [{"first": shard.start, "last": shard.stop} for shard in plan.shards(recipe.plan)]
    with track("synthesize", recipe.plan.samples):
        shards = _fan_out(done, synthesize_shard, [{**made, **r} for r in ranges], recipe.runner)

    names, scoring = recipe.image_scores, {**judges, "critic": critic}
    judged = {"store_url": store, "scans": scans, "judges": scoring, "extractor": recipe.extractor, "names": names}
    with track("score", recipe.plan.samples):
        scores = _fan_out(done, score_shard, [{**judged, "shard": s, "seed": seed} for s in shards], recipe.runner)
    real = _ref(done, describe_real(store, scans, scoring, recipe.extractor, labels, names, seed))
    detected = _ref(done, detect_synthetic(store, shards, scans, labels, recipe.judges.detector, seed))
    audits: list[Ref] = []
    if recipe.audit is not None:
        audits.append(_ref(done, audit_membership(store, scans, recipe.base, adapters, recipe.audit, seed)))
    curated = _ref(done, curate_set(store, scores, detected, real, _curate_params(recipe), seed, audits))

    return Made(scans, _weights(generator, judges), adapters, critic, shards, scores, real, detected, curated)


def _curate_params(recipe: Recipe) -> CurateParams:
    return CurateParams(
        thresholds=recipe.curate,
        quotas=recipe.quotas,
        select=recipe.select,
        gate=recipe.gate,
        set_scores=recipe.set_scores,
        image_scores=recipe.image_scores,
    )


def _weights(generator: Generator, judges: Mapping[str, Ref]) -> dict[str, Ref]:
    """Everything that was trained, by the name that provenance gives it."""
    named = {
        "decoder": generator.decoder,
        "harmonizer": generator.harmonizer,
        "critic": generator.critic,
        f"adapter/{HEALTHY}": generator.healthy,
        **{f"adapter/{label}": ref for label, ref in generator.adapters.items()},
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
    return Facts(
        name=recipe.name,
        description=recipe.description,
        recipe=recipe.published(),
        recipe_digest=recipe.digest(),
        base=recipe.base,
        extractor=recipe.extractor,
        made_from=licensed(recipe.source, recipe.base),
        formats=recipe.formats,
        score_names=recipe.image_scores,
    )


def _ref(done: list[Done], step: Done) -> Ref:
    done.append(step)
    return step.ref


def _fan_out(done: list[Done], task: Task[Any, Done], calls: Iterable[Mapping[str, Any]], where: Runner) -> list[Ref]:
    """Run `task` once for each of `calls`, at most `where.workers` at a time; the Refs in the order of the calls."""
    with _task_runner(where) as runner:
        futures = [runner.submit(task, dict(call)) for call in calls]
        return [_ref(done, _counted(future.result(), where)) for future in futures]


def _task_runner(where: Runner) -> TaskRunner[Any]:
    if where.kind == "processes":
        return ProcessPoolTaskRunner(max_workers=where.workers, initializer=_end_with_parent)
    return ThreadPoolTaskRunner(max_workers=where.workers)


def _end_with_parent() -> None:
    """End this worker process when the build that started it is gone: a killed one cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _counted(step: Done, where: Runner) -> Done:
    """Move the step's bar, which a worker in another process could not reach."""
    if where.kind == "processes":
        advance(step.step, step.ref.rows)
    return step


def _by_step(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for step, number in pairs:
        total[step] = round(total.get(step, 0) + number, 2)
    return total


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)
