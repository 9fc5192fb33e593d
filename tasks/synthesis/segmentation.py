"""Stage: a mask from nothing, for a picture that is drawn whole around it.

As in `layout`, a mask is derived from a real one of the class or drawn from a model of the class's outlines, and
placed where a lesion like it was seen; but into no picture: the frame of a training scan, the donor's own or any of the
class, what it images and how large its pixels are, is all that is taken from it. Fetal heads come from a model of
ellipses. The words that the prompt gets are measured on the mask that was made. Healthy samples get a blank mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from tasks.imaging.ellipse import circumference_mm
from tasks.synthesis import attributes, ellipse, masks
from tasks.synthesis.attributes import Attribute, Trimester
from tasks.synthesis.background import HEALTHY
from tasks.synthesis.draft import Donor, Draft, Tools, rng_of
from tasks.synthesis.masks import Frame, Known, Masks, Placed
from tasks.synthesis.shape import Margins

STAGE_NUMBER = 9

Shapes = Literal["donors", "model", "ellipse"]

_PER_DONOR = 2  # attempts with one donor: with more, shapes would shrink for want of room in its own frame
_ELLIPSES_TRIED = 50  # a mask tried by `attempts` is one that was placed; an ellipse costs nothing


class Params(Masks):
    """How masks are made without a picture to place them in."""

    stage: Literal["segmentation"] = "segmentation"
    shapes: Shapes | dict[str, Shapes] = Field(
        default="donors",
        description="Deform real masks of the class, draw from a model of its outlines, or draw ellipses as of fetal "
        "heads; for all, or by label",
    )
    trimester: dict[Trimester, float] | None = Field(
        default=None,
        description="Share of each trimester among heads, by circumference, kept by any prefix of the plan; null: as "
        "in the training masks. Needs ellipses and pixel sizes",
    )
    attributes: tuple[Attribute, ...] = Field(
        default=(), description="What prompts say of a mask beside organ and label, in training captions, too"
    )

    @model_validator(mode="after")
    def _trimesters_are_shares_of_ellipses(self) -> "Params":
        if self.trimester is None:
            return self
        if not (self.trimester and all(share > 0 for share in self.trimester.values())):
            raise ValueError("every share of trimester must be above 0; leave a name out to make none of it")
        made = self.shapes.values() if isinstance(self.shapes, dict) else [self.shapes]
        if "ellipse" not in made:
            raise ValueError(
                f"shares of trimester with shapes {self.shapes!r}; expected ellipse: trimesters are of heads"
            )
        return self

    def shapes_of(self, label: str) -> Shapes:
        """Where the masks of a label come from."""
        return self.shapes.get(label, "donors") if isinstance(self.shapes, dict) else self.shapes


@dataclass(frozen=True)
class _Known:
    """What the training masks say: by label, whole masks of outlines, all masks of ellipses; and of margins.

    Of a class of too few ellipses there is no model, but a reason.
    """

    outlines: Mapping[str, Known]
    heads: Mapping[str, tuple[Sequence[Donor], ellipse.Model | str]]
    margins: Margins


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with a mask, its pixel size, its words and its donor's group; or with the reason why none was made."""
    known = _known(params, tools.donors)
    made: list[Draft] = []
    for draft in drafts:
        made.append(_segmented(params, draft, known))
        tools.advance(1)
    return made


def _known(params: Params, donors: Sequence[Donor]) -> _Known:
    outlines = masks.known_classes(lambda label: "model" if params.shapes_of(label) == "model" else "donors", donors)
    heads: dict[str, tuple[Sequence[Donor], ellipse.Model | str]] = {}
    for label in sorted({donor.label for donor in donors if params.shapes_of(donor.label) == "ellipse"}):
        own = [donor for donor in donors if donor.label == label]
        try:
            heads[label] = own, ellipse.learn(own)
        except ValueError as error:
            heads[label] = own, f"class {label!r}: {error}"
    margins = next((known.margins for known in outlines.values()), Margins())
    return _Known(outlines, heads, margins)


