"""Run diffusion over many drafts: windows, batches, one adapter at a time; and put the result back softly."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.synthesis.diffusion import latents, sample, solver, window
from tasks.synthesis.draft import Tools


class Sampling(Record):
    """How a stage that draws samples from the diffusion model."""

    steps: int = Field(default=20, ge=1, le=1000, description="Denoising steps of DPM-Solver++")
    spacing: solver.Spacing = Field(
        default="uniform",
        description="Noise levels of the steps: uniform in time, or as Karras et al. space them, denser where little "
        "noise is left",
    )
    guidance: float = Field(
        default=2.0, ge=1, le=30, description="Classifier-free guidance scale; 1 switches it off and halves the work"
    )
    guidance_from: float = Field(
        default=0.0, ge=0, le=1, description="Guidance starts here, as a share of the noise levels: 0 is the cleanest"
    )
    guidance_until: float = Field(
        default=1.0, ge=0, le=1, description="Guidance ends here, 1 being the noisiest; levels outside cost half"
    )
    precision: sample.Precision = Field(
        default="fp32", description="bf16 halves memory and is faster where the processor has it"
    )

    def described(self) -> str:
        """The sampler as a row's lineage names it.

        >>> Sampling(guidance_from=0.25).described()
        'DPM-Solver++(2M), guided 0.25 to 1'
        """
        spaced = "" if self.spacing == "uniform" else f", {self.spacing}"
        everywhere = self.guidance == 1 or (self.guidance_from, self.guidance_until) == (0, 1)
        guided = "" if everywhere else f", guided {self.guidance_from:g} to {self.guidance_until:g}"
        return solver.SAMPLER + spaced + guided


@dataclass(frozen=True)
class Job:
    """One image to redraw: where pixels may change (`free`), what is to be filled (`hole`), which noise.

    `others` are the seeds of further candidates, drawn in the same image.
    """

    image: Grey
    free: Mask
    hole: Mask
    label: str
    organ: str
    seed: int
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Early:
    """After `share` of the steps, finish only the candidate that `best` picks.

    `best` gets the number of a job and its candidates as they look so far, not yet composited.
    """

    share: float
    best: Callable[[int, list[Grey]], int]


def redraw(
    jobs: Sequence[Job], sampling: Sampling, strength: float, tools: Tools, finished: Callable[[int], None]
) -> list[Grey]:
    """What the model makes of every job, not yet composited; `finished` gets the number of each job done."""
    return [one for (one,) in candidates(jobs, sampling, strength, tools, finished)]


def candidates(
    jobs: Sequence[Job],
    sampling: Sampling,
    strength: float,
    tools: Tools,
    finished: Callable[[int], None],
    early: Early | None = None,
) -> list[list[Grey]]:
    """As `redraw`, but all candidates of every job, or with `early` the one that was finished."""
    results: dict[int, list[Grey]] = {}
    for adapter, batch in batches([job.label for job in jobs], tools):
        drawn = _draw({number: jobs[number] for number in batch}, adapter, sampling, strength, tools, early)
        for number, images in drawn.items():
            results[number] = images
            finished(number)
    return [results[number] for number in range(len(jobs))]


def batches(labels: Sequence[str], tools: Tools) -> list[tuple[bytes | None, list[int]]]:
    """Batches of what has these labels, by place, each with the adapter that draws it; one adapter after the other."""
    places: defaultdict[bytes | None, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[tools.adapters.get(label)].append(place)
    return [
        (adapter, of[start : start + tools.batch])
        for adapter, of in places.items()
        for start in range(0, len(of), tools.batch)
    ]


def reconstruct(jobs: Sequence[Job], tools: Tools, precision: sample.Precision = "fp32") -> list[Grey]:
    """Every job's image as the autoencoder gives it back: what `redraw` makes of it at strength 0."""
    base = replace(tools.base, vae=sample.autoencoder(tools.base.vae, precision))
    results: list[Grey] = []
    for job in jobs:
        view = window.around(job.free, base.px)
        given = sample.decode(base, sample.encode(base, window.cut(job.image, view)[None]))
        results.append(window.paste(job.image, given[0], view))
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


def _draw(
    jobs: Mapping[int, Job],
    adapter: bytes | None,
    sampling: Sampling,
    strength: float,
    tools: Tools,
    early: Early | None,
) -> dict[int, list[Grey]]:
    """The candidates of one batch of jobs by job number, or with `early` the one that was finished."""
    windows = {number: window.around(job.free, tools.base.px) for number, job in jobs.items()}
    places = {number: place for place, number in enumerate(jobs)}
    rows = [(number, seed) for number, job in jobs.items() for seed in (job.seed, *job.others)]

    def by_job(seen: NDArray[np.uint8], owners: Sequence[int]) -> dict[int, list[Grey]]:
        images: dict[int, list[Grey]] = {number: [] for number in jobs}
        for number, one in zip(owners, seen, strict=True):
            images[number].append(window.paste(jobs[number].image, one, windows[number]))
        return images

    owners = [number for number, _ in rows]

    def keep(seen: NDArray[np.uint8]) -> list[int]:
        assert early is not None
        return [owners.index(number) + early.best(number, images) for number, images in by_job(seen, owners).items()]

    seen = sample.inpaint(
        tools.base,
        np.stack([window.cut(job.image, windows[number]) for number, job in jobs.items()]),
        np.stack([window.cut_mask(job.free, windows[number]) for number, job in jobs.items()]),
        [latents.prompt(job.organ, job.label) for job in jobs.values()],
        [seed for _, seed in rows],
        steps=sampling.steps,
        spacing=sampling.spacing,
        guidance=sampling.guidance,
        guided=(sampling.guidance_from, sampling.guidance_until),
        strength=strength,
        adapter=adapter,
        precision=sampling.precision,
        holes=np.stack([window.cut_mask(job.hole, windows[number]) for number, job in jobs.items()]),
        of=[places[number] for number in owners],
        early=None if early is None else (early.share, keep),
    )
    return by_job(seen, owners if len(seen) == len(owners) else list(jobs))
