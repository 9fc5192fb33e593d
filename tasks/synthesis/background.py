"""Before stage 1, where a recipe asks for it: a synthetic background in place of the real healthy scan.

The scan is noised to `strength` and denoised again by the base with the adapter of healthy tissue (SDEdit: Meng
et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2022), all of it at
once. Whatever follows takes the synthetic picture as its background, which is kept in the row; the row also
names the scan that it started from and says how alike the two still are.
"""

from dataclasses import replace

import numpy as np
from pydantic import Field

from tasks.imaging import Grey
from tasks.synthesis.draft import Draft, Tools, noise_seed
from tasks.synthesis.redraw import Job, Sampling, redraw
from tasks.synthesis.tissue import in_black, outside_picture

STAGE_NUMBER = 4
HEALTHY = "normal"
"""The label of healthy scans, of the adapter trained on them and of its prompt."""
KIND = "synthetic"


class Params(Sampling):
    """How synthetic backgrounds are drawn."""

    guidance: float = Field(
        default=1.0, ge=1, le=30, description="Classifier-free guidance scale; 1 switches it off and halves the work"
    )
    strength: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="How much of the scan is redrawn: near 0 it is a copy, at 1 nothing is kept",
    )


def draw(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts on synthetic backgrounds, drawn from their real ones; with the scan's id, and how alike they are.

    Raises:
        ValueError: pictures that the model cannot draw whole, pixel for pixel.
    """
    for draft in drafts:
        if draft.background.shape != (tools.base.px, tools.base.px):
            raise ValueError(
                f"backgrounds are {draft.background.shape} px, the base draws {tools.base.px} × {tools.base.px}; "
                f"synthetic backgrounds are drawn whole: set screen.px to {tools.base.px}, or background to real"
            )
    jobs = [_job(draft) for draft in drafts]
    drawn = redraw(jobs, params, params.strength, tools, lambda _: None)
    return [_finish(params, draft, image) for draft, image in zip(drafts, drawn, strict=True)]


def similarity(one: Grey, other: Grey) -> float:
    """Pearson's correlation of the grey levels of two pictures of one shape, -1 to 1; 1 is a copy.

    Only what is imaged in either counts: black borders are alike in all pictures.

    >>> scan = np.arange(64, dtype=np.uint8).reshape(8, 8) + 100
    >>> round(similarity(scan, scan), 6), round(similarity(scan, 255 - scan), 6)
    (1.0, -1.0)
    """
    inside = ~(outside_picture(one) & outside_picture(other))
    if not inside.any():
        return 1.0 if np.array_equal(one, other) else 0.0
    a, b = one[inside].astype(np.float64), other[inside].astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale else float(np.array_equal(one, other))


def _job(draft: Draft) -> Job:
    everything = np.ones(draft.background.shape, np.bool_)
    return Job(draft.background, everything, everything, HEALTHY, draft.organ, noise_seed(draft, STAGE_NUMBER))


def _finish(params: Params, draft: Draft, drawn: Grey) -> Draft:
    image = in_black(drawn)
    lineage = {
        **draft.lineage,
        "background_strength": params.strength,
        "background_similarity": similarity(draft.background, image),
    }
    return replace(draft, background=image, image=image, background_kind=KIND, lineage=lineage)
