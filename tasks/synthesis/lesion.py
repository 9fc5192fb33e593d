"""Stage 2: fill the lesion mask by inpainting with the LoRA adapter of its class.

Several candidates are drawn from different noise and a critic keeps the best. The hole that the model fills
is the mask grown by a margin, so that the lesion's border is drawn as well; only the hole is taken over.
"""

import hashlib
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from tasks.imaging import Grey, Mask
from tasks.synthesis.diffusion import latents, sample, window
from tasks.synthesis.draft import Draft, Tools, noise_seed
from tasks.synthesis.redraw import Early, Job, Sampling, candidates, changed_outside, composite

STAGE_NUMBER = 2


class Params(Sampling):
    """How lesions are drawn."""

    stage: Literal["lesion"] = "lesion"
    strength: float = Field(
        default=1.0, gt=0, le=1, description="1 draws from pure noise; less keeps some of the tissue that was there"
    )
    candidates: int = Field(
        default=2, ge=1, le=64, description="Lesions drawn per sample; without a critic only the first is drawn"
    )
    early: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the steps after which the critic chooses, from what the candidates look like so far, and "
        "only its choice is finished; null: all are finished first",
    )
    feather: float = Field(
        default=0.02, ge=0, le=0.2, description="Width of the soft edge of the hole, as a share of the image's side"
    )


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts whose hole holds a lesion; those without a mask fail with that reason."""
    sample.reads_condition(tools.base.unet)  # refuse a strange base before any work
    ready = [draft for draft in drafts if draft.mask is not None]
    holes = [window.hole(_mask(draft), tools.base.px) for draft in ready]
    jobs = [_job(params, draft, hole, tools) for draft, hole in zip(ready, holes, strict=True)]

    def best(number: int, images: list[Grey]) -> int:
        return _best(ready[number], _composited(ready[number], holes[number], images, params), tools)[0]

    early = None if params.early is None or tools.critic is None else Early(params.early, best)
    drawn = candidates(jobs, params, params.strength, tools, lambda _: tools.advance(1), early)
    made = iter([_finish(*three, params, tools) for three in zip(ready, holes, drawn, strict=True)])
    tools.advance(len(drafts) - len(ready))
    missing = "the lesion stage found no mask; expected the layout stage before it in the recipe"
    return [draft.failed(missing) if draft.mask is None else next(made) for draft in drafts]


def _job(params: Params, draft: Draft, hole: Mask, tools: Tools) -> Job:
    count = params.candidates if tools.critic else 1
    first, *others = (noise_seed(draft, STAGE_NUMBER, candidate) for candidate in range(count))
    return Job(draft.image, hole, hole, draft.label, draft.organ, first, tuple(others))


def _composited(draft: Draft, hole: Mask, drawn: list[Grey], params: Params) -> list[Grey]:
    return [composite(draft.image, image, hole, params.feather * hole.shape[0]) for image in drawn]


def _best(draft: Draft, images: list[Grey], tools: Tools) -> tuple[int, float | None]:
    """Place and score of what the critic likes best; the first, without a score, where there is no critic."""
    if tools.critic is None:
        return 0, None
    scores = tools.critic(np.stack(images), np.stack([_mask(draft)] * len(images)), [draft.label] * len(images))
    best = int(np.argmax(scores))
    return best, float(scores[best])


def _finish(draft: Draft, hole: Mask, drawn: list[Grey], params: Params, tools: Tools) -> Draft:
    images = _composited(draft, hole, drawn, params)
    best, score = _best(draft, images, tools)
    image = images[best]
    region = hole if draft.region is None else hole | draft.region
    adapter = tools.adapters.get(draft.label)
    early = "" if params.early is None or tools.critic is None else f", chosen at {params.early:g}"
    lineage = {
        **draft.lineage,
        "base_digest": tools.base.digest,
        "adapter_digest": None if adapter is None else hashlib.sha256(adapter).hexdigest(),
        "prompt": latents.prompt(draft.organ, draft.label),
        "sampler": params.described() + early,
        "steps": params.steps,
        "guidance": params.guidance,
        "seed": draft.seed,
        "candidates": params.candidates if tools.critic else 1,
        "critic": score,
        "outside_changed_px": changed_outside(image, draft.background, region),
    }
    return replace(draft, image=image, region=region, lineage=lineage)


def _mask(draft: Draft) -> Mask:
    assert draft.mask is not None
    return draft.mask
