"""Image and mask drawn together: taken apart right, refused where the mask is none, the same in any company."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.imaging import Mask
from tasks.synthesis import Donor, Draft, Tools, apply, pair
from tasks.synthesis.diffusion import latents, sample
from tasks.synthesis.diffusion.base import Base
from tests.fakes.drafts import ellipse

PX = 32
HEADS = [(16, 16, 9, 11), (16, 16, 7, 8), (17, 15, 10, 12)]


def donors(px: int = PX) -> list[Donor]:
    """Heads of three sizes, each with a pixel size of its own."""
    scale = px / PX
    masks = [ellipse(px, *(scale * value for value in head)) for head in HEADS]
    return [
        Donor(f"scan-{number}", mask, "head", f"exam-{number}", pixel_mm=0.1 * (1 + number))
        for number, mask in enumerate(masks)
    ]


def drafts(count: int, px: int = PX) -> list[Draft]:
    black = np.zeros((px, px), np.uint8)
    return [
        Draft(
            id=f"head-{number}",
            seed=100 + number,
            label="head",
            organ="fetal head",
            background=black,
            background_id=None,
            background_kind=None,
            pixel_mm=None,
            group=f"hc18/synthetic/head-{number}",
            image=black,
        )
        for number in range(count)
    ]


def picture(mask: Mask) -> NDArray[np.uint8]:
    """What is drawn of an even image and a mask (px, px, 2)."""
    return np.stack([np.full(mask.shape, 100), np.where(mask, 230, 20)], axis=-1).astype(np.uint8)


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch, inpainting_base: Base) -> Any:
    """The stage on pictures given by the test."""

    def made(pictures: Sequence[NDArray[np.uint8]], px: int = PX, **params: Any) -> list[Draft]:
        monkeypatch.setattr(sample, "pictures", lambda *_, **__: np.stack(pictures))
        tools = Tools(base=inpainting_base, adapters={}, donors=donors(px))
        return apply(pair.Params(**{"attempts": 1} | params), drafts(len(pictures), px), tools)

    return made


def test_image_and_mask_are_the_channels_of_what_was_drawn(drawing: Any) -> None:
    head = ellipse(PX, *HEADS[0])
    (made,) = drawing([picture(head)])
    assert made.failure is None
    np.testing.assert_array_equal(made.mask, head)
    assert (made.image == 100).all()
    assert made.region is None
    assert made.group == "hc18/synthetic/head-0"
    assert made.lineage["mask_kind"] == "drawn"
    assert made.lineage["prompt"] == latents.prompt("fetal head", "head")


def test_holes_are_filled_and_specks_dropped(drawing: Any) -> None:
    head = ellipse(PX, *HEADS[0])
    drawn = picture(head)
    drawn[15:18, 14:17, 1] = 0
    drawn[2:4, 2:4, 1] = 255
    (made,) = drawing([drawn])
    np.testing.assert_array_equal(made.mask, head)


def test_the_threshold_says_what_belongs_to_the_mask(drawing: Any) -> None:
    inner, outer = ellipse(PX, *HEADS[1]), ellipse(PX, *HEADS[2])
    drawn = picture(inner)
    drawn[..., 1] = np.where(inner, 230, np.where(outer, 150, 20))
    (strict,), (loose,) = (drawing([drawn], threshold=level, opening=0.0) for level in (0.7, 0.5))
    np.testing.assert_array_equal(strict.mask, inner)
    np.testing.assert_array_equal(loose.mask, outer)


def test_what_hangs_on_a_head_is_cut_off(drawing: Any) -> None:
    px = 2 * PX
    head = ellipse(px, *(2 * value for value in HEADS[0]))
    with_cord = head.copy()
    with_cord[30:34, 50:60] = True
    (made,) = drawing([picture(with_cord[::2, ::2])], px=px)
    assert not made.mask[:, 57:].any()
    assert (made.mask & head).sum() / (made.mask | head).sum() > 0.9
    (kept,) = drawing([picture(with_cord[::2, ::2])], px=px, opening=0.0)
    assert kept.failure is not None or kept.mask[:, 57:].any()


def test_a_pair_takes_the_pixel_size_of_the_training_scan_with_the_nearest_mask(drawing: Any) -> None:
    almost = ellipse(PX, 16, 17, 7, 8)
    (made,) = drawing([picture(almost)])
    assert (made.lineage["mask_id"], made.pixel_mm) == ("scan-1", pytest.approx(0.2))


SPOILT = {
    "blank at threshold 0.7": np.zeros((PX, PX), np.bool_),
    r"2 parts of \d+, \d+ px": ellipse(PX, 9, 16, 6, 8) | ellipse(PX, 24, 16, 5, 8),
    "cut at the.* left": ellipse(PX, 16, 3, 9, 10),
    "covers 4.6% of the picture; training masks cover 17.* to 3[67]": ellipse(PX, 16, 16, 4, 3.5),
    "solidity 0.*of training masks": ellipse(PX, 16, 16, 10, 12) & ~ellipse(PX, 8, 16, 6, 5),
    r"covers 5\d.*training masks cover": ellipse(PX, 16, 16, 13, 14),
}


@pytest.mark.parametrize("reason", list(SPOILT))
def test_a_mask_that_is_none_fails_with_the_reason(drawing: Any, reason: str) -> None:
    good, bad = drawing([picture(ellipse(PX, *HEADS[0])), picture(SPOILT[reason])])
    assert good.failure is None
    assert bad.failure is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.failure)


def test_a_cut_inside_the_array_is_seen_too(drawing: Any) -> None:
    head = ellipse(PX, *HEADS[2])
    head[:14] = False  # as at the edge of a letterboxed picture
    (made,) = drawing([picture(head)])
    assert "is cut at the top" in str(made.failure)


def test_pairs_are_drawn_at_the_size_of_the_base_and_fitted_to_that_of_the_scans(drawing: Any) -> None:
    head = ellipse(PX, *HEADS[0])
    (made,) = drawing([picture(head)], px=2 * PX)
    assert made.image.shape == made.mask.shape == (2 * PX, 2 * PX)
    expected = ellipse(2 * PX, *(2 * value for value in HEADS[0]))
    assert (made.mask & expected).sum() / (made.mask | expected).sum() > 0.9


def test_heads_become_ellipses_or_are_given_up(drawing: Any) -> None:
    px = 4 * PX
    head = ellipse(px, *(4 * value for value in HEADS[0]))
    rough = head.copy()
    rough[20:36, 60:68] = False
    (made,) = drawing([picture(rough)], px=px, ellipse=0.9)
    assert (made.mask & head).sum() / (made.mask | head).sum() > 0.95
    assert not np.array_equal(made.mask, rough)
    assert made.lineage["sampler"].endswith("mask above 0.7, as an ellipse")
    (refused,) = drawing([picture(rough)], px=px, ellipse=0.99)
    assert "overlaps its ellipse by 0.9" in str(refused.failure)


def test_a_pair_that_is_given_up_is_drawn_again_from_other_noise(
    monkeypatch: pytest.MonkeyPatch, inpainting_base: Base
) -> None:
    asked: list[list[int]] = []
    good, blank = picture(ellipse(PX, *HEADS[0])), picture(np.zeros((PX, PX), np.bool_))

    def drawn(base: Base, prompts: Sequence[str], seeds: Sequence[int], **_: Any) -> NDArray[np.uint8]:
        asked.append(list(seeds))
        return np.stack([good if len(asked) == 2 or number == 1 else blank for number in range(len(seeds))])

    monkeypatch.setattr(sample, "pictures", drawn)
    tools = Tools(inpainting_base, adapters={}, donors=donors())
    done = apply(pair.Params(attempts=3), drafts(3), tools)
    assert [draft.failure for draft in done] == [None, None, None]
    assert [draft.lineage["candidates"] for draft in done] == [2, 1, 2]
    assert [len(seeds) for seeds in asked] == [3, 2]
    assert len({seed for seeds in asked for seed in seeds}) == 5


def test_without_a_training_mask_of_its_label_a_draft_fails(inpainting_base: Base) -> None:
    (draft,) = drafts(1)
    (made,) = apply(
        pair.Params(steps=1), [replace(draft, label="benign")], Tools(inpainting_base, adapters={}, donors=donors())
    )
    assert "no training mask of label 'benign'" in str(made.failure)


@pytest.mark.parametrize("kind", ["inpainting_base", "text_base"])
def test_another_batch_size_changes_no_pixel(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random base draws no heads: any mask will do.
    monkeypatch.setattr(pair, "mask_of", lambda level, threshold, opening: ellipse(PX, *HEADS[0]))
    tools = Tools(request.getfixturevalue(kind), adapters={}, donors=donors())
    results = [
        pair.apply(pair.Params(steps=2, attempts=1), drafts(3), replace(tools, batch=batch)) for batch in (8, 1, 2)
    ]
    assert len({draft.image.tobytes() for draft in results[0]}) == 3
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one.image, another.image)
            assert one.lineage == another.lineage
