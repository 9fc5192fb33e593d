"""Leaks: what lies in more than one split of a dataset, so that a model is tested on what it was trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from storage.records import Record

Kind = Literal["file", "duplicate", "scene", "group", "background", "mask", "levels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ANCESTORS: tuple[Kind, ...] = ("background", "mask", "levels")
"""What a synthetic row descends from, each a scan: its background, the lesion whose outline it was given, the one whose
grey levels."""


@dataclass(frozen=True)
class Entry:
    """One picture or row of a dataset, and what would tie it to others.

    `name` is what people call it; `place` tells the file from others of that name. `split` is None where it has none:
    it then leaks nothing. `id` is what descendants call it; `ancestors` are ids by kind. `copies` and `scene` are
    numbers of the picture's sets in `duplicates.Likeness`, None where it was not looked at.
    """

    name: str
    split: str | None
    place: str | None = None
    group: str | None = None
    id: str | None = None
    ancestors: Mapping[Kind, str] = field(default_factory=dict)
    copies: int | None = None
    scene: int | None = None


class Span(Record):
    """One thing that lies in several splits: `members` are the names of its entries by split.

    `kind`: "file": the same file is listed; "duplicate": copies of one frame; "scene": neighbouring frames of one
    sweep; "group": a patient, exam or cluster; the others: a scan that rows descend from, itself and them.
    """

    kind: Kind
    name: str
    members: dict[str, list[str]]


def spans(entries: Sequence[Entry]) -> list[Span]:
    """Everything that lies in several splits, by kind and then in the order of the entries."""
    return [span for kind in KINDS for span in _spanning(kind, entries)]


def _spanning(kind: Kind, entries: Sequence[Entry]) -> Iterator[Span]:
    found: dict[str | int, list[Entry]] = {}
    for entry in entries:
        if entry.split is not None:
            for value in _ties(kind, entry):
                found.setdefault(value, []).append(entry)
    for value, tied in found.items():
        if kind == "scene" and len({entry.copies for entry in tied}) == 1:
            continue  # nothing but copies: said already
        if kind in ANCESTORS and not any(entry.ancestors.get(kind) == value for entry in tied):
            continue
        members: dict[str, list[str]] = {}
        for entry in tied:
            assert entry.split is not None
            members.setdefault(entry.split, []).append(entry.name)
        if len(members) > 1:
            name = value if isinstance(value, str) else tied[0].name
            yield Span(kind=kind, name=name, members=dict(sorted(members.items())))


def _ties(kind: Kind, entry: Entry) -> Iterable[str | int]:
    """What ties the entry to others in this way. A scan is tied to its descendants by its own id."""
    match kind:
        case "file":
            ties = {entry.place}
        case "duplicate":
            ties = {entry.copies}
        case "scene":
            ties = {entry.scene}
        case "group":
            ties = {entry.group}
        case _:
            ties = {entry.ancestors.get(kind), entry.id}
    return [tie for tie in ties if tie is not None]
