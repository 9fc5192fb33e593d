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
from tasks.synthesis.redraw import Job, Sampling, changed_outside, composite, redraw

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
    feather: float = Field(
        default=0.02, ge=0, le=0.2, description="Width of the soft edge of the hole, as a share of the image's side"
    )


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts whose hole holds a lesion; those without a mask fail with that reason."""
    sample.reads_condition(tools.base.unet)  # refuse a strange base before any work
    count = params.candidates if tools.critic else 1
    ready = [draft for draft in drafts if draft.mask is not None]
    holes = [window.hole(_mask(draft), tools.base.px) for draft in ready]
    jobs = [
        Job(draft.image, hole, hole, draft.label, draft.organ, noise_seed(draft, STAGE_NUMBER, candidate))
        for draft, hole in zip(ready, holes, strict=True)
        for candidate in range(count)
    ]
    done = [0] * len(ready)

    def finished(job: int) -> None:
        done[job // count] += 1
        tools.advance(int(done[job // count] == count))

    drawn = redraw(jobs, params, params.strength, tools, finished)
    made = iter(
        [
            _finish(draft, hole, drawn[number * count : (number + 1) * count], params, tools)
            for number, (draft, hole) in enumerate(zip(ready, holes, strict=True))
        ]
    )
    tools.advance(len(drafts) - len(ready))
    missing = "the lesion stage found no mask; expected the layout stage before it in the recipe"
    return [draft.failed(missing) if draft.mask is None else next(made) for draft in drafts]


def _finish(draft: Draft, hole: Mask, drawn: list[Grey], params: Params, tools: Tools) -> Draft:
    feather_px = params.feather * hole.shape[0]
    candidates = [composite(draft.image, image, hole, feather_px) for image in drawn]
    best, score = 0, None
    if tools.critic is not None:
        mask = _mask(draft)
        scores = tools.critic(np.stack(candidates), np.stack([mask] * len(candidates)), [draft.label] * len(candidates))
        best = int(np.argmax(scores))
        score = float(scores[best])
    image = candidates[best]
    region = hole if draft.region is None else hole | draft.region
    adapter = tools.adapters.get(draft.label)
    lineage = {
        **draft.lineage,
        "base_digest": tools.base.digest,
        "adapter_digest": None if adapter is None else hashlib.sha256(adapter).hexdigest(),
        "prompt": latents.prompt(draft.organ, draft.label),
        "sampler": sample.SAMPLER,
        "steps": params.steps,
        "guidance": params.guidance,
        "seed": draft.seed,
        "candidates": len(drawn),
        "critic": score,
        "outside_changed_px": changed_outside(image, draft.background, region),
    }
    return replace(draft, image=image, region=region, lineage=lineage)


def _mask(draft: Draft) -> Mask:
    assert draft.mask is not None
    return draft.mask
