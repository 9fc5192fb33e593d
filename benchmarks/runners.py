"""Shards a second of several workers against one: threads, processes, Ray, and flow runs on a work pool.

All make the same shards of one staged recipe from phantoms with the embedded base, in a store of their own, and must
come to the same bytes. One CPU thread a worker, so that a second worker has a core to gain; one worker is one thread
of this process, which has loaded the model. What others pay for starting, importing and loading is inside the time:
that is what the first line of a build waits for. With more shards its share falls, which `--shards` shows.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this run alone
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: what others on the machine leave

from prefect import flow

from benchmarks.ratios import Ratio, main, paired
from flows.runners import Runner, fan_out
from tasks.ingest import ingest
from tasks.plan import Plan, shards
from tasks.reuse import Done
from tasks.screening.screen import ScreenParams
from tasks.sources.phantom import Params as Phantom
from tasks.synthesis.harmonize import Params as Harmonize
from tasks.synthesis.layout import Params as Layout
from tasks.synthesis.lesion import Params as Lesion
from tasks.synthesize import Generator, synthesize_shard
from tasks.train import LoraParams, train_adapter, train_harmonizer
from tasks.tune import tune_decoder
from tests.servers import pool

WORKERS = 2
SHARD = 8


@dataclass(frozen=True)
class Way:
    """A way to run shards, by name."""

    name: str
    where: Runner


ONE = Way("one worker", Runner(workers=1))
WAYS = (
    Way("2 threads", Runner(workers=WORKERS)),
    Way("2 processes", Runner(kind="processes", workers=WORKERS)),
    Way("Ray, 2 workers", Runner(kind="ray", workers=WORKERS)),
    Way("work pool, 2 workers", Runner(kind="pool", pool=pool.POOL, workers=WORKERS, shards=8)),
)


@flow
def spread(calls: list[dict[str, Any]], where: Runner) -> list[Done]:
    return fan_out(synthesize_shard, calls, where)


def measure(count: int, turns: int) -> list[Ratio]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as open_ones:
        folder = Path(scratch)
        calls = prepared(folder / "store", count)
        url = open_ones.enter_context(pool.running(folder))
        found: dict[str, list[float]] = {way.name: [] for way in WAYS}
        alone: list[float] = []
        for turn in range(turns):
            seconds, expected = timed(folder, calls, ONE, turn)
            alone.append(seconds)
            for way in WAYS:
                around = serving(url, folder) if way.where.kind == "pool" else ExitStack()
                with around:
                    taken, digests = timed(folder, calls, way, turn)
                assert digests == expected, f"{way.name} made other bytes"
                found[way.name].append(seconds / taken)
                print(f"{way.name}: {taken:.0f} s, one worker {seconds:.0f} s", file=sys.stderr, flush=True)
    rate = count * SHARD * turns / sum(alone)
    return [
        paired(f"images/s of {count} shards of {SHARD}, {way.name} / one worker ({rate:.2g})", None, found[way.name])
        for way in WAYS
    ]


def prepared(store: Path, count: int) -> list[dict[str, Any]]:
    """Calls for so many shards, in a store where all they need is made."""
    where, base = str(store), "embedded"
    scans = ingest.fn(where, Phantom(count=60), ScreenParams(), 0).ref
    params = LoraParams(steps=2, warmup=1)
    generator = Generator(
        base=base,
        decoder=tune_decoder.fn(where, scans, base, None, 0).ref,
        adapters={"benign": train_adapter.fn(where, scans, base, params, "benign", 0).ref},
        harmonizer=train_harmonizer.fn(where, scans, base, None, ["benign"], 0).ref,
        stages=[Layout(), Lesion(steps=10, spacing="karras", candidates=4, early=0.5), Harmonize(steps=8)],
    )
    plan = Plan(samples=count * SHARD, labels={"benign": 1.0}, shard=SHARD)
    made = {"store_url": where, "scans": scans, "generator": generator, "plan": plan, "seed": 0}
    return [{**made, "first": one.start, "last": one.stop} for one in shards(plan)]


def timed(folder: Path, calls: Sequence[dict[str, Any]], way: Way, turn: int) -> tuple[float, list[str]]:
    """Seconds that a way takes, and what it made."""
    copy = folder / f"{way.name}-{turn}"
    shutil.copytree(folder / "store", copy)
    asked = [{**call, "store_url": str(copy)} for call in calls]
    start = time.perf_counter()
    ended = spread(asked, way.where)
    return time.perf_counter() - start, [done.ref.sha256 for done in ended]


def serving(url: str, folder: Path) -> ExitStack:
    """Two workers that are ready before the clock runs."""
    with ExitStack() as stack:
        for name in ("one", "two"):
            stack.callback(pool.die, pool.worker(url, folder, name))
        pool.wait_for_workers(WORKERS)
        return stack.pop_all()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--shards", type=int, help="shards of 8 images; 8, or 4 with --quick")
    asked, sys.argv[1:] = parser.parse_known_args()
    main(__doc__ or "", lambda quick: measure(asked.shards or (4 if quick else 8), 1 if quick else 3))
