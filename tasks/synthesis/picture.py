"""A whole picture from its prompt and, where the recipe trains a ControlNet, from its mask.

The base draws at its own size, whatever the size of a sample; prompts name organ, label and attributes. Source:
Freiche et al., "Ultrasound Image Generation using Latent Diffusion Models", 2025; ControlNet: Zhang et al., "Adding
Conditional Control to Text-to-Image Diffusion Models", 2023.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.synthesis.diffusion import latents, sample, window
from tasks.synthesis.draft import Draft, Tools, noise_seed
from tasks.synthesis.redraw import Sampling, batches
from tasks.synthesis.tissue import in_black

STAGE_NUMBER = 7


class Params(Sampling):
    """How whole pictures are drawn."""

    stage: Literal["picture"] = "picture"
    control: float = Field(
        default=1.0, ge=0, le=2, description="Weight of what the ControlNet adds; 0: masks are not heeded"
    )
    control_from: float = Field(
        default=0.0, ge=0, le=1, description="The ControlNet starts after this share of the steps; 0: with the first"
    )
    control_until: float = Field(
        default=1.0, ge=0, le=1, description="The ControlNet ends after this share of the steps; 1: with the last"
    )

    def described(self, controlled: bool = False) -> str:
        """The sampler as a row's lineage names it.

        >>> Params(control=0.8, control_until=0.5).described(controlled=True)
        'DPM-Solver++(2M), ControlNet 0.8 in steps 0 to 0.5'
        """
        if not controlled:
            return super().described()
        always = (self.control_from, self.control_until) == (0, 1)
        within = "" if always else f" in steps {self.control_from:g} to {self.control_until:g}"
        return f"{super().described()}, ControlNet {self.control:g}{within}"


def apply(params: Params, drafts: list[Draft], tools: Tools) -> list[Draft]:
    """Drafts with a picture of their own in the place of their background.

    Raises:
        ValueError: masks without a ControlNet, which nothing would hold the pictures to; or the other way round.
    """
    for draft in drafts:
        if draft.mask is not None and tools.controlnet is None:
            raise ValueError(
                "the picture stage found masks, but no ControlNet to hold pictures to them; give the recipe a "
                "controlnet, or leave out the segmentation stage"
            )
        if draft.mask is None and tools.controlnet is not None:
            raise ValueError(
                "the picture stage found no mask for its ControlNet; expected the segmentation stage before it, or "
                "controlnet null"
            )
    made = list(drafts)
    for adapter, batch in batches([draft.label for draft in drafts], tools):
        drawn = _draw(params, [drafts[number] for number in batch], adapter, tools)
        for number, seen in zip(batch, drawn, strict=True):
            made[number] = _finish(params, drafts[number], seen, adapter, tools)
        tools.advance(len(batch))
    return made


def prompt(draft: Draft) -> str:
    """What is asked for."""
    return latents.prompt(draft.organ, draft.label, draft.attributes)


def _draw(params: Params, drafts: Sequence[Draft], adapter: bytes | None, tools: Tools) -> NDArray[np.uint8]:
    """Pictures (B, px, px) at the base's size."""
    control = None
    if tools.controlnet is not None:
        masks = [window.cut_mask(draft.mask, _whole(draft, tools)) for draft in drafts if draft.mask is not None]
        control = sample.Control(
            tools.controlnet, np.stack(masks), params.control, (params.control_from, params.control_until)
        )
    return sample.pictures(
        tools.base,
        [prompt(draft) for draft in drafts],
        [noise_seed(draft, STAGE_NUMBER) for draft in drafts],
        steps=params.steps,
        guidance=params.guidance,
        guided=(params.guidance_from, params.guidance_until),
        spacing=params.spacing,
        adapter=adapter,
        precision=params.precision,
        control=control,
        decode=latents.decode,
    )


def _whole(draft: Draft, tools: Tools) -> window.Window:
    return window.Window(0, 0, draft.image.shape[0], tools.base.px)


def _finish(params: Params, draft: Draft, seen: NDArray[np.uint8], adapter: bytes | None, tools: Tools) -> Draft:
    image = in_black(window.paste(draft.image, seen, _whole(draft, tools)))
    lineage = {
        **draft.lineage,
        "base_digest": tools.base.digest,
        "adapter_digest": None if adapter is None else hashlib.sha256(adapter).hexdigest(),
        "prompt": prompt(draft),
        "sampler": params.described(tools.controlnet is not None),
        "steps": params.steps,
        "guidance": params.guidance,
        "seed": draft.seed,
        "candidates": 1,
    }
    return replace(draft, image=image, lineage=lineage)
