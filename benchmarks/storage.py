"""Versions against the raw disk, `datasets`, s3fs, the AWS command line and plain Parquet, in turns in one run.

Checksums are on on our side, and none are on the others': publish works out the sha256 of every file and a digest of
every picture, pull checks each. What other programs write is synced to the disk, as what we write is. The S3 server
is Ceph's gateway on this machine (Debian's radosgw, ceph-mon and ceph-osd), so clients and server share its cores.
Names of ratios say whether more or less is better; seconds and sizes go to standard error.

    python -m benchmarks.storage --quick
    python -m benchmarks.storage --only local memory --aws /opt/aws/bin/aws

Needs the `dev` extra; 12 GB in --folder and 8 GB of memory in full.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import s3fs
from rich.console import Console

from benchmarks import storage_data, storage_peers
from benchmarks.ratios import Ratio, main, paired
from benchmarks.storage_memory import OPERATIONS, Operation, peak
from storage import open_version
from storage.formats import parquet
from storage.pulling import pull
from storage.records import Manifest
from storage.store import Store
from storage.versions import open_manifest, publish
from tests.servers import ceph

PX, SMALL_PX = 512, 32
ONE_PERCENT = f"{storage_data.SCORE} < 0.01"
AWS_START = "its start"
GROUPS = "row groups of 100"
QUESTION = f"label = 'malignant' and {storage_data.SCORE} > 0.9"

_console = Console(stderr=True)


@dataclass(frozen=True)
class Size:
    """How much is measured: samples of 512 x 512 on the disk and on S3, rows of small ones, repetitions."""

    local: int
    remote: int
    rows: tuple[int, ...]
    turns: int
    memory_turns: int


FULL = Size(local=5000, remote=2000, rows=(1_000, 10_000, 100_000), turns=7, memory_turns=3)
QUICK = Size(local=400, remote=400, rows=(1_000, 4_000), turns=3, memory_turns=1)


class Clock:
    """Seconds of each contender, in turns: who begins changes from turn to turn."""

    def __init__(self, what: str, amount: float = 0, unit: str = "") -> None:
        self._what, self._amount, self._unit = what, amount, unit
        self._seconds: dict[str, list[float]] = {}
        self._cpu: dict[str, list[float]] = {}
        self._turn = 0

    def turn(self, contenders: Mapping[str, Callable[[], object]]) -> None:
        """Each once. What earlier ones wrote is on the disk before a clock starts."""
        names = list(contenders)
        shift = self._turn % len(names)
        self._turn += 1
        for name in names[shift:] + names[:shift]:
            os.sync()
            begin, busy = time.perf_counter(), cpu_seconds()
            contenders[name]()
            self._seconds.setdefault(name, []).append(time.perf_counter() - begin)
            self._cpu.setdefault(name, []).append(cpu_seconds() - busy)

    def faster(self, peer: str, goal: float | None = None, less: str | None = None) -> Ratio:
        """How many times as fast as a peer we are; what `less` took in the same turn is taken off the peer's time."""
        off = self._seconds[less] if less else [0.0] * self._turn
        ratios = [max(0, theirs - none) / ours for (ours, theirs), none in zip(self._pairs(peer), off, strict=True)]
        without = f" without {less}" if less else ""
        return paired(f"{self._what}: speed, ours / {peer}{without} (more is better)", goal, ratios)

    def slower(self, peer: str, goal: float | None = None) -> Ratio:
        """Which share of a peer's time we take."""
        return paired(
            f"{self._what}: time, ours / {peer} (less is better)", goal, [a / b for a, b in self._pairs(peer)]
        )

    def explain(self) -> None:
        """Medians on standard error; where other programs run, the processor's seconds say more than the clock's."""
        for name, taken in self._seconds.items():
            rate = f", {self._amount / median(taken):.0f} {self._unit}/s" if self._amount else ""
            spread = f"{median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})"
            _console.print(f"{self._what}, {name}: {spread}, CPU {median(self._cpu[name]):.3f} s{rate}")

    def _pairs(self, peer: str) -> list[tuple[float, float]]:
        return list(zip(self._seconds["ours"], self._seconds[peer], strict=True))


