"""Shards that wait to be made, in a store where everything else is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Task, flow

from flows.runners import Runner, fan_out
from storage.store import Store
from tasks.ingest import ingest
from tasks.plan import Plan, shards
from tasks.reuse import Done
from tasks.screening.screen import ScreenParams
from tasks.sources.phantom import Params as Phantom
from tasks.synthesis.layout import Params as Layout
from tasks.synthesis.lesion import Params as Lesion
from tasks.synthesize import Generator, synthesize_shard
from tasks.train import LoraParams, train_adapter, train_harmonizer
from tasks.tune import tune_decoder
from tests.fakes.base import make_base


@dataclass(frozen=True)
class Work:
    """Calls of `synthesize_shard` on a store; `digests` are what this process makes of them, one after the other."""

    store: Path
    calls: list[dict[str, Any]]
    digests: list[str]

    def on(self, folder: Path) -> list[dict[str, Any]]:
        """The same calls on a copy of the store that lacks the shards."""
        source, target = Store(str(self.store)), Store(str(folder))
        for key in source.list("builds"):
            if not key.startswith("builds/synthesize/"):
                target.put(key, source.read(key))
        return [{**call, "store_url": str(folder)} for call in self.calls]


def make_work(folder: Path, count: int, steps: int) -> Work:
    """`count` shards of two samples, of so many denoising steps, with random weights."""
    store, base = str(folder / "store"), str(make_base(folder / "base", channels=9))
    scans = ingest.fn(store, Phantom(count=24, px=64), ScreenParams(px=64), 0).ref
    params = LoraParams(steps=1, warmup=0, batch=2, rank=2)
    generator = Generator(
        base=base,
        decoder=tune_decoder.fn(store, scans, base, None, 0).ref,
        adapters={"benign": train_adapter.fn(store, scans, base, params, "benign", 0).ref},
        harmonizer=train_harmonizer.fn(store, scans, base, None, ["benign"], 0).ref,
        stages=[Layout(), Lesion(steps=steps, candidates=2)],
    )
    plan = Plan(samples=2 * count, labels={"benign": 1.0}, shard=2)
    made = {"store_url": store, "scans": scans, "generator": generator, "plan": plan, "seed": 0}
    calls = [{**made, "first": one.start, "last": one.stop} for one in shards(plan)]
    return Work(Path(store), calls, [synthesize_shard.fn(**call).ref.sha256 for call in calls])


@flow
def spread(task: Task[Any, Done], calls: list[dict[str, Any]], where: Runner) -> list[Done]:
    """`fan_out` inside a flow, as builds call it."""
    return fan_out(task, calls, where)
