"""Ask again after a passing fault: resets, timeouts, short answers, servers that are busy."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a request is repeated after its first failure before that failure counts."""

FIRST_CONTACT_S = 5.0
"""The same where a server has never answered yet: more likely a wrong address than a passing fault."""

_LONGEST_WAIT_S = 5.0
_PASSING = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


def passing(error: Exception) -> bool:
    """Whether the operating system or a socket may answer otherwise in a moment."""
    return isinstance(error, (ConnectionError, TimeoutError)) or (
        isinstance(error, OSError) and error.errno in _PASSING
    )


def persist(call: Callable[[], T], is_passing: Callable[[Exception], bool], patience_s: Callable[[], float]) -> T:
    """What `call` returns, asked again after each passing fault, until `patience_s` after the first of them.

    Between tries it waits a random time below 0.1, 0.2, 0.4 … 5 s, so that many callers do not come back at once.
    `call` must be safe to repeat. The last fault is raised as it is.
    """
    began: float | None = None
    tries = 0
    while True:
        try:
            return call()
        except Exception as error:  # raised again unless it is of the kind asked for
            if not is_passing(error):
                raise
            began = time.monotonic() if began is None else began
            wait = random.uniform(0, min(_LONGEST_WAIT_S, 0.1 * 2**tries))
            if time.monotonic() + wait - began >= patience_s():
                raise
            time.sleep(wait)
            tries += 1
