from dataclasses import replace
from typing import Literal, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.synthesis import Donor, Tools, deformation, layout, shape, tissue
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
            assert all(deformation.overlap(draft.mask, d.mask) < deformation.SAME_SHAPE for d in tools.donors)


def test_masks_of_two_samples_differ_and_those_of_one_seed_do_not(tools: Tools) -> None:
    background, _ = sector(PX)
    first = layout.apply(layout.Params(), drafts(6, background), tools)
    again = layout.apply(layout.Params(), drafts(6, background)[3:], tools)
    drawn = [draft.mask for draft in first]
    assert len({mask.tobytes() for mask in drawn if mask is not None}) == 6
    for one, other in zip(drawn[3:], [draft.mask for draft in again], strict=True):
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


def seen_at(px: int, row: float, column: float, count: int, label: str = "benign") -> list[Donor]:
    """Donors of like size and different shape around one place of a picture that is all tissue."""
    rng = np.random.default_rng(3)
    tissue = np.full((px, px), 100, np.uint8)
    return [
        Donor(
            f"{label}-{number}",
            ellipse(px, row + rng.normal(), column + rng.normal(), rng.uniform(6, 9), rng.uniform(9, 14)),
            label,
            f"p{number}",
            image=tissue,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("shapes", ["donors", "model"])
def test_lesions_lie_where_those_of_the_class_were_seen(shapes: Literal["donors", "model"], text_base: Base) -> None:
    background = np.full((PX, PX), 100, np.uint8)
    tools = Tools(base=text_base, adapters={}, donors=seen_at(PX, 60, 30, 14))
    centres: list[tuple[float, float]] = []
    for draft in layout.apply(layout.Params(shapes=shapes), drafts(30, background), tools):
        assert draft.mask is not None
        centres.append(tuple(float(axis.mean()) for axis in np.nonzero(draft.mask)))
    rows, columns = np.array(centres).T
    assert abs(rows.mean() - 60) < 4
    # left and right are alike
    assert np.abs(np.abs(columns - PX / 2) - (PX / 2 - 30)).mean() < 6
    assert {bool(left) for left in columns < PX / 2} == {True, False}


def test_a_given_depth_is_kept_whatever_was_seen(text_base: Base) -> None:
    background = np.full((PX, PX), 100, np.uint8)
    tools = Tools(base=text_base, adapters={}, donors=seen_at(PX, 70, 30, 14))
    params = layout.Params(typical_depth=0.3, depth_spread=0.02)
    for draft in layout.apply(params, drafts(10, background), tools):
        assert draft.mask is not None
        assert abs(np.nonzero(draft.mask)[0].mean() / PX - 0.3) < 0.1


def test_masks_of_a_model_equal_no_real_one_and_name_the_nearest(text_base: Base) -> None:
    background = np.full((PX, PX), 100, np.uint8)
    tools = Tools(base=text_base, adapters={}, donors=seen_at(PX, 50, 48, 14))
    for draft in layout.apply(layout.Params(shapes="model"), drafts(20, background), tools):
        if draft.mask is None:
            assert draft.failure is not None
            continue
        alike = {donor.id: deformation.overlap(draft.mask, donor.mask) for donor in tools.donors}
        assert max(alike.values()) < deformation.SAME_SHAPE
        assert alike[str(draft.lineage["mask_id"])] == max(alike.values())
        assert draft.lineage["mask_kind"] == "model"


def test_each_class_may_have_its_own_source_of_shapes(text_base: Base) -> None:
    background = np.full((PX, PX), 100, np.uint8)
    benign = seen_at(PX, 50, 48, 14)
    malignant = [replace(donor, id=f"m-{donor.id}", label="malignant") for donor in benign]
    tools = Tools(base=text_base, adapters={}, donors=[*benign, *malignant])
    params = layout.Params(shapes={"benign": "model"})
    made = layout.apply(params, [*drafts(4, background), *drafts(4, background, "malignant")], tools)
    kinds = {(draft.label, draft.lineage["mask_kind"]) for draft in made if draft.mask is not None}
    assert kinds == {("benign", "model"), ("malignant", "donor")}


def test_a_model_of_too_few_masks_is_refused_with_the_way_out(tools: Tools) -> None:
    background, _ = sector(PX)
    failure = layout.apply(layout.Params(shapes="model"), drafts(1, background), tools)[0].failure
    assert failure is not None
    assert "3 whole masks of class 'benign'; a shape model needs 12 or more: set shapes to donors" in failure


@pytest.mark.parametrize("shapes", ["donors", "model"])
def test_orientation_is_what_was_asked_for_and_what_the_mask_shows(
    shapes: Literal["donors", "model"], text_base: Base
) -> None:
    background = np.full((PX, PX), 100, np.uint8)
    donors = seen_at(PX, 50, 48, 14)
    upright = [replace(donor, id=f"{donor.id}-up", mask=np.ascontiguousarray(donor.mask.T)) for donor in donors]
    tools = Tools(base=text_base, adapters={}, donors=[*donors, *upright])
    params = layout.Params(shapes=shapes, orientation={"not parallel": 1.0})
    made = [draft for draft in layout.apply(params, drafts(10, background), tools) if draft.mask is not None]
    assert len(made) > 5
    for draft in made:
        assert draft.mask is not None
        rows, columns = np.nonzero(draft.mask)
        assert rows.std() > columns.std()
        assert draft.lineage["orientation"] == "not parallel"
        assert draft.lineage["margin"] in shape.MARGINS


def test_an_empty_or_negative_quota_is_refused() -> None:
    for shares in ({}, {"circumscribed": 0.0}):
        with pytest.raises(ValueError, match="every share must be above 0"):
            layout.Params.model_validate({"margin": shares})


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.floats(4, 20),
    flat=st.floats(0.6, 2.5),
    shapes=st.sampled_from(["donors", "model"]),
    learned=st.booleans(),
)
def test_whatever_the_masks_and_the_picture_a_lesion_lies_in_tissue(
    seed: int, size: float, flat: float, shapes: Literal["donors", "model"], learned: bool
) -> None:
    rng = np.random.default_rng(seed)
    picture, inside = sector(PX, seed)
    donors = [
        Donor(
            str(number),
            ellipse(PX, rng.uniform(35, 60), rng.uniform(35, 60), size * rng.uniform(0.8, 1.2), size * flat),
            "benign",
            "p",
            image=picture if learned else None,
        )
        for number in range(13)
    ]
    nothing = cast(Base, None)  # layout asks no model
    params = layout.Params(shapes=shapes)
    (draft,) = layout.apply(params, drafts(1, picture), Tools(base=nothing, adapters={}, donors=donors))
    if draft.mask is None:
        assert draft.failure is not None
        return
    rows, columns = np.nonzero(draft.mask)
    assert inside[rows, columns].all()
    assert (rows >= inside.argmax(axis=0)[columns] + params.skin * PX - 2).all()
    assert params.smallest <= np.sqrt(draft.mask.sum()) / PX <= params.largest
    depth = tissue.place_of(picture, draft.mask).depth
    assert 0 < depth < 1
    assert all(deformation.overlap(draft.mask, donor.mask) < deformation.SAME_SHAPE for donor in donors)
