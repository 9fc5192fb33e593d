"""The pair route: image and mask are drawn together, in the three channels of one picture.

The adapter has learned pictures with the image in the first two channels and the mask in the third (Wang et al.,
"Diffusion Model-based Data Augmentation Method for Fetal Head Ultrasound Segmentation", 2025). What is drawn is taken
apart again: the image is the mean of the first two, the mask is where the third exceeds a threshold. A mask is cleaned
of holes, specks and appendages; a pair whose mask is still none like those of training scans is given up, and drawn
again from other noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from skimage.morphology import convex_hull_image

from tasks.imaging import Mask, dilate, ellipse
from tasks.synthesis.diffusion import latents, sample, window
from tasks.synthesis.draft import Donor, Draft, Tools, noise_seed
from tasks.synthesis.redraw import Sampling, batches
from tasks.synthesis.tissue import in_black

STAGE_NUMBER = 8
KIND = "drawn"
"""`mask_kind` of masks that were drawn with their image."""

_SPECK = 0.05  # of the largest part: a smaller one is dropped, a larger one is a second object
_SOLIDITY_SLACK = 0.02  # a drawn outline is rougher by this than an annotated ellipse


class Params(Sampling):
    """How pairs of image and mask are drawn, and which masks are taken."""

    stage: Literal["pair"] = "pair"
    threshold: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="Level of the third channel, 0 black to 1 white, above which a pixel belongs to the mask; Wang et "
        "al. take 180 of 255",
    )
    opening: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="What of a mask is narrower than this share of its widest place is cut off, such as fluid beside a "
        "head; 0: nothing is",
    )
    ellipse: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Heads are annotated as ellipses: a mask becomes its ellipse where both overlap by this much or "
        "more (intersection over union), else the pair is given up; null: masks stay as drawn",
    )
    attempts: int = Field(
        default=4, ge=1, le=64, description="Pairs drawn, each from other noise, until one has a mask that will do"
    )

    def described(self) -> str:
        """The sampler as a row's lineage names it.

        >>> Params(ellipse=0.88).described()
        'DPM-Solver++(2M), mask above 0.7, as an ellipse'
        """
        return f"{super().described()}, mask above {self.threshold:g}" + (
            "" if self.ellipse is None else ", as an ellipse"
        )


@dataclass(frozen=True)
class _Known:
    """The training masks of a label, and what they have in common: shares of the picture, least solidity."""

    donors: list[Donor]
    smallest: float = 0.0
    largest: float = 1.0
    solidity: float = 0.0

    @staticmethod
    def of(label: str, donors: Sequence[Donor]) -> "_Known":
        own = [donor for donor in donors if donor.label == label]
        if not own:
            return _Known([])
        shares = [float(donor.mask.mean()) for donor in own]
        return _Known(own, min(shares), max(shares), min(solidity(donor.mask) for donor in own))


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with an image and the mask drawn with it; they fail where no attempt gives one that will do."""
    known = {label: _Known.of(label, tools.donors) for label in {draft.label for draft in drafts}}
    made = [draft if known[draft.label].donors else _unknown(draft, tools) for draft in drafts]
    left = [place for place, draft in enumerate(made) if draft.failure is None]
    tools.advance(len(drafts) - len(left))
    for attempt in range(params.attempts):
        for adapter, some in batches([drafts[place].label for place in left], tools):
            places = [left[number] for number in some]
            drawn = _draw(params, [drafts[place] for place in places], attempt, adapter, tools)
            for place, picture in zip(places, drawn, strict=True):
                draft = drafts[place]
                made[place] = _finish(params, draft, picture, attempt, adapter, known[draft.label], tools)
        rejected = [place for place in left if made[place].failure is not None]
        tools.advance(len(left) - len(rejected))
        left = rejected
    tools.advance(len(left))
    return made


def mask_of(level: NDArray[np.uint8], threshold: float, opening: float) -> Mask:
    """The mask that a drawn third channel (H, W) shows: above the threshold, holes filled, opened, specks dropped.

    It is opened by a disc whose radius is a share of the largest that fits inside.

    Raises:
        ValueError: nothing is above the threshold, or it is several parts, none of them small.
    """
    filled = np.asarray(ndimage.binary_fill_holes(level > round(255 * threshold)))
    if not filled.any():
        raise ValueError(f"is blank at threshold {threshold:g}")
    # What lies beyond the array is not outside the mask: a mask at its edge is not eroded from there.
    depth = np.asarray(ndimage.distance_transform_edt(filled))
    radius = opening * float(depth.max())
    opened = filled & dilate(depth > radius, radius + 1)  # a pixel more, which rounding would take from the edge
    parts, count = cast("tuple[NDArray[np.int32], int]", ndimage.label(opened))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = np.sort(sizes[sizes > _SPECK * sizes.max()])[::-1]
    if len(large) > 1:
        raise ValueError(f"is {len(large)} parts of {', '.join(map(str, large))} px")
    return parts == 1 + int(sizes.argmax())


