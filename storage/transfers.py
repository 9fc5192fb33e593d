"""Move bytes out of a backend: in ranges, several at a time, in order, in bounded memory."""

import hashlib
import io
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from storage.backends import Backend
from storage.errors import CorruptFileError

RANGE = 8 * 2**20
"""Bytes asked for at a time; at most `parallel` + 2 answers of this size are in memory: 48 MiB."""

_NEAR = 64 * 2**10  # a gap this small costs less to read than another request

Span = tuple[int, int]
"""Where bytes begin, and how many they are."""


def pieces(backend: Backend, key: str, spans: Iterable[Span]) -> Iterator[memoryview]:
    """The bytes of each span, in order; several are on their way at once.

    A piece is overwritten once the next is asked for: copy what is to be kept.

    Raises:
        FileNotFoundError: no such key.
        CorruptFileError: it ends before a span does.
    """
    free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()

    def read(start: int, length: int) -> tuple[bytearray, memoryview]:
        try:
            buffer = free.get_nowait()
        except queue.Empty:
            buffer = bytearray()
        if len(buffer) < length:
            buffer = bytearray(length)
        view = memoryview(buffer)[:length]
        filled = backend.fill(key, start, view)
        if filled < length:
            raise CorruptFileError(
                f"{backend.locate(key)} ends at byte {start + filled}, expected at least {start + length}: restore "
                "it from a copy, or publish the version again"
            )
        return buffer, view

    running: deque[Future[tuple[bytearray, memoryview]]] = deque()
    pool: ThreadPoolExecutor | None = None
    try:
        for start, length in spans:
            if backend.parallel == 1:
                buffer, view = read(start, length)
                yield view
                free.put(buffer)
                continue
            pool = pool or ThreadPoolExecutor(backend.parallel, thread_name_prefix="sonoforge-read")
            running.append(pool.submit(read, start, length))
            if len(running) > backend.parallel:
                buffer, view = running.popleft().result()
                yield view
                free.put(buffer)
        while running:
            yield running.popleft().result()[1]
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def ranges(backend: Backend, key: str, spans: Iterable[Span]) -> Iterator[bytes]:
    """The bytes of each span, in the order given; near ones travel in one request."""
    asked: deque[list[Span]] = deque()

    def requests() -> Iterator[Span]:
        for group in _near(spans):
            asked.append(group)
            begin = group[0][0]
            yield begin, max(start + length for start, length in group) - begin

    for view in pieces(backend, key, requests()):
        group = asked.popleft()
        for start, length in group:
            at = start - group[0][0]
            yield bytes(view[at : at + length])


def _near(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Neighbours in the order given that fit into one request; gaps between them are small.

    >>> list(_near([(0, 10), (20, 10), (10**6, 5), (0, 5)]))
    [[(0, 10), (20, 10)], [(1000000, 5)], [(0, 5)]]
    """
    group: list[Span] = []
    begin = end = 0
    for start, length in spans:
        last = max(end, start + length)
        if group and begin <= start <= end + _NEAR and last - begin <= RANGE:
            group.append((start, length))
        else:
            if group:
                yield group
            group, begin, last = [(start, length)], start, start + length
        end = last
    if group:
        yield group


def copy(
    stream: Callable[[int], Iterator[memoryview]],
    where: str,
    file: IO[bytes],
    size: int | None,
    advance: Callable[[int], None] | None,
) -> str:
    """Write into a file what it lacks of a key; the sha256 of the whole.

    One request for one file: on two cores parts of it that travel side by side were slower, as they leave the
    processor's cache before they are hashed. Fetch up to four files at once instead.

    Args:
        stream: gives the key's bytes from a position on.
        where: address of the key, for messages.
        file: open for reading and appending; what it holds is taken for the beginning of the key.
        size: bytes of the key where they are known.
        advance: called with the bytes just moved.

    Raises:
        CorruptFileError: the key has another size.
    """
    digest = hashlib.sha256()
    have = _hashed(file, digest) if size is not None else 0
    if size is not None and have > size:
        file.seek(0)
        file.truncate()
        digest, have = hashlib.sha256(), 0
    if size is None or have < size:
        for piece in stream(have):
            have += len(piece)
            if size is not None and have > size:
                break
            digest.update(piece)
            file.write(piece)
            if advance is not None:
                advance(len(piece))
    if size is not None and have != size:
        more = "more" if have > size else f"{have}"
        raise CorruptFileError(
            f"{where} has {more} bytes, expected {size}: restore it from a copy, or publish the version again"
        )
    return digest.hexdigest()


def _hashed(file: IO[bytes], digest: Any) -> int:
    """Hash what a file holds; its bytes."""
    file.seek(0)
    while piece := file.read(2**20):
        digest.update(piece)
    return file.tell()


class RangeFile(io.RawIOBase):
    """A seekable file for reading, each read one request: pyarrow joins and buffers them itself."""

    def __init__(self, fill: Callable[[int, memoryview], int], size: int) -> None:
        super().__init__()
        self._fill = fill
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readall(self) -> bytes:
        """The rest, in one request."""
        view = memoryview(bytearray(max(0, self._size - self._at)))
        return bytes(view[: self.readinto(view)])

    def readinto(self, buffer: Any) -> int:
        """One range request; 0 at the end."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        filled = self._fill(self._at, view) if len(view) else 0
        self._at += filled
        return filled


def part_of(path: Path) -> Path:
    """Where the beginning of a file is kept until the rest of it arrives."""
    return path.with_name(path.name + ".part")
