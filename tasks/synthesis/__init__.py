"""Healthy image in, lesion image with its exact mask out: three stages on a diffusion model, and one beside it.

1. `layout` places a new lesion mask where tissue allows it,
2. `lesion` fills it by inpainting with the LoRA adapter of its class,
3. `harmonize` smooths the seam and adds what lies behind the lesion: shadow or enhancement;
   `levels`, before or after it, gives a lesion the histogram of a real one.

A recipe lists its stages in order. To add one: a module with `Params` (a `stage` literal) and
`apply(params, drafts, tools)`, and a line in `StageParams` and in `apply` below.
"""

from typing import Annotated, assert_never

from pydantic import Field

from tasks.synthesis import harmonize, layout, lesion, levels
from tasks.synthesis.draft import Critic, Donor, Draft, Tools

__all__ = ["Critic", "Donor", "Draft", "StageParams", "Tools", "apply"]

StageParams = Annotated[layout.Params | lesion.Params | levels.Params | harmonize.Params, Field(discriminator="stage")]
"""The parameters of one stage; `stage` says which."""


def apply(params: StageParams, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Run one stage. Drafts keep their order; those that failed before come back unchanged."""
    ready = [draft for draft in drafts if draft.failure is None]
    tools.advance(len(drafts) - len(ready))
    match params:
        case layout.Params():
            made = layout.apply(params, ready, tools)
        case lesion.Params():
            made = lesion.apply(params, ready, tools)
        case levels.Params():
            made = levels.apply(params, ready, tools)
        case harmonize.Params():
            made = harmonize.apply(params, ready, tools)
        case _:
            assert_never(params)
    done = iter(made)
    return [next(done) if draft.failure is None else draft for draft in drafts]
