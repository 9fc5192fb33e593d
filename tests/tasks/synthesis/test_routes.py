"""What lists of stages draw, and what they ask for."""

import pytest

from tasks.synthesis import (
    StageParams,
    attributes_of,
    harmonize,
    layout,
    learned,
    lesion,
    levels,
    needs_background,
    pair,
    picture,
    segmentation,
)

STAGED: list[StageParams] = [layout.Params(), lesion.Params(), harmonize.Params(), levels.Params()]


def test_an_adapter_learns_what_the_stages_draw() -> None:
    assert learned(STAGED) == learned(STAGED[:2]) == "lesion"
    assert learned([picture.Params()]) == learned([segmentation.Params(), picture.Params()]) == "picture"
    assert learned([pair.Params()]) == "pair"


def test_only_lesions_need_a_background() -> None:
    assert needs_background(STAGED)
    assert not needs_background([segmentation.Params(), picture.Params()])
    assert not needs_background([pair.Params()])


def test_stages_of_two_routes_or_in_a_senseless_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"put a lesion into a picture \(harmonize\) and draw pictures whole \(pair\)"):
        learned([pair.Params(), harmonize.Params()])
    for stages in (
        [picture.Params(), segmentation.Params()],
        [segmentation.Params()],
        [segmentation.Params(), pair.Params()],
        [pair.Params(), pair.Params()],
    ):
        with pytest.raises(ValueError, match="expected picture, segmentation and then picture, or pair"):
            learned(stages)


def test_captions_carry_the_attributes_of_the_segmentation_stage() -> None:
    named = segmentation.Params(attributes=("margin", "orientation"))
    assert attributes_of([named, picture.Params()]) == ("margin", "orientation")
    assert attributes_of(STAGED) == attributes_of([picture.Params()]) == ()
