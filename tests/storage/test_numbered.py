import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.numbered import highest, read_all


@given(st.integers(0, 30), st.data())
def test_no_listing_however_torn_hides_the_highest_number(last: int, data: st.DataObject) -> None:
    listed = data.draw(st.sets(st.integers(1, 30)))  # too few, or a folder whose manifest never came
    assert highest(listed, lambda number: 1 <= number <= last) == last


def test_numbers_are_read_in_order_and_those_removed_by_hand_passed_over() -> None:
    def read(number: int) -> int:
        if number in (2, 100):
            raise FileNotFoundError
        time.sleep(0.001 * (number % 3))
        return number

    assert list(read_all(range(1, 101), read)) == [n for n in range(1, 101) if n not in (2, 100)]


def test_who_stops_early_has_not_read_everything() -> None:
    asked: list[int] = []
    reading = read_all(range(1, 10_000), lambda number: asked.append(number) or number)
    assert [next(reading) for _ in range(3)] == [1, 2, 3]
    reading.close()  # type: ignore[attr-defined]
    assert len(asked) < 200
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_reader_that_fails_is_heard() -> None:
    def read(number: int) -> int:
        if number == 70:
            raise ValueError("damaged")
        return number

    with pytest.raises(ValueError, match="damaged"):
        list(read_all(range(1, 100), read))
