"""What is in a folder and what is wrong with it, for people: counts, duplicates, conflicts, defects."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.screening.screen import KEPT, Screened

COLUMNS = ("file", "label", "group", "split", "verdict", "reasons")


@dataclass(frozen=True)
class Findings:
    """Summary of a screened source.

    `labels` and `kept`: files and kept files by label, "unknown" where a file has none. `duplicates`: files of each
    near-duplicate group of two or more; `conflicts`: those of them whose labels differ. `defects`: reasons by
    file, duplicates and conflicts left out. `reasons`: files by kind of reason, most frequent first.
    """

    dataset: str
    files: int
    labels: dict[str, int]
    kept: dict[str, int]
    splits: dict[str, int]
    groups: int
    duplicates: list[list[str]]
    conflicts: list[list[str]]
    defects: dict[str, list[str]]
    reasons: dict[str, int]


def inspect(screened: Sequence[Screened]) -> Findings:
    """Summary of screened scans."""
    clusters: dict[str, list[Screened]] = {}
    for row in screened:
        clusters.setdefault(row.cluster, []).append(row)
    copies = [rows for rows in clusters.values() if len(rows) > 1]
    conflicting = {row.cluster for row in screened if any(map(_is_conflict, row.reasons))}
    defects = {row.file: [reason for reason in row.reasons if not _is_copy(reason)] for row in screened}
    kinds = Counter(kind for row in screened for kind in {kind_of(reason) for reason in row.reasons})
    return Findings(
        dataset=screened[0].dataset if screened else "",
        files=len(screened),
        labels=_counted(row.label for row in screened),
        kept=_counted(row.label for row in screened if row.verdict == KEPT),
        splits=_counted(row.split or "none" for row in screened if row.verdict == KEPT),
        groups=len({row.group for row in screened}),
        duplicates=[[row.file for row in rows] for rows in copies],
        conflicts=[[row.file for row in rows] for rows in copies if rows[0].cluster in conflicting],
        defects={file: reasons for file, reasons in defects.items() if reasons},
        reasons=dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
    )


def to_csv(screened: Sequence[Screened]) -> str:
    """Csv text with one row a file: file, label, group, split, verdict, reasons joined by "; "."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in screened:
        writer.writerow((row.file, row.label, row.group, row.split or "", row.verdict, "; ".join(row.reasons)))
    return text.getvalue()


def kind_of(reason: str) -> str:
    """A reason without its particulars, so that equal kinds can be counted.

    >>> kind_of("near-duplicate of benign/benign (3).png"), kind_of("marks: 4 caliper crosses")
    ('near-duplicate', 'marks: caliper crosses')
    """
    for kind in _KINDS:
        if reason.startswith(kind):
            return kind
    if reason.startswith("marks: "):
        return next((f"marks: {word}" for word in _DRAWN if word.split()[0] in reason), "marks")
    if reason.startswith("mask ") and " px, its image " in reason:
        return "mask of another size"
    return reason if len(reason) < 40 else reason.split(":", 1)[0]


_KINDS = (
    "near-duplicate",
    "label conflict",
    "unreadable",
    "too large",
    "unknown label",
    "unknown organ",
    "mask without image",
    "image without mask",
    "mask vanishes",
    "mask colour",
    "blank mask",
    "no row",
    "listed in",
)
_DRAWN = ("caliper crosses", "text", "coloured overlay", "Doppler", "burned-in marks")


def _is_conflict(reason: str) -> bool:
    return reason.startswith("label conflict")


def _is_copy(reason: str) -> bool:
    return reason.startswith(("label conflict", "near-duplicate"))


def _counted(labels: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(label or "unknown" for label in labels).items()))
