"""Doing something beside a build, and waiting until something is so."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Run `act` beside the block; what it raises is raised at the end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 (raised below)
            failed.append(error)

    beside = threading.Thread(target=run, daemon=True)
    beside.start()
    yield
    beside.join(60)
    assert not beside.is_alive(), "what runs beside does not end"
    if failed:
        raise failed[0]


def until(true: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
