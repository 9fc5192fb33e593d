"""What a check of a set-up found, and what to do about it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator

from storage.explaining import scrubbed
from storage.records import Record

Level = Literal["ok", "information", "warning", "failure"]
LEVELS: tuple[Level, ...] = ("ok", "information", "warning", "failure")
"""From good to bad; a failure stops a build or loses work, a warning may."""

SKEW = timedelta(minutes=1)
"""Between two clocks before it is told; S3 refuses requests that are 15 minutes off."""

Said = Annotated[str, AfterValidator(scrubbed)]
"""A text without keys, tokens and passwords of URLs."""


class Finding(Record):
    """One check: what it looked at, how bad it is, what was found, and what to do where that is bad."""

    check: str
    level: Level
    found: Said
    advice: Said = ""


def clock(check: str, theirs: datetime, ours: datetime | None = None) -> Finding:
    """How far a server's clock is off this machine's."""
    off = theirs - (ours or datetime.now(UTC))
    if abs(off) <= SKEW:
        return Finding(check=check, level="ok", found=f"within {SKEW.seconds} s of this machine's")
    direction = "ahead of" if off > timedelta() else "behind"
    return Finding(
        check=check,
        level="warning",
        found=f"{lasting(abs(off))} {direction} this machine's: schedules, signs of life and signatures go by clocks",
        advice="synchronize both machines: timedatectl set-ntp true",
    )


def lasting(time: timedelta) -> str:
    """A length of time for people.

    >>> lasting(timedelta(seconds=90)), lasting(timedelta(hours=50))
    ('90 s', '2 days')
    """
    seconds = time.total_seconds()
    for unit, size, least in (("days", 86400, 2 * 86400), ("h", 3600, 7200), ("min", 60, 300)):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
