import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CorruptFileError
from storage.records import Ref, Tombstone
from storage.sealed import seal, unseal

TOMBSTONE = Tombstone(dataset="demo", version=3, reason="Ü\n", retracted="2026-01-02T03:04:05+00:00", id="ab")


def test_what_was_sealed_comes_back() -> None:
    assert unseal(seal(TOMBSTONE), Tombstone, "here") == TOMBSTONE
    ref = Ref(key="a", sha256="content", counts={"kept": 1})  # its own field of that name stays what it is
    assert unseal(seal(ref), Ref, "here") == ref
    assert json.loads(seal(ref))["sha256"] == "content"


@given(st.integers(0, len(seal(TOMBSTONE)) - 1), st.integers(1, 255))
def test_no_flipped_byte_is_believed(position: int, change: int) -> None:
    data = bytearray(seal(TOMBSTONE))
    data[position] ^= change
    try:
        found = unseal(bytes(data), Tombstone, "here")
    except CorruptFileError:
        return
    assert found == TOMBSTONE  # white space between the values


@given(st.integers(0, len(seal(TOMBSTONE)) - 1))
def test_no_torn_text_is_believed(length: int) -> None:
    with pytest.raises(CorruptFileError, match="here"):
        unseal(seal(TOMBSTONE)[:length], Tombstone, "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "is no sealed JSON"),
        (b'{"seal": 1}', "differs from its own seal"),
        (b"\xff\xfe", "is no sealed JSON"),
        (seal(Ref(key="a", sha256="b")), "is no tombstone that this sonoforge reads"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        unseal(data, Tombstone, "here")