def _segmented(params: Params, draft: Draft, known: _Known) -> Draft:
    rng = rng_of(draft, STAGE_NUMBER)
    if draft.label == HEALTHY:
        made = replace(draft, mask=np.zeros(draft.image.shape, np.bool_))
    elif params.shapes_of(draft.label) == "ellipse":
        made = _head(params, draft, known, rng)
    else:
        made = _lesion(params, draft, known, rng)
    words = attributes.words(params.attributes, made.mask, made.pixel_mm, known.margins)
    return replace(made, attributes=words, lineage={**made.lineage, "seed": draft.seed})


def _lesion(params: Params, draft: Draft, known: _Known, rng: np.random.Generator) -> Draft:
    own = known.outlines.get(draft.label)
    if own is None:
        found = ", ".join(sorted(known.outlines)) or "none at all"
        return draft.failed(f"no whole donor mask of class {draft.label!r}; the training groups hold masks of: {found}")
    asked = masks.wanted(params, draft.label, draft.point)
    if params.shapes_of(draft.label) == "model":
        scan = own.reals[int(rng.integers(len(own.reals)))].donor
        found = masks.place(params, "model", draft.label, _frame(scan), known.outlines, asked, rng)
        # What a model draws descends from all masks alike: its group stays the sample's own.
        return _with(draft, found, scan.pixel_mm, draft.group)
    few, donors = params.model_copy(update={"attempts": _PER_DONOR}), masks.fitting(own, asked)
    found = ""
    for _ in range(max(1, params.attempts // _PER_DONOR)):
        real = donors[int(rng.integers(len(donors)))]
        alone = {draft.label: replace(own, reals=[real])}
        found = masks.place(few, "donors", draft.label, _frame(real.donor), alone, asked, rng)
        if not isinstance(found, str):
            return _with(draft, found, real.donor.pixel_mm, real.donor.group)
    return draft.failed(f"no mask of class {draft.label!r}{asked} in {params.attempts} attempts; the last: {found}")


def _frame(scan: Donor) -> Frame:
    """What a scan images; all of it, where its picture is not there."""
    return Frame(np.full(scan.mask.shape, 255, np.uint8) if scan.image is None else scan.image, scan.pixel_mm)


def _with(draft: Draft, found: Placed | str, pixel_mm: float | None, group: str) -> Draft:
    if isinstance(found, str):
        return draft.failed(found)
    return replace(draft, mask=found.mask, pixel_mm=pixel_mm, group=group, lineage=found.lineage())


def _head(params: Params, draft: Draft, known: _Known, rng: np.random.Generator) -> Draft:
    donors, model = known.heads.get(draft.label, ((), f"no mask of class {draft.label!r} to learn ellipses from"))
    if isinstance(model, str):
        return draft.failed(model)
    wanted = None if params.trimester is None else attributes.by_share(params.trimester, draft.point)[0]
    if wanted is not None and not len(model.pixels_mm):
        return draft.failed("shares of trimester, but not every training mask has a pixel size: leave trimester out")
    head = ellipse.draw(model, rng, lambda head: wanted in (None, _trimester(head)), params.attempts * _ELLIPSES_TRIED)
    if head is None:
        asked = "" if wanted is None else f" of the {wanted} trimester"
        return draft.failed(
            f"no head{asked} among {params.attempts * _ELLIPSES_TRIED} ellipses like the {len(donors)} training masks"
        )
    lineage = {"mask_id": ellipse.nearest(head.mask, donors).id, "mask_kind": "ellipse"}
    return replace(draft, mask=head.mask, pixel_mm=head.pixel_mm, lineage=lineage)


def _trimester(head: ellipse.Head) -> Trimester:
    assert head.pixel_mm is not None
    return attributes.trimester(circumference_mm(head.mask, head.pixel_mm))
