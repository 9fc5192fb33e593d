import numpy as np
import pytest

from tasks.synthesis import Donor, Tools, layout
from tasks.synthesis.diffusion.base import Base
from tests.fakes.drafts import donors, drafts, ellipse, sector

PX = 96


@pytest.fixture
def tools(text_base: Base) -> Tools:
    return Tools(base=text_base, adapters={}, donors=donors(PX))


def test_a_mask_lies_in_tissue_below_the_skin_and_off_the_edges(tools: Tools) -> None:
    background, inside = sector(PX)
    params = layout.Params()
    placed = layout.apply(params, drafts(40, background), tools)
    surface = inside.argmax(axis=0)
    for draft in placed:
        assert draft.failure is None
        assert draft.mask is not None
        rows, columns = np.nonzero(draft.mask)
        assert inside[rows, columns].all()
        # two pixels of tolerance: the picture's outline is found on a smoothed image
        assert (rows >= surface[columns] + params.skin * PX - 2).all()
        assert rows.max() < np.flatnonzero(inside.any(axis=1))[-1]


def test_no_donor_mask_is_ever_used_unchanged(tools: Tools) -> None:
    background, _ = sector(PX)
    params = layout.Params(elastic=0.01, turn_degrees=0, smallest_scale=0.999, largest_scale=1.001)
    for draft in layout.apply(params, drafts(30, background), tools):
        if draft.mask is not None:
            assert all(layout.overlap(draft.mask, d.mask) < layout.SAME_SHAPE for d in tools.donors)


def test_masks_of_two_samples_differ_and_those_of_one_seed_do_not(tools: Tools) -> None:
    background, _ = sector(PX)
    first = layout.apply(layout.Params(), drafts(6, background), tools)
    again = layout.apply(layout.Params(), drafts(6, background)[3:], tools)
    masks = [draft.mask for draft in first]
    assert len({mask.tobytes() for mask in masks if mask is not None}) == 6
    for one, other in zip(masks[3:], [draft.mask for draft in again], strict=True):
        np.testing.assert_array_equal(one, other)


def test_lesions_keep_their_size_in_mm(text_base: Base) -> None:
    background, _ = sector(PX)
    wide = Donor("d", ellipse(PX, 48, 48, 20, 20), "benign", "p", pixel_mm=0.2)
    tools = Tools(base=text_base, adapters={}, donors=[wide])
    params = layout.Params(smallest_scale=0.999, largest_scale=1.001)
    sizes: list[float] = []
    for draft in drafts(12, background):
        coarse = layout.apply(params, [type(draft)(**{**draft.__dict__, "pixel_mm": 0.4})], tools)[0]
        assert coarse.mask is not None
        sizes.append(float(np.sqrt(coarse.mask.sum())))
    assert np.mean(sizes) == pytest.approx(np.sqrt(wide.mask.sum()) / 2, rel=0.1)


def test_a_draft_fails_with_the_reason_where_nothing_can_be_placed(tools: Tools) -> None:
    background, _ = sector(PX)
    black = np.zeros((PX, PX), np.uint8)
    thin = np.zeros((PX, PX), np.uint8)
    thin[40:56] = 120
    unknown = layout.apply(layout.Params(), drafts(1, background, "malignant"), tools)[0]
    expected = "no whole donor mask of class 'malignant'; the training groups hold masks of: benign"
    assert unknown.failure == expected
    assert "no tissue" in (layout.apply(layout.Params(), drafts(1, black), tools)[0].failure or "")
    cramped = layout.apply(layout.Params(smallest=0.3), drafts(1, thin), tools)[0].failure
    assert cramped is not None
    assert "fits" in cramped


def test_a_mask_cut_off_by_the_edge_of_its_image_is_no_donor(text_base: Base) -> None:
    background, _ = sector(PX)
    cut = Donor("cut", ellipse(PX, 48, 0, 20, 20), "benign", "p")
    blank = Donor("blank", np.zeros((PX, PX), np.bool_), "benign", "p")
    tools = Tools(base=text_base, adapters={}, donors=[cut, blank])
    failure = layout.apply(layout.Params(), drafts(1, background), tools)[0].failure
    assert failure is not None
    assert "no whole donor mask" in failure


def test_parameters_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="expected smallest below largest"):
        layout.Params(smallest_scale=1.5, largest_scale=1.0)
