"""A step that was made is not made again."""

from pathlib import Path

import pytest

from storage import garbage, keys
from storage.errors import CorruptFileError
from storage.records import Ref
from storage.store import Store
from tasks import ablate, conclude
from tasks.reuse import reuse


def test_a_finished_step_is_found_and_not_made_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path), list[str]()

    def make(key: str) -> Ref:
        made.append(key)
        file = keys.step_file("draw", key, "out")
        store.put(file, b"pixels")
        return Ref(key=file, sha256="ab", rows=1)

    first = reuse(store, "draw", 1, {"px": 8}, ["input"], make)
    again = reuse(store, "draw", 1, {"px": 8}, ["input"], make)
    assert (first.reused, again.reused) == (False, True)
    assert first.ref == again.ref
    assert len(made) == 1


def test_other_parameters_inputs_or_code_are_another_step(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(key: str) -> Ref:
        return Ref(key=keys.step_file("draw", key, "out"), sha256=key)

    variants = [
        reuse(store, "draw", algorithm, {"px": px}, inputs, make).ref.sha256
        for algorithm, px, inputs in ((1, 8, ["a"]), (2, 8, ["a"]), (1, 16, ["a"]), (1, 8, ["b"]), (1, 8, ["a", "b"]))
    ]
    assert len(set(variants)) == len(variants)


def test_a_step_that_died_half_way_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = keys.step_key("draw", 1, {}, [])
    store.put(keys.step_file("draw", key, "out"), b"half")
    done = reuse(store, "draw", 1, {}, [], lambda key: Ref(key=keys.step_file("draw", key, "out"), sha256="ab"))
    assert not done.reused


def test_a_reference_that_an_older_sonoforge_left_unsealed_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = keys.step_key("draw", 1, {}, [])
    store.put(keys.step_ref("draw", key), Ref(key="a", sha256="ab").model_dump_json().encode())
    with pytest.raises(CorruptFileError, match=r"ref\.json .* delete it to have the step run again"):
        reuse(store, "draw", 1, {}, [], lambda key: Ref(key="a", sha256="ab"))


def test_garbage_collection_knows_the_steps_whose_output_is_an_answer() -> None:
    assert {conclude.STEP, ablate.TABLE} == garbage.RESULTS
