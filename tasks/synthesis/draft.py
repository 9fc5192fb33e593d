"""A synthetic sample on its way through the stages, and what the stages work with.

Glossary: the *background* is the healthy image that a sample starts from; a *donor* is a real lesion mask
that a new mask is derived from; the *region* is where pixels may differ from the background, declared in the
row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask
from tasks.synthesis.diffusion.base import Base
from tasks.synthesis.posterior import Behind

Advance = Callable[[int], None]
"""Called with the number of items just done, for progress bars."""

Critic = Callable[[NDArray[np.uint8], NDArray[np.bool_], Sequence[str]], NDArray[np.floating]]
"""Scores (N,), higher is better, of images (N, H, W) with lesion masks (N, H, W) and labels."""


def _silent(_: int) -> None:
    pass


@dataclass(frozen=True)
class Draft:
    """One sample between two stages. Stages return new drafts; they never change the arrays of one.

    `image` starts as `background`; both are (H, W), H = W. `mask` is the lesion, `region` the pixels in which
    `image` may differ from `background`, None where it is drawn whole: `background` is then black, of no kind and
    without an id. `attributes` are words of the prompt beside organ and label. `point` is where the sample lies in its
    label's share of the plan, 0 to 1: evenly spread over any prefix of it, so quotas read from it are kept by any
    prefix, too. `lineage` holds what `storage.records.LINEAGE_FIELDS` names.
    `failure` says why a sample could not be made; such a draft passes through later stages unchanged.
    """

    id: str
    seed: int
    label: str
    organ: str
    background: Grey
    background_id: str | None
    background_kind: str | None
    pixel_mm: float | None
    group: str
    image: Grey
    mask: Mask | None = None
    region: Mask | None = None
    attributes: tuple[str, ...] = ()
    point: float = 0.5
    lineage: Mapping[str, object] = field(default_factory=lambda: dict[str, object]())
    failure: str | None = None

    def failed(self, reason: str) -> "Draft":
        """This draft, given up for `reason`."""
        return replace(self, failure=reason)


@dataclass(frozen=True)
class Donor:
    """A real lesion mask (H, W) of the training groups, in the frame of its letterboxed image.

    From `image`, its scan, is learned where lesions lie in the tissue; without it, that is not.
    `behind` is what its scan shows behind the lesion, None where there is no room to see it.
    """

    id: str
    mask: Mask
    label: str
    group: str
    pixel_mm: float | None = None
    behind: Behind | None = None
    image: Grey | None = None


@dataclass(frozen=True)
class Tools:
    """What stages need beside their parameters: models, donors, how many images fit one batch.

    `adapters` holds LoRA weights (safetensors) by label; a label without one is drawn by the base alone.
    `harmonizer` holds those of the adapter trained on seam pairs, None where the recipe trains none; `controlnet`
    those of the network that holds pictures to their masks.
    `advance` is called with 1 for every draft that a stage has finished with.
    """

    base: Base
    adapters: Mapping[str, bytes]
    donors: Sequence[Donor]
    critic: Critic | None = None
    harmonizer: bytes | None = None
    controlnet: bytes | None = None
    batch: int = 32
    advance: Advance = _silent


def rng_of(draft: Draft, stage: int) -> np.random.Generator:
    """The random numbers of one stage of one draft, whatever batch, shard or thread it runs in."""
    return np.random.default_rng([draft.seed, stage])


def noise_seed(draft: Draft, stage: int, candidate: int = 0) -> int:
    """The 63-bit seed of the diffusion noise of one candidate of one draft."""
    state = np.random.SeedSequence([draft.seed, stage, candidate]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
