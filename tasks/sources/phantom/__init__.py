"""Phantoms: simulated ultrasound of breast and fetal head, so that everything runs without any patient.

- Counts: as many as asked for; two views a patient.
- Layout: none on disk; drawn from the seed, image by image, each independent of how many are asked for.
- Masks: exact. The lesion's own outline (spicules included), or the filled outline of the skull.
- Labels: normal, benign, malignant (organ "breast"); head (organ "fetal head").
- Licence: Apache-2.0, as the code; no patient, no consent, no ethics.
- Physics: tissue layers, scatterer field, point spread that widens with depth and lengthens with it as high
  frequencies are lost, attenuation with imperfect compensation, electronic noise, envelope, compounding, log
  compression, the scanner's despeckling and edge enhancement. Benign: oval, smooth, parallel, enhancement behind;
  malignant: irregular, spiculated, rounder, blurred outline, shadow behind (ACR BI-RADS), with overlap.
- Ranges: from physics, and from summary statistics (medians and quartiles of size, contrast, grey levels, speckle,
  layers) of BUSI's training split and of 133 HC18 scans; no scan and no outline is copied.
  `python -m benchmarks.phantom` prints how near they come.
- Known differences from patients: edges more alike in direction (coherence of the structure tensor 0.72 against
  0.67 in BUSI, 0.70 against 0.63 around malignant lesions), normal scans brighter and darkening faster with depth,
  thinner layers; straight-down beams also in sector pictures, no reverberation, no phase
  aberration, no vessels, no burned-in text, one lesion a picture.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from storage.records import Record, Scan
from tasks.sources.phantom.simulate import Kind, Phantom, simulate

LICENCE = "Apache-2.0"
CITATION = "sonoforge phantom simulator (this repository)"
ORGAN = "breast"
LABELS = ("normal", "benign", "malignant")
VIEWS = 2


class Params(Record):
    """How many phantoms of what."""

    dataset: Literal["phantom"] = "phantom"
    count: int = Field(default=240, ge=1, le=100_000, description="Pictures to simulate; two views of each patient.")
    px: int = Field(default=128, ge=32, le=512, multiple_of=8, description="Side of the square pictures, pixels.")
    organ: Literal["breast", "fetal head"] = Field(default="breast", description="What is looked at.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Same seed, same phantoms.")
    normal: float = Field(default=0.4, ge=0, le=1, description="Share of patients with normal breast tissue.")
    malignant: float = Field(default=0.3, ge=0, le=1, description="Share of patients with a malignant lesion.")


def read(params: Params) -> Iterator[Scan]:
    """The phantoms in order; the first n are the same however many are asked for."""
    if params.normal + params.malignant > 1:
        raise ValueError(
            f"normal {params.normal} + malignant {params.malignant} is more than 1; expected shares, the rest is benign"
        )
    for index in range(params.count):
        patient, view = divmod(index, VIEWS)
        kind = _kind(params, patient)
        phantom = draw(kind, params.seed, patient, view, params.px)
        yield Scan(
            file=f"{kind}-{patient:05d}-{view}.png",
            image=phantom.image,
            mask=phantom.mask,
            label=kind,
            organ=params.organ,
            group=f"patient-{patient:05d}",
            pixel_mm=phantom.pixel_mm,
        )


def draw(kind: Kind, seed: int, patient: int, view: int, px: int, twin: bool = False) -> Phantom:
    """One phantom, named by its numbers alone."""
    return simulate(
        kind, np.random.default_rng([seed, patient]), np.random.default_rng([seed, patient, view, 1]), px, twin
    )


def _kind(params: Params, patient: int) -> Kind:
    """Labels spread evenly: the golden ratio's multiples fill the unit interval without clumps."""
    if params.organ == "fetal head":
        return "head"
    at = (0.5 + patient * 0.6180339887498949) % 1
    if at < params.normal:
        return "normal"
    return "malignant" if at < params.normal + params.malignant else "benign"


__all__ = ["CITATION", "LABELS", "LICENCE", "ORGAN", "Kind", "Params", "Phantom", "draw", "read", "simulate"]
