"""Stage 1: a new lesion mask, placed where tissue allows it. See `masks` for how it is made."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from tasks.synthesis import masks
from tasks.synthesis.draft import Draft, Tools, rng_of
from tasks.synthesis.masks import Frame, Known, Masks, Shapes

STAGE_NUMBER = 1


class Params(Masks):
    """How lesion masks are made and where they may lie."""

    stage: Literal["layout"] = "layout"
    shapes: Shapes | dict[str, Shapes] = Field(
        default="donors",
        description="Deform real masks of the class, or draw from a model learned from them; for all, or by label",
    )

    def shapes_of(self, label: str) -> Shapes:
        """Where the masks of a label come from."""
        return self.shapes.get(label, "donors") if isinstance(self.shapes, dict) else self.shapes


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with a mask, or with the reason why none could be placed."""
    classes = masks.known_classes(params.shapes_of, tools.donors)
    made: list[Draft] = []
    for draft in drafts:
        made.append(_placed(params, draft, classes))
        tools.advance(1)
    return made


def _placed(params: Params, draft: Draft, classes: dict[str, Known]) -> Draft:
    frame, rng = Frame(draft.background, draft.pixel_mm), rng_of(draft, STAGE_NUMBER)
    asked = masks.wanted(params, draft.label, draft.point)
    found = masks.place(params, params.shapes_of(draft.label), draft.label, frame, classes, asked, rng)
    if isinstance(found, str):
        return draft.failed(found)
    lineage = {
        **draft.lineage,
        "background_id": draft.background_id,
        "background_kind": draft.background_kind,
        **found.lineage(),
        "seed": draft.seed,
        "outside_changed_px": 0,
    }
    return replace(draft, mask=found.mask, region=found.mask, lineage=lineage)
