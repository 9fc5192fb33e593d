"""What a downstream network is trained on: the arms of the utility study, and the few real images of each regime."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from storage.records import Record


class Arm(Record):
    """One way to train a downstream network."""

    name: str = Field(description="how tables call it")
    real: bool = Field(default=True, description="with the real training scans of the regime")
    synthetic: bool = Field(default=True, description="with the kept synthetic images")
    ratio: float | None = Field(
        default=None, gt=0, description="synthetic images for each real lesion at most; null: all that were kept"
    )
    pretrain: bool = Field(
        default=False, description="the synthetic images first, then the real ones alone; else both at once"
    )
    balanced: bool = Field(
        default=False, description="real and synthetic images equally likely in a batch; else each image is"
    )
    augmentation: bool = Field(default=True, description="with classical augmentation")

    @model_validator(mode="after")
    def _learns_something(self) -> "Arm":
        if not (self.real or self.synthetic):
            raise ValueError(f"arm {self.name!r} has neither real nor synthetic images; give it one of them")
        for option, does in (("pretrain", "pre-trains"), ("balanced", "is balanced")):
            if getattr(self, option) and not (self.real and self.synthetic):
                raise ValueError(f"arm {self.name!r} {does}; it needs real and synthetic images")
        if self.pretrain and self.balanced:
            raise ValueError(f"arm {self.name!r} pre-trains, so its batches are never mixed; leave out `balanced`")
        return self


class Regime(Record):
    """How many real training scans there are, and how long networks train on them."""

    real_images: float = Field(
        default=1.0, gt=0, description="real training scans, healthy ones included: up to 1 a share, above a number"
    )
    steps: float = Field(default=1.0, gt=0, le=1, description="share of a network's steps that is enough for so few")
    trainings: int | None = Field(
        default=None, ge=1, le=100, description="of every network and fold; null: as many as the study's seeds"
    )


class Trial(Record):
    """One training of one downstream network; `seed` also draws the few real images, the same in every arm."""

    arm: Arm
    regime: Regime
    seed: int

    @property
    def described(self) -> dict[str, object]:
        """All that decides what is learned from: an arm without real images is the same in every regime."""
        regime = self.regime if self.arm.real else Regime(steps=self.regime.steps)
        # `balanced` came later: without it, what was trained before is what would be trained now.
        unsaid = {"name"} if self.arm.balanced else {"name", "balanced"}
        return {
            "arm": self.arm.model_dump(mode="json", exclude=unsaid),
            "regime": regime.model_dump(mode="json", exclude={"trainings"}),
            "seed": self.seed,
        }


ARMS = [
    Arm(name="real", synthetic=False),
    Arm(name="real, no augmentation", synthetic=False, augmentation=False),
    Arm(name="real + synthetic"),
    Arm(name="synthetic, then real", pretrain=True),
    Arm(name="synthetic only", real=False),
]
REGIMES = [
    Regime(real_images=10, steps=0.5),
    Regime(real_images=20, steps=0.5),
    Regime(real_images=0.5),
    Regime(real_images=1.0),
]


def few(groups: Sequence[str], labels: Sequence[str], wanted: float, seed: int) -> NDArray[np.bool_]:
    """Which images are among the first `wanted`: at most so many (of a share: rounded), whole groups, each label as
    near its share as groups allow.

    Nested: what is among 10 is among 20 with the same seed. One group is taken even where it is larger.
    """
    size = round(wanted * len(groups)) if wanted <= 1 else int(wanted)
    chosen: set[str] = set()
    for group, taken in _in_order(groups, labels, seed):
        if chosen and taken > size:
            break
        chosen.add(group)
    return np.array([group in chosen for group in groups], np.bool_)


def _in_order(groups: Sequence[str], labels: Sequence[str], seed: int) -> list[tuple[str, int]]:
    """Every group, with the number of images up to and including it; strata (the label most of a group's images
    carry) take turns so that each prefix holds about their shares."""
    held: dict[str, Counter[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        held.setdefault(group, Counter())[label] += 1
    strata: dict[str, list[str]] = {}
    for group in sorted(held, key=lambda group: _rank(group, seed)):
        label = max(held[group], key=lambda label: (held[group][label], label))
        strata.setdefault(label, []).append(group)
    sizes = {label: sum(held[group].total() for group in names) for label, names in strata.items()}
    given, order, taken = dict.fromkeys(strata, 0), list[tuple[str, int]](), 0
    while any(strata.values()):
        label = min(
            (name for name in sorted(strata) if strata[name]),
            key=lambda name: (given[name] + held[strata[name][0]].total() / 2) / sizes[name],
        )
        group = strata[label].pop(0)
        given[label] += held[group].total()
        taken += held[group].total()
        order.append((group, taken))
    return order


def _rank(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0few\0{group}".encode()).hexdigest()
