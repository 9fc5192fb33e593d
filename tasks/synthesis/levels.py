"""Stage: the grey levels of a drawn lesion follow those of a real one of its class in surroundings as bright.

A small model draws shape and texture better than tone: its lesions come out too faint, too even or too grainy against
the tissue around them. As in the histogram control of LeFusion (Zhang et al., ICLR 2025), a real lesion of the training
groups lends its histogram, never its pixels: the coarse grey levels inside the mask are mapped by rank to the
quantiles that the real lesion has relative to its surroundings, and the fine texture is scaled to the real one's
strength. Which pixel is brighter than which stays as drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from storage.records import Record
from tasks.imaging import Grey, Mask, dilate
from tasks.synthesis.draft import Draft, Tools, rng_of
from tasks.synthesis.redraw import changed_outside, depth_in

STAGE_NUMBER = 5

_QUANTILES = np.linspace(0, 1, 33)
_GAINS = 0.4, 2.0  # fine texture is never damped or amplified beyond this: it would show
_LEAST_CORE = 20  # pixels; a lesion without that many away from its edge is measured whole


class Params(Record):
    """How grey levels are matched. Lengths are shares of the image's side."""

    stage: Literal["levels"] = "levels"
    neighbours: int = Field(
        default=12, ge=1, le=1000, description="Real lesions in the most similar surroundings, of which one is drawn."
    )
    coarse: float = Field(default=0.016, gt=0, le=0.1, description="What is finer than this is texture, not level.")
    near: float = Field(default=0.024, ge=0, le=0.2, description="Surroundings begin this far from the lesion...")
    far: float = Field(default=0.08, gt=0, le=0.5, description="... and end this far from it.")
    feather: float = Field(default=0.024, gt=0, le=0.2, description="Width of the soft edge of what is changed.")


@dataclass(frozen=True)
class Look:
    """Grey levels of a lesion: `surroundings` their mean around it; `quantiles` (33,) of its coarse levels, relative
    to that; `grain` the standard deviation of its fine texture away from the edge."""

    id: str
    surroundings: float
    quantiles: NDArray[np.float64]
    grain: float


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts whose lesions have the levels of real ones; those without a lesion, or without a model for it, fail."""
    looks = {
        label: [
            look_of(donor.id, donor.image, donor.mask, params)
            for donor in tools.donors
            if donor.label == label and donor.image is not None
        ]
        for label in sorted({draft.label for draft in drafts})
    }
    made: list[Draft] = []
    for draft in drafts:
        made.append(_matched(params, draft, looks[draft.label]))
        tools.advance(1)
    return made


def look_of(name: str, image: Grey, mask: Mask, params: Params) -> Look:
    """The look of the lesion that `mask` covers."""
    level, texture, around = _parts(image, mask, params)
    quantiles = np.quantile(level[mask], _QUANTILES) - around
    return Look(name, around, quantiles, float(texture[_core(mask)].std()))


def matched(image: Grey, mask: Mask, look: Look, params: Params) -> Grey:
    """`image` with the lesion's levels by rank those of `look`, fading to what it was around the mask."""
    level, texture, around = _parts(image, mask, params)
    found = np.quantile(level[mask], _QUANTILES) + 1e-6 * np.arange(len(_QUANTILES))  # strictly rising, to invert it
    wanted = np.clip(look.quantiles + around, 0, 255)
    mapped = np.interp(level, found, wanted)
    mapped += np.maximum(level - found[-1], 0) + np.minimum(level - found[0], 0)  # the edge, beyond what the mask holds
    gain = float(np.clip(look.grain / max(float(texture[_core(mask)].std()), 1.0), *_GAINS))
    new = mapped + gain * texture
    feather_px = params.feather * image.shape[0]
    share = np.clip(depth_in(dilate(mask, 1)) / max(feather_px, 1.0), 0, 1)
    return np.clip(np.rint(image + share * (new - image)), 0, 255).astype(np.uint8)


def _matched(params: Params, draft: Draft, looks: Sequence[Look]) -> Draft:
    if draft.mask is None or draft.region is None:
        return draft.failed("the levels stage found no lesion; expected layout and lesion before it in the recipe")
    if not looks:
        return draft.failed(f"no real lesion of class {draft.label!r} with surroundings to take grey levels from")
    around = _parts(draft.image, draft.mask, params)[2]
    nearest = sorted(looks, key=lambda look: abs(look.surroundings - around))[: params.neighbours]
    look = nearest[int(rng_of(draft, STAGE_NUMBER).integers(len(nearest)))]
    new = matched(draft.image, draft.mask, look, params)
    image: Grey = np.where(draft.region, new, draft.image)
    outside = changed_outside(image, draft.background, draft.region)
    return replace(draft, image=image, lineage={**draft.lineage, "levels_id": look.id, "outside_changed_px": outside})


def _parts(image: Grey, mask: Mask, params: Params) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Coarse levels, fine texture (H, W) and the mean level of the surroundings; of the image where there are none."""
    side = image.shape[0]
    grey = image.astype(np.float64)
    level = ndimage.gaussian_filter(grey, params.coarse * side)
    ring = dilate(mask, max(2, round(params.far * side))) & ~dilate(mask, max(1, round(params.near * side)))
    return level, grey - level, float(grey[ring].mean() if ring.any() else grey.mean())


def _core(mask: Mask) -> Mask:
    """The mask without two pixels of its edge, whose step would count as texture."""
    core: Mask = np.asarray(ndimage.binary_erosion(mask, iterations=2), np.bool_)
    return core if core.sum() >= _LEAST_CORE else mask
