"""What every judge shares: the pictures it sees, and what its training leaves behind."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tasks.imaging import Grey, Mask

HEALTHY = "normal"
"""The label of an image without lesion: the only one whose mask may be blank."""

Advance = Callable[[int], None]


def silent(done: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Judge:
    """Trained weights (safetensors bytes) and what they reached on held-out groups, with N."""

    weights: bytes = field(repr=False)
    report: dict[str, float]

    @property
    def digest(self) -> str:
        """sha256 of the weights."""
        return hashlib.sha256(self.weights).hexdigest()


@dataclass(frozen=True)
class Pictures:
    """A set of labelled pairs: images (n, h, w) uint8, masks (n, h, w) bool (blank where healthy), the label
    and the group of each.

    Raises:
        ValueError: lengths, shapes or types that do not fit.
    """

    images: Grey = field(repr=False)
    masks: Mask = field(repr=False)
    labels: Sequence[str] = field(repr=False)
    groups: Sequence[str] = field(repr=False)

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or self.images.dtype != np.uint8:
            raise ValueError(f"expected uint8 images (n, h, w), found {self.images.dtype} {self.images.shape}")
        if self.masks.shape != self.images.shape or self.masks.dtype != np.bool_:
            found = f"{self.masks.dtype} {self.masks.shape}"
            raise ValueError(f"expected bool masks of shape {self.images.shape}, found {found}")
        lengths = len(self.images), len(self.labels), len(self.groups)
        if len(set(lengths)) > 1:
            raise ValueError(f"expected one label and one group an image, found {lengths} of them")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Pictures":
        """The rows of these numbers, or where True."""
        chosen: list[int] = np.arange(len(self))[rows].tolist()
        labels, groups = [self.labels[row] for row in chosen], [self.groups[row] for row in chosen]
        return Pictures(self.images[chosen], self.masks[chosen], labels, groups)

    def and_also(self, others: "Pictures") -> "Pictures":
        """These pictures, then the `others`."""
        if not len(others):
            return self
        images, masks = np.concatenate([self.images, others.images]), np.concatenate([self.masks, others.masks])
        return Pictures(images, masks, [*self.labels, *others.labels], [*self.groups, *others.groups])

    def with_labels(self, labels: Collection[str]) -> "Pictures":
        """Only the pictures of these labels: what a set of such lesions may fairly be compared with."""
        return self.select(np.array([label in labels for label in self.labels], np.bool_))
