"""The picture stage: drawn at the base's size, to the mask it is given, the same in any company."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.synthesis import Draft, Tools, picture
from tasks.synthesis.diffusion import sample
from tasks.synthesis.diffusion.base import Base
from tests.fakes import drafts as fakes
from tests.tasks.synthesis.diffusion import controls

PARAMS = picture.Params(steps=3)
PX = 32


def drafts(count: int, px: int = PX, masked: bool = True) -> list[Draft]:
    """Drafts without a background, each with an ellipse at a place of its own."""
    black = np.zeros((px, px), np.uint8)
    return [
        replace(
            draft,
            background_id=None,
            background_kind=None,
            mask=fakes.ellipse(px, px / 2 + number, px / 2, px / 5, px / 4) if masked else None,
            attributes=("oval", "parallel"),
        )
        for number, draft in enumerate(fakes.drafts(count, black))
    ]


@pytest.fixture(scope="module")
def held(inpainting_base: Base) -> Tools:
    return Tools(base=inpainting_base, adapters={}, donors=[], controlnet=controls.train(inpainting_base).weights)


def test_a_picture_is_drawn_whole_and_its_row_says_how(held: Tools) -> None:
    (draft,) = picture.apply(PARAMS, drafts(1), held)
    assert draft.image.any()
    assert draft.region is None
    np.testing.assert_array_equal(draft.background, 0)
    assert draft.lineage["prompt"] == "ultrasound of breast, benign lesion, oval, parallel"
    assert draft.lineage["sampler"] == "DPM-Solver++(2M), ControlNet 1"
    assert (draft.lineage["steps"], draft.lineage["candidates"], draft.lineage["seed"]) == (3, 1, draft.seed)
    assert draft.lineage["adapter_digest"] is None


def test_a_draft_gets_the_same_picture_in_any_company_and_batch(held: Tools) -> None:
    counted: list[int] = []
    together = picture.apply(PARAMS, drafts(5), replace(held, batch=2, advance=counted.append))
    alone = picture.apply(PARAMS, drafts(5)[3:4], held)
    np.testing.assert_array_equal(alone[0].image, together[3].image)
    assert [draft.id for draft in together] == [draft.id for draft in drafts(5)]
    assert len({draft.image.tobytes() for draft in together}) == 5
    assert sum(counted) == 5


def test_without_a_controlnet_the_prompt_alone_draws(inpainting_base: Base) -> None:
    tools = Tools(base=inpainting_base, adapters={}, donors=[])
    one, other = (
        picture.apply(PARAMS, [replace(drafts(1, masked=False)[0], label=label)], tools)[0]
        for label in ("benign", "malignant")
    )
    assert (one.image != other.image).any()
    assert one.lineage["sampler"] == "DPM-Solver++(2M)"
    assert one.mask is None


def test_larger_and_smaller_pictures_are_drawn_at_the_size_of_the_base(
    held: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray[np.bool_]] = []

    def flat(base: Base, *_: Any, control: sample.Control, **__: Any) -> NDArray[np.uint8]:
        seen.append(control.masks)
        return np.where(control.masks, 200, 100).astype(np.uint8)

    monkeypatch.setattr(sample, "pictures", flat)
    for px in (PX // 2, 2 * PX):
        (draft,) = picture.apply(PARAMS, drafts(1, px), held)
        assert seen[-1].shape == (1, PX, PX)
        assert draft.image.shape == (px, px)
        assert draft.mask is not None
        agree = ((draft.image > 150) == draft.mask).mean()
        assert agree > 0.97  # the picture drawn to the resized mask lies where the mask does


def test_what_was_not_imaged_is_black(held: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.full((1, PX, PX), 120, np.uint8)
    drawn[:, :6] = 4
    monkeypatch.setattr(sample, "pictures", lambda *_, **__: drawn)
    (draft,) = picture.apply(PARAMS, drafts(1), held)
    assert not draft.image[:4].any()
    assert (draft.image[10:] == 120).all()


def test_masks_and_controlnet_belong_together(held: Tools) -> None:
    with pytest.raises(ValueError, match="no ControlNet to hold pictures to them"):
        picture.apply(PARAMS, drafts(1), replace(held, controlnet=None))
    with pytest.raises(ValueError, match="no mask for its ControlNet"):
        picture.apply(PARAMS, drafts(1, masked=False), held)
