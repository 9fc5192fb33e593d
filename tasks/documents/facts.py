"""What the documents of a version are made from: plain facts, gathered once and shared by all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storage.records import Outcome, Record
from tasks.documents.licences import Combined
from tasks.documents.tally import Tally


class PublishedFile(Record):
    """One file of a version, as it lies in its folder."""

    path: str
    sha256: str
    bytes: int
    rows: int | None = None


class Ingredient(Record):
    """Something that a version was made with or from.

    `name` is unique in the version: "scans", "base", "decoder", "adapter/malignant" (or "adapter": one for all
    labels), "controlnet", "harmonizer", "critic", "judge/classifier", "extractor". `sha256` is what the rows'
    `…_digest` columns hold. `uri` says where it lay: "store:builds/…" is a key of the store that the version was
    built in.
    """

    name: str
    sha256: str
    uri: str | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that the documents say, but for the files themselves.

    `recipe` is all that decides the content. `sources` are one line each: name, licence, citation. `limits` are what
    an image had to reach to be kept, as (lowest, highest); `gates` what the set had to, in words, by score.
    `packages` are versions of the software, the project's own among them.
    """

    dataset: str
    description: str
    recipe: Mapping[str, object]
    recipe_yaml: str
    recipe_digest: str
    outcome: Outcome
    tally: Tally
    terms: Combined
    sources: Sequence[str]
    formats: Sequence[str]
    score_names: Sequence[str] = ()
    limits: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    ingredients: Sequence[Ingredient] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
