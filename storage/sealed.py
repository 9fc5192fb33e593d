"""Small JSON objects that say themselves whether they are whole: a damaged one is refused, never believed."""

import hashlib
import json
from typing import TypeVar

from storage import keys
from storage.errors import CorruptFileError
from storage.records import Record
from storage.store import Store

R = TypeVar("R", bound=Record)

_SEAL = "seal"


def seal(record: Record) -> bytes:
    """A record as JSON, its last field, `seal`, the sha256 of the canonical JSON of all others."""
    content = record.model_dump(mode="json")
    assert _SEAL not in content
    return json.dumps(content | {_SEAL: _digest(content)}, indent=1, ensure_ascii=False, allow_nan=False).encode()


def unseal(data: bytes, kind: type[R], where: str) -> R:
    """The record that was sealed.

    Raises:
        CorruptFileError: the bytes are not what `seal` made, or are no `kind`; `where` is named.
    """
    try:
        content = json.loads(data)
        stated = content.pop(_SEAL)
        found = _digest(content)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:  # NaN is a ValueError
        raise CorruptFileError(f"{where} is no {kind.__name__.lower()} of sonoforge: it is no sealed JSON") from error
    if found != stated:
        raise CorruptFileError(
            f"{where} is damaged: its content differs from its own seal. Read it again; if it stays so, restore it "
            "from a copy"
        )
    try:
        return kind.model_validate(content)
    except ValueError as error:
        reason = "; ".join(str(error).splitlines()[1:3]).strip()
        raise CorruptFileError(
            f"{where} is no {kind.__name__.lower()} that this sonoforge reads (a newer one may): {reason}"
        ) from error


def read_sealed(store: Store, key: str, kind: type[R]) -> R:
    """The record under a key, read a second time where it arrives damaged.

    Raises:
        FileNotFoundError: there is nothing.
        CorruptFileError: it is damaged, or no `kind`.
    """
    try:
        return unseal(store.read_small(key), kind, store.uri(key))
    except CorruptFileError:
        return unseal(store.read_small(key), kind, store.uri(key))


def _digest(content: object) -> str:
    return hashlib.sha256(keys.canonical_json(content)).hexdigest()
