"""Licences of what a dataset is made from, and the terms that follow for the dataset.

A picture made from somebody's scan, by somebody's model, is published on the strictest terms of both, whether or not
a court would call it an adaptation: nobody is harmed by terms that were kept without need.

This is no legal advice, and no reading of the licences themselves. It keeps in a table what each of them is widely
understood to ask for, refuses what plainly contradicts, and says what it does not know. Consent, ethics approval and
data protection are other questions, which no licence answers.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from storage.records import Record


class LicenceConflictError(ValueError):
    """Two sources may not go into one published dataset; the message names both, why, and what to do.

    `other` is empty where `one` alone forbids it.
    """

    def __init__(self, one: str, other: str, why: str) -> None:
        self.one, self.other = one, other
        named = (
            f"{one} and {other} cannot go into one dataset" if other else f"nothing made from {one} can be published"
        )
        advice = "leave one of the two out" if other else "leave it out"
        super().__init__(
            f"{named}: {why}. What to do: {advice}; or ask its owner for other terms, and state those where the source "
            "lets you (`source.licence` of your own scans; `license:` in the README.md of a base model's folder)"
        )


class Licensed(Record):
    """One thing that goes into a dataset, with its licence as its owner words it, and who is to be named."""

    name: str
    licence: str
    attribution: str = ""


class Terms(Record):
    """What a licence asks of those who pass on the work, or what they made from it."""

    attribution: bool = Field(default=False, description="Name the author and the licence.")
    share_alike: bool = Field(default=False, description="What is made from it goes on under the same licence.")
    non_commercial: bool = Field(default=False, description="No commercial use.")
    no_derivatives: bool = Field(default=False, description="Nothing made from it may be passed on.")
    no_redistribution: bool = Field(default=False, description="It may not be passed on at all.")
    use_restrictions: bool = Field(default=False, description="Named uses are forbidden, and must be forbidden on.")
    stated: bool = Field(default=True, description="The owner stated one licence that is known here.")


@dataclass(frozen=True)
class Licence:
    """One row of the table. `family` and `edition` order the licences that may follow one another.

    `spdx` is its identifier there; `hub` what the Hugging Face hub calls it; `url` its text.
    """

    name: str
    terms: Terms
    spdx: str | None = None
    hub: str = "other"
    url: str | None = None
    family: str = ""
    edition: float = 0.0


class Combined(Record):
    """The terms of what is made from all sources.

    `name` is what a row's `licence` column and the card say; where several licences hold at once it joins them with
    AND, as SPDX does. `names` are those licences, one by one.
    """

    name: str
    names: list[str]
    spdx: str | None
    hub: list[str]
    urls: list[str]
    terms: Terms
    attributions: list[str]
    warnings: list[str]
    sources: list[Licensed]


_BY = Terms(attribution=True)
_BY_SA = Terms(attribution=True, share_alike=True)
_BY_NC = Terms(attribution=True, non_commercial=True)
_BY_NC_SA = Terms(attribution=True, non_commercial=True, share_alike=True)
_BY_ND = Terms(attribution=True, no_derivatives=True)
_BY_NC_ND = Terms(attribution=True, non_commercial=True, no_derivatives=True)
_RAIL = Terms(attribution=True, use_restrictions=True)
_UNKNOWN = Terms(attribution=True, stated=False)  # whoever it is, naming them is the least
_CC = "https://creativecommons.org/licenses"

LICENCES: tuple[Licence, ...] = (
    Licence("CC0 1.0", Terms(), "CC0-1.0", "cc0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    Licence("CC BY 4.0", _BY, "CC-BY-4.0", "cc-by-4.0", f"{_CC}/by/4.0/", "CC BY", 4.0),
    Licence("CC BY 3.0", _BY, "CC-BY-3.0", "cc-by-3.0", f"{_CC}/by/3.0/", "CC BY", 3.0),
    Licence("CC BY-SA 4.0", _BY_SA, "CC-BY-SA-4.0", "cc-by-sa-4.0", f"{_CC}/by-sa/4.0/", "CC BY-SA", 4.0),
    Licence("CC BY-SA 3.0", _BY_SA, "CC-BY-SA-3.0", "cc-by-sa-3.0", f"{_CC}/by-sa/3.0/", "CC BY-SA", 3.0),
    Licence("CC BY-NC 4.0", _BY_NC, "CC-BY-NC-4.0", "cc-by-nc-4.0", f"{_CC}/by-nc/4.0/", "CC BY-NC", 4.0),
    Licence("CC BY-NC 3.0", _BY_NC, "CC-BY-NC-3.0", "cc-by-nc-3.0", f"{_CC}/by-nc/3.0/", "CC BY-NC", 3.0),
    Licence(
        "CC BY-NC-SA 4.0", _BY_NC_SA, "CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", f"{_CC}/by-nc-sa/4.0/", "CC BY-NC-SA", 4.0
    ),
    Licence(
        "CC BY-NC-SA 3.0", _BY_NC_SA, "CC-BY-NC-SA-3.0", "cc-by-nc-sa-3.0", f"{_CC}/by-nc-sa/3.0/", "CC BY-NC-SA", 3.0
    ),
    Licence("CC BY-ND 4.0", _BY_ND, "CC-BY-ND-4.0", "cc-by-nd-4.0", f"{_CC}/by-nd/4.0/", "CC BY-ND", 4.0),
    Licence("CC BY-ND 3.0", _BY_ND, "CC-BY-ND-3.0", "other", f"{_CC}/by-nd/3.0/", "CC BY-ND", 3.0),
    Licence(
        "CC BY-NC-ND 4.0", _BY_NC_ND, "CC-BY-NC-ND-4.0", "cc-by-nc-nd-4.0", f"{_CC}/by-nc-nd/4.0/", "CC BY-NC-ND", 4.0
    ),
    Licence(
        "CC BY-NC-ND 3.0", _BY_NC_ND, "CC-BY-NC-ND-3.0", "cc-by-nc-nd-3.0", f"{_CC}/by-nc-nd/3.0/", "CC BY-NC-ND", 3.0
    ),
    Licence("Apache-2.0", _BY, "Apache-2.0", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    Licence("MIT", _BY, "MIT", "mit", "https://opensource.org/license/mit"),
    Licence(
        "CreativeML OpenRAIL-M",
        _RAIL,
        None,
        "creativeml-openrail-m",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    ),
    Licence(
        "CreativeML OpenRAIL++-M",
        _RAIL,
        None,
        "openrail++",
        "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
    ),
    Licence("signed agreement", Terms(attribution=True, no_redistribution=True)),
    Licence("conflicting statements; citation requested", _UNKNOWN),
    Licence("as stated by the owner", _UNKNOWN),
    Licence("not stated", _UNKNOWN),
)
"""The licences met in this field. CC licences name no version in some places: the terms are those of every version."""

_SPELLINGS = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "cc0": "CC0 1.0",
    "cc zero": "CC0 1.0",
    "public domain": "CC0 1.0",
    "creativeml openrail m": "CreativeML OpenRAIL-M",
    "openrail": "CreativeML OpenRAIL-M",
    "openrail m": "CreativeML OpenRAIL-M",
    "openrail++": "CreativeML OpenRAIL++-M",
    "openrail++ m": "CreativeML OpenRAIL++-M",
    "unknown": "not stated",
    "none": "not stated",
    "": "not stated",
}
_WORDS = {
    "creative commons": "cc",
    "attribution": "by",
    "non commercial": "nc",
    "noncommercial": "nc",
    "share alike": "sa",
    "sharealike": "sa",
    "no derivatives": "nd",
    "noderivatives": "nd",
    "noderivs": "nd",
    "open rail": "openrail",
}
_FILLERS = re.compile(r"\b(the|license|licence|version|international|unported|universal|public domain dedication)\b")
_TELLING = {
    "no_redistribution": re.compile(r"\b(agreement|no redistribution|not be redistributed)\b"),
    "no_derivatives": re.compile(r"\bnd\b"),
    "non_commercial": re.compile(r"\b(nc|research|academic|education)\b"),
}
"""Words of a statement that is in no table, each taken as strictly as it can be meant."""

_CC_NAME = re.compile(r"cc by( nc)?( sa| nd)?( \d(\.\d)?)?")


def find(text: str) -> Licence:
    """The row of the table that a statement means; one of unknown terms, named as stated, where none does.

    >>> find("cc-by-nc-sa-4.0").name, find("Apache License 2.0").name, find("for research").terms.stated
    ('CC BY-NC-SA 4.0', 'Apache-2.0', False)
    """
    plain = _plain(text)
    for licence in LICENCES:
        if plain == _plain(licence.name) or (licence.url and _address(text) == _address(licence.url)):
            return licence
    if plain in _SPELLINGS:
        return find(_SPELLINGS[plain])
    detailed = next(
        (known for known in LICENCES if not known.terms.stated and plain.startswith(_plain(known.name))), None
    )
    if detailed is not None:  # "conflicting statements; citation requested (Al-Dhabyani et al. 2020)"
        return dataclasses.replace(detailed, name=text.strip())
    if _CC_NAME.fullmatch(plain):  # no version, or one that is not listed: every version asks for the same
        family = " ".join(part for part in plain.split() if not part[0].isdigit())
        known = next(licence for licence in LICENCES if _plain(licence.family) == family)
        return dataclasses.replace(known, name=text.strip(), spdx=None, hub="other", url=None, edition=0.0)
    telling = {name: bool(words.search(plain)) for name, words in _TELLING.items()}
    return Licence(text.strip(), _UNKNOWN.model_copy(update=telling))


def combine(sources: Sequence[Licensed]) -> Combined:
    """The terms of what is made from all `sources`: the strictest of each.

    Raises:
        LicenceConflictError: no terms could satisfy all of them.
        ValueError: there are no sources.
    """
    if not sources:
        raise ValueError("a dataset is made from something: give its sources to combine their licences")
    found = [(source, find(source.licence)) for source in sources]
    for source, licence in found:
        _refuse_alone(source, licence)
    for index, (one, first) in enumerate(found):
        for two, second in found[index + 1 :]:
            why = _clash(first, second) or _clash(second, first)
            if why:
                raise LicenceConflictError(_called(one), _called(two), why)
    kept = _that_matter([licence for _, licence in found])
    names = [_shown(licence) for licence in kept]
    return Combined(
        name=" AND ".join(names),
        names=names,
        spdx=_spdx(kept),
        hub=sorted({licence.hub for licence in kept}),
        urls=[licence.url for licence in kept if licence.url is not None],
        terms=_union([licence.terms for _, licence in found]),
        attributions=_attributions(found),
        warnings=[_warning(source) for source, licence in found if not licence.terms.stated],
        sources=list(sources),
    )


def _refuse_alone(source: Licensed, licence: Licence) -> None:
    if licence.terms.no_redistribution:
        raise LicenceConflictError(
            _called(source), "", "its owner gives it out under an agreement that forbids passing it on"
        )
    if licence.terms.no_derivatives:
        raise LicenceConflictError(
            _called(source), "", "its licence allows no derivatives, and pictures made from it are some"
        )


def _clash(alike: Licence, other: Licence) -> str:
    """Why what is made from `other` may not go on under `alike`, which asks for it; empty where it may."""
    if not alike.terms.share_alike:
        return ""
    if other.terms.share_alike and other.family != alike.family:
        return f"{alike.name} asks for itself on everything made from it, and so does {other.name}"
    for name, what in (("non_commercial", "no commercial use"), ("use_restrictions", "restrictions of use")):
        if getattr(other.terms, name) and not getattr(alike.terms, name):
            return (
                f"{alike.name} asks for itself and no further terms on everything made from it, {other.name} for {what}"
            )
    return ""


def _that_matter(licences: Sequence[Licence]) -> list[Licence]:
    """The fewest licences whose terms hold all terms, in the order given; the latest edition of a family."""
    kept: list[Licence] = []
    for licence in licences:
        if any(_covers(other, licence) for other in kept):
            continue
        kept = [other for other in kept if not _covers(licence, other)]
        kept.append(licence)
    return kept


def _covers(one: Licence, other: Licence) -> bool:
    """Does keeping `one` keep `other`? Restrictions of use and unknown terms never stand for anything else."""
    if one.name == other.name:
        return True
    if not (one.terms.stated and other.terms.stated) or one.terms.use_restrictions or other.terms.use_restrictions:
        return False
    if one.family and one.family == other.family and one.edition < other.edition:
        return False
    asked = [name for name, value in other.terms if value and name != "stated"]
    return all(getattr(one.terms, name) for name in asked)


def _union(terms: Sequence[Terms]) -> Terms:
    asked = {name: any(getattr(one, name) for one in terms) for name in Terms.model_fields if name != "stated"}
    return Terms(**asked, stated=all(one.stated for one in terms))


def _spdx(licences: Sequence[Licence]) -> str | None:
    """SPDX expression of licences that all hold; None where the terms of one are unknown."""
    if not all(licence.terms.stated for licence in licences):
        return None
    return " AND ".join(
        licence.spdx or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", licence.name) for licence in licences
    )


def _shown(licence: Licence) -> str:
    return licence.name if licence.terms.stated else f"other: {licence.name}"


def _called(source: Licensed) -> str:
    return f"{source.name} ({source.licence})"


def _attributions(found: Sequence[tuple[Licensed, Licence]]) -> list[str]:
    lines = [
        f"{source.name}: {find(source.licence).name}" + (f". {source.attribution}" if source.attribution else "")
        for source, licence in found
        if licence.terms.attribution or source.attribution
    ]
    return list(dict.fromkeys(lines))


def _warning(source: Licensed) -> str:
    return (
        f"{source.name} comes on terms that are not known here ({source.licence!r}): ask its owner before you pass on "
        "this dataset, or anything made from it"
    )


def _plain(text: str) -> str:
    """Lower case, words apart by single spaces, without what people add or leave out."""
    plain = re.sub(r"[\s_,\-/()]+", " ", text.lower()).strip()
    for words, short in _WORDS.items():
        plain = plain.replace(words, short)
    plain = re.sub(r"\s+", " ", _FILLERS.sub(" ", plain)).strip()
    return re.sub(r"\bv(?=\d)", "", plain)


def _address(url: str) -> str:
    return re.sub(r"^https?://(www\.)?", "", url.strip().lower()).removesuffix("/deed.en").rstrip("/")
