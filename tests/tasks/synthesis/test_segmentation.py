from collections import Counter
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from tasks.imaging import ellipse as ellipses
from tasks.synthesis import Donor, Draft, Tools, apply, attributes, deformation, segmentation
from tasks.synthesis.diffusion.base import Base
from tests.fakes import drafts as fakes
from tests.tasks.synthesis.test_ellipse import heads
from tests.tasks.synthesis.test_layout import seen_at

PX = 96
NOTHING = cast(Base, None)  # segmentation asks no model


def blank(count: int, label: str = "benign") -> list[Draft]:
    """Drafts without a picture, as they are where one is drawn whole."""
    black = np.zeros((PX, PX), np.uint8)
    made = fakes.drafts(count, black, label)
    return [replace(draft, background_id=None, background_kind=None, group=f"x/synthetic/{draft.id}") for draft in made]


def lesions(label: str = "benign") -> list[Donor]:
    flat = seen_at(PX, 50, 48, 14, label)
    upright = [replace(donor, id=f"{donor.id}-up", mask=np.ascontiguousarray(donor.mask.T)) for donor in flat]
    return [replace(donor, pixel_mm=0.3 if number % 2 else 0.31) for number, donor in enumerate([*flat, *upright])]


def made(params: segmentation.Params, drafts: list[Draft], donors: list[Donor]) -> list[Draft]:
    return apply(params, drafts, Tools(base=NOTHING, adapters={}, donors=donors))


@pytest.mark.parametrize("shapes", ["donors", "model"])
def test_a_mask_is_new_lies_in_the_frame_of_a_scan_and_has_its_pixel_size(shapes: segmentation.Shapes) -> None:
    donors = lesions()
    params = segmentation.Params(shapes=shapes)
    found = [draft for draft in made(params, blank(20), donors) if draft.mask is not None]
    assert len(found) > 10
    for draft in found:
        assert draft.mask is not None
        assert all(deformation.overlap(draft.mask, donor.mask) < deformation.SAME_SHAPE for donor in donors)
        assert draft.pixel_mm in (0.3, 0.31)
        assert draft.region is None
        assert not draft.image.any()
        assert draft.lineage["mask_kind"] == ("donor" if shapes == "donors" else "model")


def test_a_mask_from_a_donor_is_of_its_group_and_one_from_a_model_of_none() -> None:
    donors = lesions()
    group = {donor.id: donor.group for donor in donors}
    for draft in made(segmentation.Params(), blank(8), donors):
        assert draft.group == group[str(draft.lineage["mask_id"])]
    for draft in made(segmentation.Params(shapes="model"), blank(8), donors):
        assert draft.group == f"x/synthetic/{draft.id}"


def test_a_healthy_sample_gets_a_blank_mask() -> None:
    (draft,) = made(segmentation.Params(attributes=("margin",)), blank(1, "normal"), lesions())
    assert draft.failure is None
    assert draft.mask is not None
    assert not draft.mask.any()
    assert draft.attributes == ()
    assert "mask_id" not in draft.lineage


@pytest.mark.parametrize("shapes", ["donors", "model"])
def test_quotas_are_kept_and_the_words_are_measured_on_the_mask(shapes: segmentation.Shapes) -> None:
    donors = lesions()
    params = segmentation.Params(
        shapes=shapes, orientation={"parallel": 1, "not parallel": 3}, attributes=("orientation",), attempts=100
    )
    found = [draft for draft in made(params, blank(24), donors) if draft.failure is None]
    assert len(found) == 24
    counts = Counter(draft.lineage["orientation"] for draft in found)
    assert counts["not parallel"] == pytest.approx(18, abs=2)
    margins = attributes.margins_of([(donor.label, donor.mask) for donor in donors])
    for draft in found:
        assert draft.attributes == attributes.words(["orientation"], draft.mask, None, margins)
        assert draft.attributes == (
            ("taller than wide",) if draft.lineage["orientation"] == "not parallel" else ("parallel",)
        )


def test_a_sample_depends_on_no_neighbour() -> None:
    params = segmentation.Params(orientation={"parallel": 1, "not parallel": 1})
    together, alone = made(params, blank(6), lesions()), made(params, blank(6)[4:5], lesions())
    assert together[4].mask is not None
    np.testing.assert_array_equal(together[4].mask, alone[0].mask)


def test_heads_are_ellipses_with_a_pixel_size_and_a_trimester_by_quota() -> None:
    donors = heads(40)
    share = {"first": 0.25, "second": 0.75}
    params = segmentation.Params.model_validate({"shapes": "ellipse", "trimester": share, "attributes": ["trimester"]})
    donors = [
        replace(donor, pixel_mm=cast(float, donor.pixel_mm) * (0.4 + number % 5 / 5))
        for number, donor in enumerate(donors)
    ]
    found = made(params, blank(40, "head"), donors)
    assert [draft.failure for draft in found] == [None] * 40
    trimesters = Counter(draft.attributes for draft in found)
    assert trimesters[("first trimester",)] == pytest.approx(10, abs=2)
    assert sum(trimesters.values()) == 40
    assert set(trimesters) == {("first trimester",), ("second trimester",)}
    for draft in found:
        assert draft.mask is not None
        again = ellipses.of(draft.mask).filled((PX, PX))
        assert (again & draft.mask).sum() / (again | draft.mask).sum() > 0.97
        assert draft.lineage["mask_kind"] == "ellipse"
        assert draft.group == f"x/synthetic/{draft.id}"


def test_failures_say_what_is_missing() -> None:
    unknown = made(segmentation.Params(), blank(1, "malignant"), lesions())[0].failure
    assert unknown == "no whole donor mask of class 'malignant'; the training groups hold masks of: benign"
    few = made(segmentation.Params(shapes="ellipse"), blank(1, "head"), heads(4))[0].failure
    assert few == (
        "class 'head': 4 masks to learn ellipses from; expected 6 or more: add scans, or set shapes to donors"
    )
    none = made(segmentation.Params(shapes="ellipse"), blank(1, "head"), lesions())[0].failure
    assert none == "no mask of class 'head' to learn ellipses from"
    third = segmentation.Params(shapes="ellipse", trimester={"third": 1})
    small = [replace(donor, pixel_mm=0.1) for donor in heads(10)]
    assert "no head of the third trimester" in (made(third, blank(1, "head"), small)[0].failure or "")
    unsized = [replace(donor, pixel_mm=None) for donor in heads(10)]
    assert "not every training mask has a pixel size" in (made(third, blank(1, "head"), unsized)[0].failure or "")


def test_shares_of_trimesters_need_ellipses() -> None:
    with pytest.raises(ValueError, match="trimesters are of heads"):
        segmentation.Params(trimester={"first": 1})
    with pytest.raises(ValueError, match="every share of trimester must be above 0"):
        segmentation.Params(shapes="ellipse", trimester={})


def test_quotas_may_be_given_by_label() -> None:
    params = segmentation.Params.model_validate({"orientation": {"benign": {"not parallel": 1}}, "attempts": 100})
    donors = [*lesions(), *lesions("malignant")]
    found = made(params, [*blank(6), *blank(6, "malignant")], donors)
    assert {draft.lineage["orientation"] for draft in found if draft.label == "benign"} == {"not parallel"}
    assert {draft.lineage["orientation"] for draft in found if draft.label == "malignant"} > {"parallel"}
    with pytest.raises(ValueError, match="every share must be above 0"):
        segmentation.Params.model_validate({"orientation": {"benign": {}}})