def solidity(mask: Mask) -> float:
    """Area of a non-blank mask over that of its convex hull, 0 to 1; of an ellipse 1, but for its pixels."""
    return float(mask.sum() / convex_hull_image(mask).sum())


def nearest(mask: Mask, donors: Sequence[Donor]) -> Donor:
    """The donor whose mask overlaps a mask most, by intersection over union; the first among equals."""
    return max(donors, key=lambda donor: (mask & donor.mask).sum() / (mask | donor.mask).sum())


def _unknown(draft: Draft, tools: Tools) -> Draft:
    found = ", ".join(sorted({donor.label for donor in tools.donors})) or "none"
    return draft.failed(f"no training mask of label {draft.label!r} to compare with; the training split has {found}")


def _draw(params: Params, drafts: list[Draft], attempt: int, adapter: bytes | None, tools: Tools) -> NDArray[np.uint8]:
    """Images and levels of their masks (B, px, px, 2) of one batch of drafts, at the size that the base draws."""
    return sample.pictures(
        tools.base,
        [latents.prompt(draft.organ, draft.label, draft.attributes) for draft in drafts],
        [noise_seed(draft, STAGE_NUMBER, attempt) for draft in drafts],
        steps=params.steps,
        guidance=params.guidance,
        guided=(params.guidance_from, params.guidance_until),
        spacing=params.spacing,
        adapter=adapter,
        precision=params.precision,
        decode=latents.decode_joint,
    )


def _finish(
    params: Params,
    draft: Draft,
    picture: NDArray[np.uint8],
    attempt: int,
    adapter: bytes | None,
    known: _Known,
    tools: Tools,
) -> Draft:
    view = window.Window(0, 0, draft.background.shape[0], tools.base.px)
    image, level = (window.paste(draft.background, np.ascontiguousarray(picture[..., k]), view) for k in (0, 1))
    try:
        mask = _checked(mask_of(level, params.threshold, params.opening), params, known)
    except ValueError as error:
        return draft.failed(f"no pair in {params.attempts} attempts; the mask of the last {error}")
    donor = nearest(mask, known.donors)
    lineage = {
        **draft.lineage,
        "mask_id": donor.id,
        "mask_kind": KIND,
        "base_digest": tools.base.digest,
        "adapter_digest": None if adapter is None else hashlib.sha256(adapter).hexdigest(),
        "prompt": latents.prompt(draft.organ, draft.label, draft.attributes),
        "sampler": params.described(),
        "steps": params.steps,
        "guidance": params.guidance,
        "seed": draft.seed,
        "candidates": attempt + 1,
    }
    return replace(draft, image=in_black(image), mask=mask, pixel_mm=donor.pixel_mm, lineage=lineage)


def _checked(mask: Mask, params: Params, known: _Known) -> Mask:
    """A mask, or its ellipse, that is like those of training scans; ValueError with the reason where it is not."""
    cut = ellipse.cut_sides(mask)
    edges = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    cut += [side for side, edge in edges.items() if edge.any() and side not in cut]
    if cut:
        raise ValueError(f"is cut at the {' and '.join(cut)}")
    if not known.smallest <= mask.mean() <= known.largest:
        raise ValueError(
            f"covers {mask.mean():.1%} of the picture; training masks cover {known.smallest:.1%} to {known.largest:.1%}"
        )
    convex, least = solidity(mask), known.solidity - _SOLIDITY_SLACK
    if convex < least:
        raise ValueError(f"has solidity {convex:.2f}; expected {least:.2f}, as of training masks, or more")
    if params.ellipse is None:
        return mask
    smooth = ellipse.of(mask).filled(mask.shape)
    overlap = float((mask & smooth).sum() / (mask | smooth).sum())
    if overlap < params.ellipse:
        raise ValueError(f"overlaps its ellipse by {overlap:.2f}; expected {params.ellipse:g} or more")
    return smooth
