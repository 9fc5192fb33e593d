"""Splits by group: stratified, the same for the same seed, and hardly moved by new groups."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from storage.records import SPLITS, Split


def split_by_group(
    groups: Sequence[str],
    labels: Sequence[str],
    fractions: Mapping[Split, float],
    seed: int,
    fixed: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """The split of every group, near `fractions` of the images of each label.

    Within a stratum (the label most of a group's images carry) groups stand in the order of a seeded hash of their
    name and the fractions cut that order, so a group added or taken away moves only those at the cuts. A stratum
    of three groups or more reaches every split whose fraction is above zero.

    Args:
        groups: name of the group of each image.
        labels: label of each image.
        fractions: share of each split; they sum to 1.
        seed: another seed, another order.
        fixed: splits already decided, such as the source's own; their groups keep them.

    Raises:
        ValueError: the fractions do not sum to 1, or one is negative.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise ValueError(f"split fractions are {dict(fractions)}; they must be 0 or more and sum to 1")
    decided: Mapping[str, Split] = fixed or {}
    known = set(groups)
    splits: dict[str, Split] = {group: split for group, split in decided.items() if group in known}
    for sizes in _strata(groups, labels).values():
        ordered = sorted((group for group in sizes if group not in decided), key=lambda group: _rank(group, seed))
        if ordered:
            splits |= _cut(ordered, {group: sizes[group] for group in ordered}, fractions)
    return splits


def folds_by_group(groups: Sequence[str], labels: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Fold, 0 to `folds` - 1, of every group: each is held out exactly once, and every fold has its share of each
    label.

    Within a label (the one most of a group's images carry) groups are dealt in the order of a seeded hash, each to
    the fold that holds the fewest images of that label.

    Raises:
        ValueError: fewer groups than folds.
    """
    members = _strata(groups, labels)
    count = sum(len(stratum) for stratum in members.values())
    if count < folds:
        raise ValueError(f"{count} groups cannot be held out in {folds} folds; use fewer folds, or more scans")
    overall, found = [0] * folds, dict[str, int]()
    for stratum in members.values():
        held = [0] * folds
        for group in sorted(stratum, key=lambda group: _rank(group, seed)):
            fold = min(range(folds), key=lambda k: (held[k], overall[k], k))
            found[group] = fold
            held[fold] += stratum[group]
            overall[fold] += stratum[group]
    return found


def _strata(groups: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each label the groups of which most images carry it, with their numbers of images."""
    found: dict[str, Counter[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        found.setdefault(group, Counter())[label] += 1
    strata: dict[str, dict[str, int]] = {}
    for group, counts in found.items():
        stratum = max(counts, key=lambda label: (counts[label], label))
        strata.setdefault(stratum, {})[group] = counts.total()
    return {stratum: strata[stratum] for stratum in sorted(strata)}


def _rank(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{group}".encode()).hexdigest()


def _cut(ordered: Sequence[str], sizes: Mapping[str, int], fractions: Mapping[Split, float]) -> dict[str, Split]:
    """Cut an order of groups where the cumulated images pass the fractions, held-out splits first."""
    wanted: list[Split] = [split for split in reversed(SPLITS) if fractions.get(split, 0) > 0]
    total, before, splits = sum(sizes.values()), 0, dict[str, Split]()
    for place, group in enumerate(ordered):
        middle = (before + sizes[group] / 2) / total
        before += sizes[group]
        passed = 0.0
        chosen = wanted[-1]
        for split in wanted:
            passed += fractions[split]
            if middle < passed:
                chosen = split
                break
        few = len(ordered) < len(SPLITS)
        splits[group] = chosen if few else _reaching_all(place, len(ordered), chosen, [*splits.values()], wanted)
    return splits


def _reaching_all(place: int, count: int, chosen: Split, given: Sequence[Split], wanted: Sequence[Split]) -> Split:
    """`chosen`, unless an earlier split would stay empty or too few groups would be left for the later ones."""
    empty: Split | None = next((split for split in wanted if split not in given), None)
    if empty is not None and wanted.index(chosen) > wanted.index(empty):
        return empty
    later = len(wanted) - 1 - wanted.index(chosen)
    if chosen in given and count - place <= later:
        return wanted[wanted.index(chosen) + 1]
    return chosen
