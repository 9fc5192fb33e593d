import errno

import pytest

from storage import retrying
from storage.retrying import passing, persist


class Clock:
    """Time that passes only in sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        monkeypatch.setattr(retrying.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retrying.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_fault_that_passes_is_not_seen(clock: Clock) -> None:
    answers = [ConnectionResetError(), TimeoutError(), "answer"]

    def call() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert persist(call, passing, lambda: 60) == "answer"
    assert len(clock.slept) == 2


def test_one_that_does_not_pass_is_raised_in_time(clock: Clock) -> None:
    tries: list[float] = []

    def call() -> None:
        tries.append(clock.now)
        clock.now += 1
        raise ConnectionResetError(f"number {len(tries)}")

    with pytest.raises(ConnectionResetError) as caught:
        persist(call, passing, lambda: 60)
    assert str(caught.value) == f"number {len(tries)}"
    assert 50 < clock.now - 101 <= 61
    assert max(clock.slept) <= 5
    assert clock.slept[0] <= 0.1
    assert len(tries) > 12
    assert len(set(clock.slept)) == len(clock.slept)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError(errno.ENOSPC, "full"), ValueError("x")])
def test_a_permanent_fault_is_raised_at_once(clock: Clock, error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        persist(call, passing, lambda: 60)
    assert clock.slept == []
