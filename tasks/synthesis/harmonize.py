"""Stage 3: what a pasted lesion lacks: a soft seam, and what lies behind it.

Ultrasound darkens behind tissue that attenuates (posterior shadow, typical of malignant lesions) and
brightens behind fluid (posterior enhancement, typical of benign ones; Stavros et al., Radiology 1995). This
stage adds that to the log-compressed picture and redraws lesion, ring and posterior zone at low strength.
The lesion is taken over as drawn; around it only the change in shading is, so that real tissue keeps its own
speckle instead of the autoencoder's. Outside the region the background stays bit for bit.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from tasks.imaging import Grey, Mask, dilate
from tasks.synthesis.diffusion import window
from tasks.synthesis.draft import Draft, Tools, noise_seed, rng_of
from tasks.synthesis.layout import outside_picture
from tasks.synthesis.redraw import Job, Sampling, changed_outside, composite, reconstruct, redraw

STAGE_NUMBER = 3
_GREY_PER_DB = 255 / 60  # pictures show about 60 dB in 256 grey levels
_VISIBLE_DB = 0.25  # about one grey level: what the region has to cover of the posterior zone


class Params(Sampling):
    """How lesions are blended in. Lengths are shares of the image's side unless they say otherwise."""

    stage: Literal["harmonize"] = "harmonize"
    guidance: float = Field(
        default=1.0, ge=1, le=30, description="Classifier-free guidance scale; at low strength none, 1, will do"
    )
    strength: float = Field(default=0.3, gt=0, le=1, description="How much is redrawn: 0 nothing, 1 everything")
    ring: float = Field(default=0.04, ge=0, le=0.3, description="Width of the ring around the lesion's hole")
    shadow_db: float = Field(
        default=6.0,
        ge=0,
        le=40,
        description="Strongest darkening behind malignant lesions, dB; each draws its own",
    )
    enhancement_db: float = Field(
        default=3.0, ge=0, le=20, description="Strongest brightening behind benign lesions, dB; each draws its own"
    )
    feather: float = Field(default=0.02, ge=0, le=0.2, description="Width of the soft edge of the redrawn lesion")
    shading: float = Field(
        default=0.02, gt=0, le=0.2, description="Around the lesion, changes finer than this are not taken over"
    )
    reach: float = Field(
        default=1.5, gt=0, le=10, description="Depth over which shadow or enhancement fades, in lesion heights"
    )


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with the lesion blended in and the region grown to what changed; those without a lesion fail."""
    ready = [draft for draft in drafts if draft.mask is not None and draft.region is not None]
    plans = [_plan(params, draft, tools) for draft in ready]
    drawn = redraw(plans, params, params.strength, tools, lambda _: tools.advance(1))
    before = reconstruct(plans, tools)
    made = iter([_finish(params, *four) for four in zip(ready, plans, before, drawn, strict=True)])
    tools.advance(len(drafts) - len(ready))
    missing = "the harmonize stage found no lesion; expected layout and lesion before it in the recipe"
    usable = {draft.id for draft in ready}
    return [next(made) if draft.id in usable else draft.failed(missing) for draft in drafts]


def posterior_zone(mask: Mask, reach: float, peak_db: float) -> NDArray[np.float32]:
    """Change in dB, (H, W), that a lesion causes behind itself: below it, soft at the sides, fading."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    height, width = float(rows[-1] - rows[0] + 1), len(columns)
    lowest = mask.shape[0] - 1 - mask[::-1].argmax(axis=0)
    below = np.arange(mask.shape[0], dtype=np.float32)[:, None] - lowest.astype(np.float32)
    covered = mask.any(axis=0)
    across = ndimage.gaussian_filter1d(covered.astype(np.float32), max(1.0, width / 8))
    profile = np.where(covered, np.clip(2 * across - 1, 0, 1), 0)  # full in the middle, nothing at the sides
    fade = np.where(below > 0, np.exp(-below / (reach * height)), 0)
    zone = ndimage.gaussian_filter(peak_db * profile * fade, max(1.0, width / 20))
    return np.where(mask, 0, zone).astype(np.float32)


def _plan(params: Params, draft: Draft, tools: Tools) -> Job:
    assert draft.mask is not None
    assert draft.region is not None
    rng = rng_of(draft, STAGE_NUMBER)
    peak_db = {"malignant": -params.shadow_db, "benign": params.enhancement_db}.get(draft.label, 0.0)
    zone = posterior_zone(draft.mask, params.reach, peak_db * float(rng.random()))
    inside = ~outside_picture(draft.background)
    zone = np.where(inside, zone, 0)
    darkened = np.clip(np.rint(draft.image + _GREY_PER_DB * zone), 0, 255).astype(np.uint8)
    ring = dilate(draft.region, round(params.ring * draft.image.shape[0]))
    free = draft.region | ((ring | (np.abs(zone) > _VISIBLE_DB)) & inside)
    image: Grey = np.where(free, darkened, draft.image)
    hole = window.hole(draft.mask, tools.base.px)
    return Job(image, free, hole, draft.label, draft.organ, noise_seed(draft, STAGE_NUMBER))


def _finish(params: Params, draft: Draft, plan: Job, before: Grey, drawn: Grey) -> Draft:
    side = draft.image.shape[0]
    change = ndimage.gaussian_filter(drawn.astype(np.float32) - before, params.shading * side)
    shaded = np.clip(np.rint(plan.image + change), 0, 255).astype(np.uint8)
    around = composite(plan.image, shaded, plan.free, params.ring * side)
    image = composite(around, drawn, plan.hole & plan.free, params.feather * side)
    changed = changed_outside(image, draft.background, plan.free)
    assert changed == 0, f"{changed} px outside the region of {draft.id} differ from the background"
    return replace(draft, image=image, region=plan.free, lineage={**draft.lineage, "outside_changed_px": changed})
