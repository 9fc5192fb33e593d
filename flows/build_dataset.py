"""The DAG of one dataset: order, nothing else. Every step's work is in `tasks/`."""

import resource
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from prefect import Task, flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.recipe import Recipe
from storage.records import Ref
from storage.store import Store
from tasks import plan
from tasks.curate import curate_set
from tasks.export import Facts, Summary, export
from tasks.ingest import ingest
from tasks.reuse import Done
from tasks.score import describe_real, detect_synthetic, score_shard
from tasks.synthesize import synthesize_shard
from tasks.track import track
from tasks.train import JUDGES, train_adapter, train_critic, train_judge


class BuildResult(Summary):
    """What one build did. `seconds` and `reused` are by step; a step of many shards adds them up."""

    seconds: dict[str, float]
    reused: dict[str, int]
    peak_memory_mb: float


@flow(name="build-dataset", flow_run_name="{recipe.name}")
def build_dataset(
    recipe: Annotated[Recipe, Field(description="The dataset to build; flows/recipes/ holds whole examples.")],
    store: Annotated[str, Field(description="Folder or fsspec URL the dataset is published to.")] = "./store",
) -> BuildResult:
    """Build, judge and publish one version of a synthetic dataset.

    Steps whose inputs and parameters are unchanged are reused, whoever made them and whenever.
    """
    Store(store).probe()
    done: list[Done] = []
    seed, labels = recipe.seed, sorted(recipe.plan.labels)

    scans = _ref(done, ingest(store, recipe.source, recipe.screen, seed))
    adapters = {
        label: _ref(done, train_adapter(store, scans, recipe.base, recipe.lora, label, seed)) for label in labels
    }
    judges = {name: _ref(done, train_judge(store, scans, name, recipe.judges, seed)) for name in JUDGES}
    stages = recipe.stages
    critic = _ref(done, train_critic(store, scans, recipe.base, adapters, stages, seed, recipe.judges.critic))

    model = {"scans": scans, "base": recipe.base, "adapters": adapters, "critic": critic, "stages": stages}
    made = {"store_url": store, **model, "plan": recipe.plan, "seed": seed}
    ranges = [{"first": shard.start, "last": shard.stop} for shard in plan.shards(recipe.plan)]
    with track("synthesize", recipe.plan.samples):
        shards = _fan_out(done, synthesize_shard, [{**made, **r} for r in ranges], recipe.runner.workers)

    names = recipe.image_scores
    judged = {"store_url": store, "scans": scans, "judges": judges, "names": names, "seed": seed}
    with track("score", recipe.plan.samples):
        scores = _fan_out(done, score_shard, [{**judged, "shard": s} for s in shards], recipe.runner.workers)
    real = _ref(done, describe_real(store, scans, judges, labels, names, seed))
    detected = _ref(done, detect_synthetic(store, shards, scans, labels, recipe.judges.detector, seed))
    curated = _ref(
        done,
        curate_set(store, scores, detected, real, recipe.curate, recipe.gate, recipe.set_scores, names, seed),
    )

    facts = Facts(
        name=recipe.name,
        description=recipe.description,
        recipe=recipe.published(),
        recipe_digest=recipe.digest(),
        source=recipe.source.dataset,
        formats=recipe.formats,
        score_names=recipe.image_scores,
    )
    published = export(store, facts, scans, shards, curated)
    done.append(published.done)
    return BuildResult(
        **dict(published.summary),
        seconds=_by_step((step.step, round(step.seconds, 2)) for step in done),
        reused=dict(Counter(step.step for step in done if step.reused)),
        peak_memory_mb=_peak_memory_mb(),
    )


def _ref(done: list[Done], step: Done) -> Ref:
    done.append(step)
    return step.ref


def _fan_out(done: list[Done], task: Task[Any, Done], calls: Iterable[Mapping[str, Any]], workers: int) -> list[Ref]:
    """Run `task` once for each of `calls`, at most `workers` at a time; the Refs in the order of the calls."""
    with ThreadPoolTaskRunner(max_workers=workers) as runner:
        futures = [runner.submit(task, dict(call)) for call in calls]
        return [_ref(done, future.result()) for future in futures]


def _by_step(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for step, number in pairs:
        total[step] = round(total.get(step, 0) + number, 2)
    return total


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)
