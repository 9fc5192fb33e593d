"""Run diffusion over many drafts: windows, batches, one adapter at a time; and put the result back softly."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.synthesis.diffusion import latents, sample, window
from tasks.synthesis.draft import Tools


class Sampling(Record):
    """How a stage that draws samples from the diffusion model."""

    steps: int = Field(default=20, ge=1, le=1000, description="Denoising steps of DPM-Solver++")
    guidance: float = Field(
        default=2.0, ge=1, le=30, description="Classifier-free guidance scale; 1 switches it off and halves the work"
    )
    precision: sample.Precision = Field(
        default="fp32", description="bf16 halves memory and is faster where the processor has it"
    )


@dataclass(frozen=True)
class Job:
    """One image to redraw: where pixels may change (`free`), what is to be filled (`hole`), which noise."""

    image: Grey
    free: Mask
    hole: Mask
    label: str
    organ: str
    seed: int


def redraw(
    jobs: Sequence[Job], sampling: Sampling, strength: float, tools: Tools, finished: Callable[[int], None]
) -> list[Grey]:
    """What the model makes of every job, not yet composited; `finished` gets the number of each job done."""
    results: list[Grey | None] = [None] * len(jobs)
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        by_label[job.label].append(number)
    for label in sorted(by_label):
        numbers = by_label[label]
        for start in range(0, len(numbers), tools.batch):
            batch = numbers[start : start + tools.batch]
            drawn = _draw([jobs[number] for number in batch], label, sampling, strength, tools)
            for number, image in zip(batch, drawn, strict=True):
                results[number] = image
                finished(number)
    return [image for image in results if image is not None]


def reconstruct(jobs: Sequence[Job], tools: Tools) -> list[Grey]:
    """Every job's image as the autoencoder gives it back: what `redraw` makes of it at strength 0."""
    results: list[Grey] = []
    for start in range(0, len(jobs), tools.batch):
        batch = jobs[start : start + tools.batch]
        windows = [window.around(job.free, tools.base.px) for job in batch]
        seen = np.stack([window.cut(job.image, view) for job, view in zip(batch, windows, strict=True)])
        given = latents.decode(tools.base, latents.encode(tools.base, seen))
        results += [window.paste(job.image, one, view) for job, one, view in zip(batch, given, windows, strict=True)]
    return results


def composite(under: Grey, over: Grey, region: Mask, feather_px: float) -> Grey:
    """`over` inside `region`, fading to `under` within `feather_px` of its edge; outside, `under` itself."""
    depth = depth_in(region)
    alpha = np.clip(depth / max(feather_px, 1.0), 0, 1)
    mixed = under + alpha * (over.astype(np.float32) - under)
    return np.where(region, np.rint(mixed).astype(np.uint8), under)


def depth_in(mask: Mask) -> NDArray[np.float32]:
    """Distance in pixels of everything in a mask to the nearest pixel outside it; 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(mask), np.float32)


def changed_outside(image: Grey, background: Grey, region: Mask) -> int:
    """How many pixels outside `region` differ from the background: 0, or a stage is wrong."""
    return int(((image != background) & ~region).sum())


def _draw(jobs: list[Job], label: str, sampling: Sampling, strength: float, tools: Tools) -> list[Grey]:
    windows = [window.around(job.free, tools.base.px) for job in jobs]
    seen = sample.inpaint(
        tools.base,
        np.stack([window.cut(job.image, view) for job, view in zip(jobs, windows, strict=True)]),
        np.stack([window.cut_mask(job.free, view) for job, view in zip(jobs, windows, strict=True)]),
        [latents.prompt(job.organ, label) for job in jobs],
        [job.seed for job in jobs],
        steps=sampling.steps,
        guidance=sampling.guidance,
        strength=strength,
        adapter=tools.adapters.get(label),
        precision=sampling.precision,
        holes=np.stack([window.cut_mask(job.hole, view) for job, view in zip(jobs, windows, strict=True)]),
    )
    return [window.paste(job.image, one, view) for job, one, view in zip(jobs, seen, windows, strict=True)]
