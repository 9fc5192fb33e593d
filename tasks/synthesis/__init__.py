"""A synthetic sample with its exact mask: stages on a diffusion model, in the order that a recipe lists them.

Three routes are lists of stages:

- **staged**, a lesion in a healthy image: `layout` places a new mask where tissue allows it, `lesion` fills it by
  inpainting, `harmonize` smooths the seam and adds what lies behind the lesion; `levels`, before or after it, gives a
  lesion the histogram of a real one;
- **text**, a whole picture from its prompt: `segmentation` makes a mask, `picture` draws all around it, held to the
  mask by a ControlNet; `picture` alone draws what the prompt says;
- **pair**: `pair` draws image and mask together.

To add one: a module with `Params` (a `stage` literal) and `apply(params, drafts, tools)`, and a line in `StageParams`
and in `apply` below.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, assert_never

from pydantic import Field

from tasks.synthesis import harmonize, layout, lesion, levels, pair, picture, segmentation
from tasks.synthesis.attributes import Attribute
from tasks.synthesis.draft import Critic, Donor, Draft, Tools

__all__ = [
    "Critic",
    "Donor",
    "Draft",
    "Learned",
    "StageParams",
    "Tools",
    "apply",
    "attributes_of",
    "learned",
    "needs_background",
]

StageParams = Annotated[
    layout.Params
    | lesion.Params
    | levels.Params
    | harmonize.Params
    | segmentation.Params
    | picture.Params
    | pair.Params,
    Field(discriminator="stage"),
]
"""The parameters of one stage; `stage` says which."""

Learned = Literal["lesion", "picture", "pair"]
"""What an adapter has learned to draw: lesions of one class, whole pictures, or pictures with their masks."""

_STAGED = ("layout", "lesion", "levels", "harmonize")
_WHOLE = ("segmentation", "picture", "pair")


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
        case segmentation.Params():
            made = segmentation.apply(params, ready, tools)
        case picture.Params():
            made = picture.apply(params, ready, tools)
        case pair.Params():
            made = pair.apply(params, ready, tools)
        case _:
            assert_never(params)
    done = iter(made)
    return [next(done) if draft.failure is None else draft for draft in drafts]


def learned(stages: Sequence[StageParams]) -> Learned:
    """What an adapter must have learned to serve these stages.

    Raises:
        ValueError: stages of two routes, or in an order that draws nothing.
    """
    names = [params.stage for params in stages]
    staged, whole = [name for name in names if name in _STAGED], [name for name in names if name in _WHOLE]
    if staged and whole:
        raise ValueError(
            f"stages {names} put a lesion into a picture ({', '.join(staged)}) and draw pictures whole "
            f"({', '.join(whole)}); expected one of both"
        )
    if not whole:
        return "lesion"
    if whole not in (["picture"], ["segmentation", "picture"], ["pair"]):
        raise ValueError(f"stages {names}; expected picture, segmentation and then picture, or pair")
    return "pair" if whole == ["pair"] else "picture"


def needs_background(stages: Sequence[StageParams]) -> bool:
    """Whether samples start from a healthy image, rather than being drawn whole."""
    return learned(stages) == "lesion"


def attributes_of(stages: Sequence[StageParams]) -> tuple[Attribute, ...]:
    """What prompts say of a mask beside organ and label; training captions say the same."""
    return next((params.attributes for params in stages if params.stage == "segmentation"), ())
