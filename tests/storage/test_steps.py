import pytest

from storage import keys, steps
from storage.errors import CorruptFileError
from storage.records import Ref
from storage.store import Store


def test_a_step_is_done_when_its_reference_is_written(store: Store) -> None:
    ref = Ref(key=keys.step_file("score", "k", "scores.parquet"), sha256="ab", rows=3, counts={"kept": 2})
    assert steps.find(store, "score", "k") is None
    store.put(ref.key, b"bulk")
    assert steps.find(store, "score", "k") is None
    assert steps.finish(store, "score", "k", ref) == ref
    assert steps.find(store, "score", "k") == ref


def test_the_reference_that_stands_wins_over_an_equal_one(store: Store) -> None:
    first = steps.finish(store, "score", "k", Ref(key="a", sha256="same", counts={"seconds": 1}))
    assert steps.finish(store, "score", "k", Ref(key="a", sha256="same", counts={"seconds": 2})) == first


def test_a_step_that_makes_something_else_the_second_time_is_caught(store: Store) -> None:
    steps.finish(store, "score", "k", Ref(key="a", sha256="one"))
    with pytest.raises(CorruptFileError, match="made twice with different content"):
        steps.finish(store, "score", "k", Ref(key="a", sha256="two"))


@pytest.mark.parametrize("data", [b"{torn", Ref(key="a", sha256="unsealed").model_dump_json().encode()])
def test_a_reference_that_is_damaged_or_not_sealed_says_what_to_do(store: Store, data: bytes) -> None:
    store.put(keys.step_ref("score", "k"), data)
    with pytest.raises(CorruptFileError, match=r"score/k/ref\.json .* delete it to have the step run again"):
        steps.find(store, "score", "k")
