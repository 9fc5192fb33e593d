"""Bring a server to what is wanted without undoing what people changed on it.

A bootstrap that runs again meets three accounts of each thing: what sonoforge wants now, what it wanted and left there
last time, and what is there now. A field that nobody touched since follows sonoforge; one that somebody changed stays,
and what somebody deleted stays away, until a reset is asked for. Either is said.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.keys import canonical_json
from storage.records import Record

State = Literal["created", "updated", "kept", "left out", "off"]

Memory = dict[str, dict[str, str]]
"""What was left behind last time: thing -> field -> digests of what was wanted and of what the server made of it."""

_DIGITS = 6  # a server's variable has room for 5,000 characters


class Line(Record):
    """What became of one thing."""

    kind: str
    name: str
    state: State
    note: str = ""


@dataclass(frozen=True)
class Thing:
    """Something on a server, known by its fields as plain data.

    `read` gives None where there is none, else at least the fields of `wanted`; `update` gets those that are to change.
    Fields in `ours` follow sonoforge whatever people made of them.
    """

    kind: str
    name: str
    wanted: Mapping[str, Any]
    read: Callable[[], Mapping[str, Any] | None]
    create: Callable[[], object]
    update: Callable[[Mapping[str, Any]], object]
    ours: frozenset[str] = field(default=frozenset())

    @property
    def key(self) -> str:
        """Its name in the memory."""
        return key_of(self.kind, self.name)


def key_of(kind: str, name: str) -> str:
    """The name of a thing in the memory."""
    return f"{kind}/{name}"


def settle(thing: Thing, memory: Memory, *, reset: bool) -> Line:
    """Create or update a thing where that undoes nothing that people did, or with `reset` all the same."""
    found = thing.read()
    if found is None:
        if thing.key in memory and not reset:
            return left_out(thing.kind, thing.name)
        thing.create()
        memory[thing.key] = _remembered(thing, thing.read() or {})
        return Line(kind=thing.kind, name=thing.name, state="created")
    known, changes, by_hand = memory.get(thing.key, {}), dict[str, Any](), list[str]()
    for name, wanted in thing.wanted.items():
        was = known.get(name)
        touched = wanted != found[name] if was is None else _digest(found[name]) != was[-_DIGITS:]
        asked = was is not None and _digest(wanted) != was[:_DIGITS]
        if touched and wanted != found[name] and not (reset or name in thing.ours):
            by_hand.append(name)
        elif (touched or asked) and wanted != found[name]:
            changes[name] = wanted
    if changes:
        thing.update(changes)
        found = thing.read() or {}
    kept = {name: known[name] for name in by_hand if name in known}
    memory[thing.key] = {name: both for name, both in _remembered(thing, found).items() if name not in by_hand} | kept
    said = [f"changed: {', '.join(changes)}"] if changes else []
    said += [f"changed by hand, stays so: {', '.join(by_hand)}"] if by_hand else []
    return Line(kind=thing.kind, name=thing.name, state="updated" if changes else "kept", note="; ".join(said))


def left_out(kind: str, name: str) -> Line:
    """What is said of a thing that was there after the last time and is not any more."""
    return Line(
        kind=kind, name=name, state="left out", note="deleted by hand since the last time; --reset makes it again"
    )


def _remembered(thing: Thing, found: Mapping[str, Any]) -> dict[str, str]:
    return {name: _digest(wanted) + _digest(found.get(name)) for name, wanted in thing.wanted.items()}


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json([value])).hexdigest()[:_DIGITS]
