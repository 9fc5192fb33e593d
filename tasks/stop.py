"""Stop a run between two batches: because somebody asked for it, or because its time is over.

Nothing can interrupt code in threads and in other processes from outside, so whatever is slow looks here from time to
time. Steps need not know: `track.advance` and `reuse` look for them.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

_limits: ContextVar[tuple["_Limit", ...]] = ContextVar("limits", default=())


class StoppedError(Exception):
    """Work was told to stop, and did so between two batches."""


class OutOfTimeError(StoppedError):
    """Work took longer than it was given."""


class Flag(Protocol):
    """An event of `threading`, or of `multiprocessing` where workers are processes."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


@dataclass(frozen=True)
class _Limit:
    """What ends work: a raised flag, or a moment of `time.monotonic`, `seconds` after it began."""

    flag: Flag | None = None
    moment: float = float("inf")
    seconds: float = float("inf")

    def check(self) -> None:
        if self.flag is not None and self.flag.is_set():
            raise StoppedError("stopped: the run was cancelled, or its time was over")
        if time.monotonic() > self.moment:
            raise OutOfTimeError(f"stopped after its time limit of {self.seconds:g} s")


_everywhere = _Limit()


def check() -> None:
    """Go on, or raise `StoppedError` where this run is to stop. Costs nothing worth saving."""
    _everywhere.check()
    for limit in _limits.get():
        limit.check()


@contextmanager
def within(seconds: float | None) -> Generator[None]:
    """Work inside, in this thread and those it starts with its context, ends so long after now; None: whenever."""
    if seconds is None:
        yield
        return
    with _limited(_Limit(moment=time.monotonic() + seconds, seconds=seconds)):
        yield


@contextmanager
def together(flag: Flag) -> Generator[None]:
    """Where the block is interrupted or stopped, `flag` is raised, and all who work under it stop as well.

    Any other error leaves them at their work: what they have begun is worth keeping.
    """
    with _limited(_Limit(flag=flag)):
        try:
            yield
        except StoppedError:
            flag.set()
            raise
        except Exception:
            raise
        except BaseException:  # SIGTERM and Ctrl-C arrive as these
            flag.set()
            raise


def obey(flag: Flag) -> None:
    """In a worker process: everything in it stops once `flag` is raised."""
    global _everywhere
    _everywhere = _Limit(flag=flag)


@contextmanager
def _limited(limit: _Limit) -> Generator[None]:
    token = _limits.set((*_limits.get(), limit))
    try:
        yield
    finally:
        _limits.reset(token)
