"""Stage 3: what a pasted lesion lacks: a soft seam, and what lies behind it.

This stage adds posterior shadow or enhancement to the log-compressed picture and redraws lesion, ring and
posterior zone at low strength. With an adapter trained on seam pairs the ring of the seam is what is asked
for and taken over; without one the whole lesion is. Around it only the change in shading is taken over, so
that real tissue keeps its own speckle instead of the autoencoder's. Outside the region the background stays
bit for bit.
"""

import hashlib
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from tasks.imaging import Grey, Mask, dilate
from tasks.synthesis import posterior, seams
from tasks.synthesis.diffusion import window
from tasks.synthesis.draft import Draft, Tools, noise_seed, rng_of
from tasks.synthesis.redraw import Job, Sampling, changed_outside, composite, reconstruct, redraw
from tasks.synthesis.tissue import outside_picture

STAGE_NUMBER = 3
_GREY_PER_DB = 255 / 60  # pictures show about 60 dB in 256 grey levels
_VISIBLE = 1  # grey level: what the region has to cover of the posterior zone
_ALIKE = 20  # grey levels


class Params(Sampling):
    """How lesions are blended in. Lengths are shares of the image's side unless they say otherwise."""

    stage: Literal["harmonize"] = "harmonize"
    guidance: float = Field(
        default=1.0, ge=1, le=30, description="Classifier-free guidance scale; at low strength none, 1, will do"
    )
    strength: float = Field(default=0.3, gt=0, le=1, description="How much is redrawn: 0 nothing, 1 everything")
    ring: float = Field(default=0.04, ge=0, le=0.3, description="Width of the ring around the lesion's hole")
    posterior: Literal["learned", "drawn"] = Field(
        default="drawn",
        description="What lies behind a lesion: learned, as behind a random training lesion of its class; or drawn, "
        "a shadow up to shadow_db behind malignant and an enhancement up to enhancement_db behind benign ones",
    )
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
    drawn = redraw(plans, params, params.strength, _own_adapter(tools), lambda _: tools.advance(1))
    before = reconstruct(plans, tools, params.precision)
    made = iter([_finish(params, *four, tools) for four in zip(ready, plans, before, drawn, strict=True)])
    tools.advance(len(drafts) - len(ready))
    missing = "the harmonize stage found no lesion; expected layout and lesion before it in the recipe"
    usable = {draft.id for draft in ready}
    return [next(made) if draft.id in usable else draft.failed(missing) for draft in drafts]


def _own_adapter(tools: Tools) -> Tools:
    """The same tools with the adapter of this stage, where there is one, for every label."""
    if tools.harmonizer is None:
        return tools
    return replace(tools, adapters=dict.fromkeys({*tools.adapters, *(d.label for d in tools.donors)}, tools.harmonizer))


def _zone(params: Params, draft: Draft, mask: Mask, imaged: Mask, tools: Tools) -> NDArray[np.float32]:
    """Change in grey levels that this draft's lesion causes behind itself, 0 where nothing was imaged."""
    rng = rng_of(draft, STAGE_NUMBER)
    if params.posterior == "drawn":
        peak_db = {"malignant": -params.shadow_db, "benign": params.enhancement_db}.get(draft.label, 0.0)
        zone = posterior.zone(mask, params.reach, _GREY_PER_DB * peak_db * float(rng.random()))
    else:
        seen = [donor.behind for donor in tools.donors if donor.label == draft.label and donor.behind is not None]
        found = posterior.behind(draft.image, mask, imaged)
        if not seen or found is None:
            return np.zeros(mask.shape, np.float32)
        # Bright tissue has less room for enhancement, dark tissue for shadow: scans alike in level are likelier.
        levels = np.array([behind.beside for behind in seen])
        weight = np.exp(-0.5 * ((levels - found.beside) / _ALIKE) ** 2) + 1e-6
        wanted = seen[int(rng.choice(len(seen), p=weight / weight.sum()))].change
        # Healthy tissue differs from place to place, too: what is added makes up the rest to what is wanted.
        zone = posterior.zone_reaching(mask, imaged, params.reach, wanted - found.change)
    return np.where(imaged, zone, 0)


def _plan(params: Params, draft: Draft, tools: Tools) -> Job:
    assert draft.mask is not None
    assert draft.region is not None
    side = draft.image.shape[0]
    imaged = ~outside_picture(draft.background)
    zone = _zone(params, draft, draft.mask, imaged, tools)
    ring = dilate(draft.region, round(params.ring * side))
    free = draft.region | ((ring | (np.abs(zone) > _VISIBLE)) & imaged)
    image: Grey = np.where(free, posterior.shaded(draft.image, zone), draft.image)
    if tools.harmonizer is None:
        hole = window.hole(draft.mask, tools.base.px)
    else:
        hole = seams.ring(draft.mask, seams.RING * side) & free
    return Job(image, free, hole, draft.label, draft.organ, noise_seed(draft, STAGE_NUMBER))


def _finish(params: Params, draft: Draft, plan: Job, before: Grey, drawn: Grey, tools: Tools) -> Draft:
    side = draft.image.shape[0]
    change = ndimage.gaussian_filter(drawn.astype(np.float32) - before, params.shading * side)
    shaded = np.clip(np.rint(plan.image + change), 0, 255).astype(np.uint8)
    around = composite(plan.image, shaded, plan.free, params.ring * side)
    feather_px = (params.feather if tools.harmonizer is None else seams.RING) * side
    image = composite(around, drawn, plan.hole & plan.free, feather_px)
    changed = changed_outside(image, draft.background, plan.free)
    assert changed == 0, f"{changed} px outside the region of {draft.id} differ from the background"
    adapter = None if tools.harmonizer is None else hashlib.sha256(tools.harmonizer).hexdigest()
    lineage = {**draft.lineage, "harmonizer_digest": adapter, "outside_changed_px": changed}
    return replace(draft, image=image, region=plan.free, lineage=lineage)