def cpu_seconds() -> float:
    """Of this process, all its threads, and its children that have ended."""
    taken = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in taken)


def measure(size: Size, only: Sequence[str], folder: Path, aws: str | None) -> list[Ratio]:
    found: list[Ratio] = []
    parts: dict[str, Callable[[Path], list[Ratio]]] = {
        "local": lambda below: local(size, below),
        "remote": lambda below: remote(size, below, aws),
        "memory": lambda below: memory(size, below),
    }
    for name in only:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="sonoforge-benchmark-", dir=folder) as below:
            found += parts[name](Path(below))
        _console.print(f"[dim]{name}: {time.perf_counter() - begin:.0f} s[/]")
    return found


def local(size: Size, folder: Path) -> list[Ratio]:
    """Publish into a folder; rows by id, and a part of a version, out of it."""
    samples = folder / "samples.arrow"
    storage_data.write(samples, size.local, PX)
    store = Store(folder / "store")
    manifest = published(store, "first", samples, size.local)
    files = [Path(store.uri(file.key)) for file in manifest.files]
    total = sum(file.bytes for file in manifest.files)
    held = storage_peers.hugging_face(samples)
    clock = Clock(f"publish {size.local} samples to a folder", total / 1e6, "MB")
    for turn in range(size.turns):
        out = folder / "out"
        out.mkdir()
        contenders: dict[str, Callable[[], object]] = {
            "ours": lambda turn=turn: published(store, f"turn-{turn}", samples, size.local),
            "raw write + fsync": lambda out=out: storage_peers.raw_write(files, out / "raw"),
            "datasets.to_parquet": lambda out=out: storage_peers.to_parquet(held, out / "parquet"),
            "datasets.save_to_disk": lambda out=out: storage_peers.save_to_disk(held, out / "disk"),
        }
        clock.turn(contenders)
        shutil.rmtree(out)
        shutil.rmtree(store.uri(f"turn-{turn}"))
    clock.explain()
    found = [
        clock.faster("raw write + fsync", 0.6),
        clock.faster("datasets.to_parquet", 3),
        clock.faster("datasets.save_to_disk"),
    ]
    groups = folder / "groups.parquet"
    storage_peers.write_groups(samples, groups)
    return found + some_rows(store, "a folder", size, size.local, lambda: groups.open("rb")) + [part(store, manifest)]


def remote(size: Size, folder: Path, aws: str | None) -> list[Ratio]:
    """Publish to a real S3 server and pull from it."""
    if ceph.missing():
        _console.print(f"[yellow]S3 is left out: no {', '.join(ceph.missing())} (apt-get install {ceph.PACKAGES})[/]")
        return []
    if aws is None:
        _console.print("[yellow]the AWS command line is left out: it is not installed; --aws says where it is[/]")
    (folder / "server").mkdir()
    with ceph.running(folder / "server") as server:
        os.environ |= server.environment()
        files = s3fs.S3FileSystem(use_listings_cache=False)
        try:
            return transfers(size, folder, f"{server.bucket}/benchmark", files, aws)
        finally:
            files.clear_instance_cache()


