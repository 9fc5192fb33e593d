"""What a planted failure reports: how many were found, at how many false alarms."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One kind of failure against one gate.

    Attributes:
        what: what was planted, and how severe.
        gate: the score and limit that is asked to catch it.
        planted, found: failures, and those that the gate refused.
        clean, false_alarms: untouched real images or sets, of groups that no judge saw, and those refused all the same.
        note: what else a reader must know.
    """

    what: str
    gate: str
    planted: int
    found: int
    clean: int
    false_alarms: int
    note: str = ""
