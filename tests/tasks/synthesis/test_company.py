"""On the base that ships: a sample is the same whatever else is drawn beside it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.synthesis import Draft, StageParams, Tools, apply, harmonize, layout, lesion
from tasks.synthesis.diffusion import base
from tasks.synthesis.diffusion.adapters import Precision
from tests.fakes.drafts import donors, drafts, sector

PX = 128
SAMPLES = 4


def made(precision: Precision, tools: Tools) -> list[Draft]:
    stages: list[StageParams] = [
        layout.Params(),
        lesion.Params(steps=4, spacing="karras", guidance_from=0.4, candidates=2, early=0.5, precision=precision),
        harmonize.Params(steps=4, precision=precision),
    ]
    background, _ = sector(PX)
    items = drafts(SAMPLES, background)
    for stage in stages:
        items = apply(stage, items, tools)
    return items


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_another_batch_size_changes_no_pixel_and_no_choice(precision: Precision) -> None:
    scores: list[float] = []

    def darker(images: NDArray[np.uint8], masks: NDArray[np.bool_], labels: Sequence[str]) -> NDArray[np.float64]:
        found = [-float(image[mask].mean()) for image, mask in zip(images, masks, strict=True)]
        scores.extend(found)
        return np.array(found)

    tools = Tools(base=base.load("embedded"), adapters={}, donors=donors(PX), critic=darker)
    together = made(precision, replace(tools, batch=8))
    expected = sorted(scores)
    assert all(draft.failure is None for draft in together)
    for batch in (1, 3):
        scores.clear()
        for one, other in zip(made(precision, replace(tools, batch=batch)), together, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            assert one.lineage == other.lineage
        assert sorted(scores) == expected  # what the critic saw half way, too: a tie stays a tie
