"""Take a version back: it stays, to be looked at, and nobody is given its data any more.

A retraction is final. Somebody who learned of it has acted on it: stopped a training, deleted a copy, told others. A
version that came back would make that wrong without anyone being told, and readers who ask at different moments would
hold opposite truths for the same name. What was retracted by mistake is published again with a line in its card that
says so: another content, hence another version.
"""

import uuid
from datetime import UTC, datetime

from storage import keys
from storage.errors import CorruptFileError, RetractedError
from storage.records import Manifest, Tombstone
from storage.sealed import read_sealed, seal
from storage.store import Store


def retract(store: Store, manifest: Manifest, reason: str) -> Tombstone:
    """Retract a version for a reason that whoever asks for it is told.

    Returns:
        The tombstone that stands: this one or, where the version was retracted before, the first.
    """
    if not reason.strip():
        raise ValueError(f"{manifest.dataset}@{manifest.version} is not retracted without a reason: say why")
    store.probe()
    tombstone = Tombstone(
        dataset=manifest.dataset,
        version=manifest.version,
        reason=reason.strip(),
        retracted=datetime.now(UTC).isoformat(timespec="seconds"),
        id=uuid.uuid4().hex,
    )
    if store.create(keys.tombstone_key(manifest.dataset, manifest.version), seal(tombstone)):
        return tombstone
    return find(store, manifest.dataset, manifest.version) or tombstone


def find(store: Store, dataset: str, version: int) -> Tombstone | None:
    """The tombstone of a version, None where it is live."""
    key = keys.tombstone_key(dataset, version)
    try:
        tombstone = read_sealed(store, key, Tombstone)
    except FileNotFoundError:
        return None
    if (tombstone.dataset, tombstone.version) != (dataset, version):
        raise CorruptFileError(f"{store.uri(key)} is the tombstone of {tombstone.dataset}@{tombstone.version}")
    return tombstone


def refuse(store: Store, manifest: Manifest) -> None:
    """Raise RetractedError, with the reason, where the version was retracted; every way to its data calls this."""
    tombstone = find(store, manifest.dataset, manifest.version)
    if tombstone is not None:
        raise RetractedError(f"{describe(tombstone)}. Use another version: `sonoforge list` shows them")


def describe(tombstone: Tombstone) -> str:
    """One line that says what was retracted, when and why.

    >>> describe(Tombstone(dataset="demo", version=3, reason="leak", retracted="2026-01-02T03:04:05+00:00", id="x"))
    'demo@3 was retracted on 2026-01-02: leak'
    """
    name = f"{tombstone.dataset}@{tombstone.version}"
    return f"{name} was retracted on {tombstone.retracted[:10]}: {tombstone.reason}"