def transfers(size: Size, folder: Path, root: str, files: s3fs.S3FileSystem, aws: str | None) -> list[Ratio]:
    samples, staged = folder / "samples.arrow", folder / "staged"
    storage_data.write(samples, size.remote, PX)
    written = parquet.write(storage_data.mapped(samples), staged)
    about = storage_data.about(size.remote, written)
    total = sum(path.stat().st_size for path in staged.rglob("*.parquet"))
    store = Store(f"s3://{root}/store")
    up = Clock(f"publish {size.remote} samples to S3", total / 1e6, "MB")
    down = Clock(f"pull {size.remote} samples from S3", total / 1e6, "MB")
    for turn in range(size.turns):
        name, there, here = f"turn-{turn}", f"{root}/peers-{turn}", folder / f"here-{turn}"
        here.mkdir()
        puts: dict[str, Callable[[], object]] = {
            "ours": lambda name=name: publish(store, name, staged, about),
            "s3fs.put": lambda there=there: files.put(f"{staged}/", f"{there}/s3fs/", recursive=True),
        }
        gets: dict[str, Callable[[], object]] = {
            "ours": lambda name=name, here=here: pull(store, open_manifest(store, name), here / "ours"),
            "s3fs.get": lambda there=there, here=here: files.get(f"{there}/s3fs/", f"{here}/s3fs/", recursive=True),
        }
        if aws:
            url = f"s3://{there}/aws"
            puts[AWS_START] = gets[AWS_START] = lambda: storage_peers.aws(aws, "--version")
            puts["aws s3 cp"] = lambda url=url: storage_peers.aws_copy(aws, str(staged), url)
            gets["aws s3 cp"] = lambda url=url, here=here: storage_peers.aws_copy(aws, url, str(here / "aws"))
        up.turn(puts)
        down.turn(gets)
        shutil.rmtree(here)
        files.rm(there, recursive=True)
        if turn < size.turns - 1:
            store.delete_many(store.list(name))
    up.explain()
    down.explain()
    found = [up.faster("s3fs.put"), down.faster("s3fs.get", 1.5)]
    if aws:
        for clock in up, down:  # ours is called in a running Python, so its start should not count either
            found += [clock.faster("aws s3 cp", 1, AWS_START), clock.faster("aws s3 cp")]
    groups = folder / "groups.parquet"
    storage_peers.write_groups(samples, groups)
    files.put_file(str(groups), f"{root}/groups.parquet")
    version = f"turn-{size.turns - 1}"
    found += some_rows(
        store, "S3", size, size.remote, lambda: files.open(f"{root}/groups.parquet", cache_type="none"), version
    )
    return [*found, part(store, open_manifest(store, version))]


def some_rows(
    store: Store, where: str, size: Size, count: int, groups: Callable[[], Any], dataset: str = "first"
) -> list[Ratio]:
    """100 random rows by id, image and mask decoded; the version and the file are opened within the time.

    Ours decodes in two threads, as `take` does for everybody; the peer one picture after the other, as a script would.
    """
    clock = Clock(f"100 random rows of {count} by id from {where}")
    rng = np.random.default_rng(1)
    columns = ["id", "image", "mask"]
    for _ in range(size.turns):
        ids = [f"syn-{index:08d}" for index in rng.choice(count, 100, replace=False)]

        def together(ids: list[str] = ids) -> list[storage_peers.Pair]:
            with open_version(dataset, store) as version:
                return [(row["image"], row["mask"]) for row in version.take(ids, columns)]

        def singly(ids: list[str] = ids) -> None:
            with open_version(dataset, store) as version:
                for name in ids:
                    version.row(name, columns)

        def encoded(ids: list[str] = ids) -> list[storage_peers.Pngs]:
            with closing(groups()) as file:
                return storage_peers.rows_of_groups(file, ids)

        for ours, theirs in zip(together(), storage_peers.decoded(encoded()), strict=True):
            assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
        contenders: dict[str, Callable[[], object]] = {
            "ours": together,
            GROUPS: lambda encoded=encoded: storage_peers.decoded(encoded()),
            "ours, one call a row": singly,
        }
        clock.turn(contenders)
    clock.explain()
    return [clock.slower(GROUPS, 0.5)]


def part(store: Store, manifest: Manifest) -> Ratio:
    """Pull 1 % of the rows, and look at what travelled."""
    with tempfile.TemporaryDirectory() as folder:
        pulled = pull(store, manifest, Path(folder) / "part", where=ONE_PERCENT)
    assert pulled.rows == manifest.kept // 100
    whole = sum(file.bytes for file in manifest.files)
    _console.print(f"--where: {pulled.rows} of {manifest.kept} rows, {pulled.bytes_moved} of {whole} bytes")
    kind = "S3" if "://" in store.url else "a folder"
    what = f"pull 1 % of {manifest.kept} rows from {kind}: bytes moved / bytes of the version (less is better)"
    return paired(what, 0.05, [pulled.bytes_moved / whole])


