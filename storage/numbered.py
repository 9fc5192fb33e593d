"""Logs of create-only entries 1, 2, 3 …: versions of a dataset, moves of a channel."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_PARALLEL = 16  # small reads at once: a round trip each
_AHEAD = 64  # entries read and not asked for yet, at most


def highest(listed: Iterable[int], present: Callable[[int], bool]) -> int:
    """The highest number that is taken, 0 where none is.

    A number is claimed only once the one before it is there. So a listing that leaves out the newest (it was cut
    short, or is older than they are) hides nothing: from what it does show, entries are asked for one by one until
    there is none.

    >>> highest([1], lambda number: number <= 3)
    3
    """
    top = next((number for number in sorted(listed, reverse=True) if present(number)), 0)
    while present(top + 1):
        top += 1
    return top


def read_all(numbers: Iterable[int], read: Callable[[int], T]) -> Iterator[T]:
    """`read` of every number in order, several at once and not far ahead; numbers that are gone are passed over.

    They may be: whoever owns the store can remove a version by hand.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(read, number))
                if len(waiting) >= _AHEAD:
                    yield from _result(waiting.popleft())
            while waiting:
                yield from _result(waiting.popleft())
        finally:  # the caller may have seen enough
            for future in waiting:
                future.cancel()


def _result(future: Future[T]) -> Iterator[T]:
    try:
        result = future.result()
    except FileNotFoundError:
        return
    yield result
