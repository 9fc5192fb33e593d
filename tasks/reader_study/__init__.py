"""A reader study: can people tell the synthetic pictures from real ones? What is blinded, shown, answered and agreed.

Glossary:

- **Reader**: somebody who looks at every picture and says how sure they are that it is real or synthetic.
- **Page**: one HTML file with the pictures, which holds nothing of what they are.
- **Key**: the file beside it that says what they are; the study's name is its digest.
- **Showing**: pictures that are shown twice measure how far a reader agrees with themselves; the first showing counts.
"""

import hashlib
import json
from typing import Literal

from pydantic import Field

from storage.records import Record

SCALE = ("surely real", "probably real", "unsure", "probably synthetic", "surely synthetic")
"""What the answers 1 to 5 mean."""

UNSURE = SCALE.index("unsure") + 1

Truth = Literal["real", "synthetic"]


class Shown(Record):
    """One picture: its `id` on the page and what it is. `name` is the row's id, or the scan's or file's name."""

    id: str
    truth: Truth
    name: str
    label: str | None
    group: str


class Key(Record):
    """What the pictures of a page are. `again` are those that are shown twice; `salt` is random, so that nobody can
    find the truth by trying digests."""

    format: Literal["sonoforge-reader-key-1"] = "sonoforge-reader-key-1"
    dataset: str
    digest: str
    real: str
    seed: int
    px: int
    salt: str
    pictures: list[Shown]
    again: list[str]

    def study(self) -> str:
        """Name of the study: a digest of all of this, which the page carries and the answers repeat."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Answer(Record):
    """What a reader said of one showing: 1 to 5 as in `SCALE`, after `ms` milliseconds in view, and how often they
    changed their mind. `place` counts from 0."""

    id: str
    showing: int = Field(ge=1, le=2)
    place: int = Field(ge=0)
    answer: int = Field(ge=1, le=len(SCALE))
    ms: int = Field(ge=0)
    changes: int = Field(ge=0)


class Answers(Record):
    """The file that the page saves. `order` are the ids as they were shown, which is another one for every reader."""

    format: Literal["sonoforge-reader-answers-1"]
    study: str
    session: str
    reader: str
    experience: str
    began: str
    saved: str
    finished: bool
    order: list[str]
    answers: list[Answer]
    checksum: str
