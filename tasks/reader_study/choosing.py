"""Which pictures are shown, which of them twice, and in which rounds.

Everything but the pictures themselves must be equal on both sides, or it would tell them apart: as many of each label,
as many in each round, and no patient on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Candidate:
    """A picture that might be shown. `group` is its patient or exam, `sha256` that of its pixels."""

    name: str
    label: str | None
    group: str
    sha256: str


@dataclass(frozen=True)
class Wave:
    """As many real as synthetic pictures, no two of one group; a group's next picture is in the next wave."""

    real: list[Candidate]
    synthetic: list[Candidate]


def choose(
    real: Sequence[Candidate], synthetic: Sequence[Candidate], count: int, per_group: int, rng: Rng
) -> list[Wave]:
    """Up to `count` pictures of each side, at most `per_group` of one group, as many of each label on both.

    Labels count only where every picture has one. Of a group that has pictures on both sides the real ones are taken;
    equal pictures count once. Fewer than `count` are found where the sides do not have so many alike.
    """
    known = {one.sha256 for one in real}
    patients = {one.group for one in real}
    made = [one for one in synthetic if one.sha256 not in known and one.group not in patients]
    matched = all(one.label is not None for one in (*real, *made))
    labels = [{_label(one, matched) for one in side} for side in (real, made)]
    shared = labels[0] & labels[1]
    sides = [
        _ranked([one for one in _unlike(side) if _label(one, matched) in shared], per_group, matched, rng)
        for side in (real, made)
    ]
    waves: list[Wave] = []
    for rank in range(per_group):
        left = count - sum(len(wave.real) for wave in waves)
        cells = [side[rank] for side in sides]
        room = {label: min(len(cells[0][label]), len(cells[1][label])) for label in cells[0].keys() & cells[1].keys()}
        taken = _shared_out(room, left)
        chosen = [[one for label in sorted(taken) for one in cell[label][: taken[label]]] for cell in cells]
        if chosen[0]:
            waves.append(Wave(*chosen))
    return waves


def twice(wave: Wave, repeats: int, rng: Rng) -> list[Candidate]:
    """The pictures that are shown again: drawn from the first wave, half of each side, the odd one of either.

    Raises:
        ValueError: more than half of the wave.
    """
    most = (len(wave.real) + len(wave.synthetic)) // 2
    if repeats > most:
        raise ValueError(f"{repeats} pictures cannot be shown twice: at most half of the first {2 * most}, so {most}")
    real = (repeats + int(rng.integers(2))) // 2
    drawn = rng.permutation(len(wave.real))[:real], rng.permutation(len(wave.synthetic))[: repeats - real]
    return [wave.real[k] for k in drawn[0].tolist()] + [wave.synthetic[k] for k in drawn[1].tolist()]


def rounds(waves: Sequence[Sequence[str]], again: Sequence[str]) -> list[list[str]]:
    """Ids in rounds: the page shuffles each round for each reader and shows one after the other.

    `again` are shown in the first round and in the last, with half of the last wave or more between, so that they are
    not remembered. Ids must be in an order that knows nothing of the truth.
    """
    if not again:
        return [list(wave) for wave in waves]
    *earlier, last = waves
    if earlier:
        middle = len(last) // 2
        return [*(list(wave) for wave in earlier), list(last[:middle]), [*last[middle:], *again]]
    rest = [id for id in last if id not in set(again)]
    begin = (len(rest) - len(last) // 2) // 2
    end = begin + len(last) // 2
    return [[*again, *rest[:begin]], rest[begin:end], [*rest[end:], *again]]


def _unlike(side: Sequence[Candidate]) -> list[Candidate]:
    """Each picture once."""
    return list({one.sha256: one for one in reversed(side)}.values())[::-1]


def _label(one: Candidate, matched: bool) -> str:
    return one.label if matched and one.label is not None else ""


def _ranked(side: Sequence[Candidate], per_group: int, matched: bool, rng: Rng) -> list[dict[str, list[Candidate]]]:
    """By label one picture of every group in random order, then the next of every group, and so on.

    Of several labels a group gives the one that is rarest so far, and those that have no choice come first.
    """
    groups: dict[str, list[Candidate]] = {}
    for k in rng.permutation(len(side)).tolist():
        groups.setdefault(side[k].group, []).append(side[k])
    ranked: list[dict[str, list[Candidate]]] = []
    for _ in range(per_group):
        cells: dict[str, list[Candidate]] = {}
        for group in sorted(groups.values(), key=lambda left: len({_label(one, matched) for one in left})):
            if group:
                rarest = min(group, key=lambda one: len(cells.get(_label(one, matched), ())))
                group.remove(rarest)
                cells.setdefault(_label(rarest, matched), []).append(rarest)
        ranked.append({label: [cell[k] for k in rng.permutation(len(cell)).tolist()] for label, cell in cells.items()})
    return ranked


def _shared_out(room: dict[str, int], count: int) -> dict[str, int]:
    """`count` in parts as equal as there is room for.

    >>> _shared_out({"benign": 5, "malignant": 1, "normal": 4}, 8)
    {'benign': 4, 'malignant': 1, 'normal': 3}
    """
    taken = dict.fromkeys(sorted(room), 0)
    while sum(taken.values()) < count and (open_ := [label for label in taken if taken[label] < room[label]]):
        for label in open_[: count - sum(taken.values())]:
            taken[label] += 1
    return taken
