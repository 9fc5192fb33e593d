"""Parquet files whose sha256 is worked out while they are written: a thread reads behind the writer."""

import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from storage.explaining import writing
from storage.records import Written, parquet_options

_SYNC_BYTES = 64 * 2**20
"""Written between two requests to the disk, so that little is left for the last one to wait for."""

_PAGE_BYTES = 2**18  # about one picture: what is copied twice and summed up stays in a core's cache
_PIECE = 2**20  # read at a time: what fits into a core's cache is not fetched twice
_to_disk = getattr(os, "fdatasync", os.fsync)


class Thread:
    """One thread that does jobs in the order given. `do` waits while `most` are not finished."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(1)
        self._jobs: deque[Future[None]] = deque()

    def do(self, job: Callable[[], None]) -> None:
        """Hand over a job; raises what an earlier one raised."""
        while len(self._jobs) >= self._most:
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(job))

    def wait(self) -> None:
        """Until all jobs are done; raises the first failure."""
        while self._jobs:
            self._jobs.popleft().result()

    def stop(self, *, at_once: bool) -> None:
        """Do no more than what is waiting, or not even that."""
        self._pool.shutdown(cancel_futures=at_once)


class Threads:
    """What goes on beside the writing; its block ends when all of it has."""

    def __init__(self) -> None:
        self.hasher, self.syncer, self.finder = (Thread(most=1) for _ in range(3))
        self._last = ExitStack()

    def at_end(self, job: Callable[[], None]) -> None:
        """Hand over a job for when no thread runs any more, also after an error."""
        self._last.callback(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._last:
            threads = (self.finder, self.hasher, self.syncer)
            try:
                for thread in threads if kind is None else ():
                    thread.wait()  # above all the disk's refusal, which the system tells only once
            finally:
                for thread in threads:
                    thread.stop(at_once=kind is not None)


def _options(schema: pa.Schema) -> dict[str, Any]:
    return parquet_options(schema) | {"data_page_size": _PAGE_BYTES}


class HashedTable:
    """A new Parquet file, written as `records.parquet_options` says, row group by row group.

    Args:
        path: where; what lies there is replaced.
        schema: of its rows.
        threads: `hasher` follows the writing, and `syncer` makes the disk follow it too.
    """

    def __init__(self, path: Path, schema: pa.Schema, threads: Threads) -> None:
        self.path = path
        self.rows = 0
        self._threads = threads
        self._sink = pa.OSFile(str(path), "wb")
        self._writer: pq.ParquetWriter | None = pq.ParquetWriter(self._sink, schema, **_options(schema))
        threads.at_end(self._abandon)
        self._sha256 = hashlib.sha256()
        self._hashed = self._synced = 0

    def write(self, group: pa.Table) -> tuple[int, int]:
        """Write one row group; where it begins and ends in the file."""
        assert self._writer is not None
        with writing(self.path):
            start = self._sink.tell()
            self._writer.write_table(group)
        self.rows += group.num_rows
        self._follow()
        return start, self._hashed

    def close(self) -> None:
        """Write the footer."""
        assert self._writer is not None
        with writing(self.path):
            self._writer.close()
        self._writer = None  # it holds the footer, and there may be many shards
        self._follow()
        self._sink.close()

    def written(self) -> Written:
        """Rows and sha256 of the closed file, which may not be moved before; waits for what is left to hash."""
        self._threads.hasher.wait()
        return Written(rows=self.rows, sha256=self._sha256.hexdigest())

    def _abandon(self) -> None:
        if self._writer is not None:
            with suppress(OSError, ValueError):  # else the writer's end would complain of the missing footer
                self._writer.close()
            self._sink.close()

    def _follow(self) -> None:
        start, end = self._hashed, self._sink.tell()
        self._hashed = end
        self._threads.hasher.do(lambda: self._hash(start, end))
        if end - self._synced >= _SYNC_BYTES:
            self._synced = end
            self._threads.syncer.do(self._sync)

    def _hash(self, start: int, end: int) -> None:
        piece = memoryview(bytearray(min(_PIECE, end - start)))
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                count = file.readinto(piece[: end - start])
                if not count:
                    raise OSError(f"{self.path} ends after {start} of {end} bytes: somebody else cut it off")
                self._sha256.update(piece[:count])
                start += count

    def _sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            with writing(self.path):
                _to_disk(descriptor)
        finally:
            os.close(descriptor)


class HashedFile:
    """A new file of any other kind, hashed by whoever writes it: `sha256` is known when its block has ended."""

    def __init__(self, path: Path) -> None:
        self.sha256: str | None = None
        self._path = path
        self._file = path.open("wb", buffering=_PIECE)
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Append."""
        self._digest.update(data)
        with writing(self._path):
            return self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with writing(self._path):
            self._file.close()
        self.sha256 = self._digest.hexdigest()
