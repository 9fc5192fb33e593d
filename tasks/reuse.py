"""Reuse what a step already made: the resume, the cache and the incremental rebuild, in one function."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from pydantic import BaseModel

from storage import keys, steps
from storage.records import Record, Ref
from storage.store import Store
from tasks import metrics, stop

_looking: ContextVar[bool] = ContextVar("looking", default=False)


class Done(Record):
    """How one step ended: what it made, whether that was there already, and the seconds it took."""

    step: str
    ref: Ref
    reused: bool
    seconds: float


def reuse(
    store: Store,
    step: str,
    algorithm: int,
    params: Mapping[str, object] | BaseModel,
    inputs: Sequence[str],
    make: Callable[[str], Ref],
) -> Done:
    """Return what `step` made from these `params` and `inputs` before, or call `make(key)` and record it.

    Args:
        algorithm: the version of the step's code; raise it when the same inputs give other bytes.
        inputs: digests of everything the step reads.
        make: writes the step's files under `keys.step_file(step, key, ...)` and returns their `Ref`.
    """
    stop.check()
    start = time.perf_counter()
    with noted(f"in step {step}"):
        key = keys.step_key(step, algorithm, params, inputs)
        ref = steps.find(store, step, key)
        if ref is not None:
            return metrics.finished(Done(step=step, ref=ref, reused=True, seconds=time.perf_counter() - start))
        if _looking.get():
            raise _NotMadeError(step)
        ref = steps.finish(store, step, key, make(key))
    return metrics.finished(Done(step=step, ref=ref, reused=False, seconds=time.perf_counter() - start))


@contextmanager
def noted(where: str) -> Generator[None]:
    """An error that leaves the block says where it happened, in a note of its own; also from another process."""
    try:
        yield
    except BaseException as error:
        error.add_note(where)
        raise


def look_up(step: Callable[[], Done]) -> Done | None:
    """What a call that ends in `reuse` made before; None where it did not yet, and it is not made now either."""
    token = _looking.set(True)
    try:
        return step()
    except _NotMadeError:
        return None
    finally:
        _looking.reset(token)


class _NotMadeError(LookupError):
    """What was looked up has not been made."""
