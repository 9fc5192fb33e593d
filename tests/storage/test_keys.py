import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import keys
from storage.errors import UnsafePathError
from storage.records import Record


class _Params(Record):
    steps: int = 4
    name: str = "a"


def test_a_step_key_depends_on_everything_that_decides_the_content() -> None:
    base = keys.step_key("score", 1, _Params(), ["in"])
    others = [
        keys.step_key("curate", 1, _Params(), ["in"]),
        keys.step_key("score", 2, _Params(), ["in"]),
        keys.step_key("score", 1, _Params(steps=5), ["in"]),
        keys.step_key("score", 1, _Params(), ["in", "more"]),
        keys.step_key("score", 1, _Params(), []),
    ]
    assert len({base, *others}) == 6
    assert len(base) == 32


def test_a_step_key_does_not_depend_on_order_or_on_model_against_mapping() -> None:
    one = keys.step_key("score", 1, {"a": 1, "b": {"x": _Params()}}, [])
    two = keys.step_key("score", 1, {"b": {"x": {"name": "a", "steps": 4}}, "a": 1}, [])
    assert one == two
    assert keys.step_key("score", 1, _Params(), []) == keys.step_key("score", 1, {"name": "a", "steps": 4}, [])


def test_a_step_key_is_the_same_in_every_process() -> None:
    code = "from storage import keys; print(keys.step_key('s', 1, {'b': [1, 2.5], 'a': 'é'}, ['x']))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {keys.step_key("s", 1, {"b": [1, 2.5], "a": "é"}, ["x"]) + "\n"}


def test_what_has_no_canonical_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        keys.canonical_json(float("nan"))
    with pytest.raises(TypeError, match="no canonical JSON"):
        keys.canonical_json({"a": object()})


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "A", "builds", "leases", "collecting", "-a", ".a", "a" * 101, "a@1", "a\n"]
)
def test_names_that_cannot_be_datasets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a dataset"):
        keys.check_name(name)


def test_versions_start_at_one() -> None:
    with pytest.raises(ValueError, match="numbered from 1"):
        keys.manifest_key("demo", 0)


def test_objects_are_named_by_a_digest_and_nothing_else() -> None:
    assert keys.object_key("demo", "a" * 64, ".png") == f"demo/objects/{'a' * 64}.png"
    for sha256, suffix in (("a" * 63, ""), ("../" + "a" * 61, ""), ("a" * 64, "/x"), ("a" * 64, ".a/../b")):
        with pytest.raises(ValueError, match="no sha256"):
            keys.object_key("demo", sha256, suffix)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "../a",
        "a/../b",
        "a//b",
        "a/.",
        "C:/a",
        "a\\b",
        "a\0b",
        " a",
        "a /b",
        "a?",
        "a.",
        "a/NUL",
        "con.txt",
        "lpt1",
    ],
)
def test_paths_that_could_leave_their_folder_are_refused(path: str) -> None:
    with pytest.raises(UnsafePathError, match="could leave its folder"):
        keys.safe_path(path)


@given(st.lists(st.text("ab._-", min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_safe_path_never_climbs(parts: list[str]) -> None:
    path = "/".join(parts)
    if any(part.endswith(".") for part in parts):
        with pytest.raises(UnsafePathError):
            keys.safe_path(path)
    else:
        assert keys.safe_path(path) == path


def test_only_keys_of_contents_are_known_as_objects() -> None:
    key = keys.object_key("demo", "a" * 64, ".parquet")
    assert keys.is_object(key)
    assert keys.is_object(keys.object_key("demo", "a" * 64))
    for other in (key + "/x", key + ".part", key.replace("objects", "versions"), "demo/objects/notes.txt", "a" * 64):
        assert not keys.is_object(other)


def test_the_folder_of_a_step_holds_all_its_files() -> None:
    for name in ("ref.json", "checkpoints/100.safetensors"):
        assert keys.step_folder(keys.step_file("train", "ab", name)) == "builds/train/ab"