def memory(size: Size, folder: Path) -> list[Ratio]:
    """Peak memory of each operation at several sizes; questions about metadata at the largest."""
    peaks: dict[tuple[Operation, int], list[int]] = {}
    for count in size.rows:
        root, first, second = folder / f"store-{count}", folder / "first.arrow", folder / "second.arrow"
        for samples, critic in (first, 0.5), (second, 0.6):
            storage_data.write(samples, count, SMALL_PX, critic)
        for turn in range(size.memory_turns):
            peaks.setdefault(("publish", count), []).append(peak("publish", root, f"turn-{turn}", first, str(count)))
        peak("publish", root, "turn-0", second, str(count))
        arguments: dict[Operation, Sequence[str | Path]] = {
            "list": [],
            "filter": ["turn-0@1"],
            "diff": ["turn-0@1", "turn-0@2"],
            "pull": ["turn-0@1", folder / "pulled"],
            "pull where": ["turn-0@1", folder / "part"],
        }
        for _ in range(size.memory_turns):
            for operation, told in arguments.items():
                peaks.setdefault((operation, count), []).append(peak(operation, root, *told))
            for pulled in "pulled", "part":
                shutil.rmtree(folder / pulled)
    for (operation, count), taken in peaks.items():
        _console.print(f"peak of {operation} at {count} rows: {median(taken) / 2**20:.0f} MiB")
    small, large = size.rows[0], size.rows[-1]
    found = [
        paired(
            f"peak memory of {operation}: {large} / {small} rows (less is better)",
            1.2,
            [many / few for many, few in zip(peaks[operation, large], peaks[operation, small], strict=True)],
        )
        for operation in OPERATIONS
    ]
    return found + questions(Store(folder / f"store-{large}"), size)


def questions(store: Store, size: Size) -> list[Ratio]:
    """A question that needs no pictures, to a version and to its metadata.parquet."""
    manifest = open_manifest(store, "turn-0@1")
    table = next(store.uri(file.key) for file in manifest.files if file.path == "metadata.parquet")
    columns = ["id", "label", storage_data.SCORE]
    rows: dict[str, int] = {}
    clock = Clock(f"rows of {manifest.kept} that meet a condition")

    with open_version("turn-0@1", store) as version:

        def ours() -> None:
            rows["ours"] = len(version.metadata(columns, where=QUESTION))

        def first() -> None:
            with open_version("turn-0@1", store) as fresh:
                fresh.metadata(columns, where=QUESTION)

        def sql() -> None:
            query = f"select {', '.join(columns)} from read_parquet('{table}') where {QUESTION}"
            rows["DuckDB"] = len(duckdb.connect().execute(query).df())

        def frame() -> None:
            filters = [("label", "=", "malignant"), (storage_data.SCORE, ">", 0.9)]
            rows["pandas"] = len(pd.read_parquet(table, columns=columns, filters=filters))

        ours()  # fetches the table: `first` shows what that takes
        for _ in range(max(5, size.turns)):
            clock.turn({"ours": ours, "ours, version opened": first, "DuckDB": sql, "pandas": frame})
    assert rows["ours"] == rows["DuckDB"] == rows["pandas"] > 0
    clock.explain()
    return [clock.slower("DuckDB"), clock.slower("pandas")]


def published(store: Store, dataset: str, samples: Path, count: int) -> Manifest:
    """A version of mapped samples, from Arrow batches to the manifest."""
    with store.staging() as folder:
        written = parquet.write(storage_data.mapped(samples), folder)
        return publish(store, dataset, folder, storage_data.about(count, written))[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parts = ["local", "remote", "memory"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts of the benchmark")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--aws", default=os.environ.get("SONOFORGE_AWS") or shutil.which("aws"), help="the AWS program")
    asked, sys.argv[1:] = parser.parse_known_args()
    datasets.disable_progress_bars()
    main(
        __doc__ or "",
        lambda quick: measure(QUICK if quick else FULL, asked.only, asked.folder, asked.aws),
    )
