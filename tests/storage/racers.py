"""What the processes do that race each other or are killed; light, so that they start soon.

They are forked from a server process that has imported all this and talked to no store: forking one with open
connections and running threads would share them.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import boto3  # noqa: F401 - imported once, before the forks
import pytest  # noqa: F401 - multiprocessing imports the main module in every process

import storage.s3  # noqa: F401
from storage import channels
from storage.records import ChannelEntry, Manifest
from storage.store import Store
from storage.versions import publish
from tests.fakes.samples import table
from tests.storage.forged import write

R = TypeVar("R")

Work = Callable[[Store, int, Any, Any], Sequence[R]]
"""Work of process `index`: store, index, what it is told, and the barrier at which all wait for each other."""


def race(url: str, count: int, work: Work[R], told: object, seconds: float = 240) -> list[Sequence[R]]:
    """Run `work` in so many processes at once; what each returned.

    Raises:
        AssertionError: one failed or did not end in time; its error is on stderr.
    """
    context = server()
    barrier = context.Barrier(count)
    pairs = [context.Pipe(duplex=False) for _ in range(count)]
    started = [
        context.Process(target=_run, args=(url, environment(), index, work, told, barrier, pairs[index][1]))
        for index in range(count)
    ]
    for process in started:
        process.start()
    for _, sending in pairs:
        sending.close()  # so that the end of its process is heard
    try:
        results: list[Sequence[R]] = []
        for index, (receiving, _) in enumerate(pairs):
            assert receiving.poll(seconds), f"process {index} said nothing in {seconds} s"
            try:
                results.append(receiving.recv())
            except EOFError:
                raise AssertionError(f"process {index} failed") from None
        return results
    finally:
        for process in started:
            process.join(10)
            process.kill()
            process.join()


def server() -> multiprocessing.context.ForkServerContext:
    """Where processes come from: a process that has imported this module and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def environment() -> dict[str, str]:
    """What names the S3 server, which differs from test to test."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _run(
    url: str, names: dict[str, str], index: int, work: Work[R], told: object, barrier: Any, sending: Connection
) -> None:
    os.environ.update(names)
    try:
        sending.send(work(Store(url), index, told, barrier))
    except BaseException:
        barrier.abort()  # nobody waits for this one
        raise


def publish_some(store: Store, index: int, told: tuple[str, int], barrier: Any) -> list[Manifest]:
    """Publish versions of one's own, one after the other."""
    root, count = told
    folders = [Path(root) / f"{index}-{turn}" for turn in range(count)]
    abouts = [write(folder, table(6, seed=1000 * index + turn)) for turn, folder in enumerate(folders)]
    barrier.wait(200)
    made = [publish(store, "demo", folder, about) for folder, about in zip(folders, abouts, strict=True)]
    assert all(created for _, created in made)
    return [manifest for manifest, _ in made]


def publish_the_same(store: Store, index: int, told: tuple[str, int], barrier: Any) -> list[tuple[int, bool]]:
    """Publish what all others publish too: the number it got, and whether it was the one to create it."""
    root, count = told
    folders = [Path(root) / f"{index}-{turn}" for turn in range(count)]
    abouts = [write(folder, table(6, seed=turn)) for turn, folder in enumerate(folders)]
    barrier.wait(200)
    made = [publish(store, "demo", folder, about) for folder, about in zip(folders, abouts, strict=True)]
    return [(manifest.version, created) for manifest, created in made]


def move_some(store: Store, index: int, told: int, barrier: Any) -> list[ChannelEntry]:
    """Move one channel back and forth."""
    barrier.wait(200)
    return [channels.move(store, "demo", "production", 1 + (index + turn) % 2) for turn in range(told)]


def publish_one(url: str, names: dict[str, str], folder: str, about: Any, sending: Connection) -> None:
    """Publish a folder; say when it begins and, where it comes to that, what was published; wait to be killed."""
    os.environ.update(names)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    store = Store(url)
    sending.send("begun")
    sending.send(publish(store, "demo", Path(folder), about)[0].version)
    time.sleep(600)
