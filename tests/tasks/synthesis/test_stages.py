import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from tasks.synthesis import Draft, StageParams, Tools, apply, harmonize, layout, lesion
from tasks.synthesis.diffusion.base import Base
from tests.fakes.drafts import donors, drafts, sector

PX = 32
STAGES: list[StageParams] = [
    layout.Params(smallest=0.1),
    lesion.Params(steps=3, candidates=2),
    harmonize.Params(steps=4, strength=0.5),
]


def run(items: list[Draft], tools: Tools, stages: list[StageParams] = STAGES) -> list[Draft]:
    for stage in stages:
        items = apply(stage, items, tools)
    return items


@pytest.fixture(params=["inpainting_base", "text_base"])
def tools(request: pytest.FixtureRequest) -> Tools:
    both = [*donors(PX), *donors(PX, "malignant")]
    return Tools(base=request.getfixturevalue(request.param), adapters={}, donors=both, batch=3)


def test_outside_the_region_the_background_is_bit_identical(tools: Tools) -> None:
    background, _ = sector(PX)
    for draft in run([*drafts(3, background), *drafts(3, background, "malignant")], tools):
        assert draft.failure is None
        assert draft.mask is not None
        assert draft.region is not None
        np.testing.assert_array_equal(draft.image[~draft.region], background[~draft.region])
        assert (draft.image[draft.mask] != background[draft.mask]).any()
        assert draft.region[draft.mask].all()
        assert not draft.region.all()
        assert draft.lineage["outside_changed_px"] == 0
        assert draft.lineage["base_digest"] == tools.base.digest


def test_a_sample_is_the_same_in_any_batch_and_company(tools: Tools) -> None:
    background, _ = sector(PX)
    together = run([*drafts(4, background), *drafts(2, background, "malignant")], tools)
    alone = [
        run([draft], replace(tools, batch=1))[0]
        for draft in [*drafts(4, background), *drafts(2, background, "malignant")]
    ]
    for one, other in zip(together, alone, strict=True):
        assert one.id == other.id
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.region, other.region)
        # kernels round differently by batch size; the noise is the same
        assert np.abs(one.image.astype(int) - other.image).max() <= 2


def test_threads_sharing_a_base_make_what_one_thread_makes(tools: Tools) -> None:
    background, _ = sector(PX)
    expected = run(drafts(3, background), tools)
    made: dict[int, list[Draft]] = {}

    def work(number: int) -> None:
        made[number] = run(drafts(3, background), tools)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        for one, other in zip(made[number], expected, strict=True):
            np.testing.assert_array_equal(one.image, other.image)


def test_the_critic_keeps_its_favourite_candidate(inpainting_base: Base) -> None:
    background, _ = sector(PX)
    seen: list[NDArray[np.uint8]] = []

    def darkest(images: NDArray[np.uint8], masks: NDArray[np.bool_], labels: Sequence[str]) -> NDArray[np.float64]:
        seen.append(images)
        return np.array([-float(image[mask].mean()) for image, mask in zip(images, masks, strict=True)])

    tools = Tools(base=inpainting_base, adapters={}, donors=donors(PX), critic=darkest)
    params = lesion.Params(steps=2, candidates=4)
    placed = apply(layout.Params(), drafts(1, background), tools)
    made = apply(params, placed, tools)[0]
    scores = [float(image[made.mask].mean()) for image in seen[0]]
    np.testing.assert_array_equal(made.image, seen[0][int(np.argmin(scores))])
    assert len({image.tobytes() for image in seen[0]}) == 4
    assert made.lineage["critic"] == pytest.approx(-min(scores))
    assert made.lineage["candidates"] == 4


def test_chosen_early_only_the_favourite_is_finished_and_the_row_says_so(inpainting_base: Base) -> None:
    background, _ = sector(PX)
    asked: list[int] = []

    def last(images: NDArray[np.uint8], masks: NDArray[np.bool_], labels: Sequence[str]) -> NDArray[np.float64]:
        asked.append(len(images))
        return np.arange(len(images), dtype=np.float64)

    tools = Tools(base=inpainting_base, adapters={}, donors=donors(PX), critic=last)
    placed = apply(layout.Params(), drafts(2, background), tools)
    in_full = apply(lesion.Params(steps=4, candidates=3), placed, tools)
    assert asked == [3, 3]
    early = apply(lesion.Params(steps=4, candidates=3, early=0.5, spacing="uniform"), placed, tools)
    assert asked == [3, 3, 3, 3, 1, 1]
    for one, other in zip(in_full, early, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.lineage["sampler"], other.lineage["sampler"]) == (
            "DPM-Solver++(2M)",
            "DPM-Solver++(2M), chosen at 0.5",
        )
        assert one.lineage["candidates"] == other.lineage["candidates"] == 3


def test_a_failed_draft_passes_through_in_its_place(tools: Tools) -> None:
    background, _ = sector(PX)
    items = drafts(3, background)
    items[1] = replace(items[1], label="unheard of")
    counted: list[int] = []
    made = run(items, replace(tools, advance=counted.append))
    assert [draft.id for draft in made] == [draft.id for draft in items]
    assert made[1].failure is not None
    assert made[1].image is background
    assert made[0].failure is None
    assert sum(counted) == len(items) * len(STAGES)


def test_stages_in_the_wrong_order_say_what_is_missing(tools: Tools) -> None:
    background, _ = sector(PX)
    for stage in STAGES[1:]:
        failure = apply(stage, drafts(1, background), tools)[0].failure
        assert failure is not None
        assert "expected" in failure


def test_a_stage_is_chosen_by_its_name() -> None:
    adapter: TypeAdapter[StageParams] = TypeAdapter(StageParams)
    assert isinstance(adapter.validate_python({"stage": "lesion", "steps": 7}), lesion.Params)
    with pytest.raises(ValidationError, match="layout"):
        adapter.validate_python({"stage": "lesions"})
    with pytest.raises(ValidationError, match="strength"):
        adapter.validate_python({"stage": "harmonize", "strength": 1.5})


def test_a_larger_image_is_changed_only_in_the_window_around_its_lesion(inpainting_base: Base) -> None:
    background, _ = sector(3 * PX)
    tools = Tools(base=inpainting_base, adapters={}, donors=donors(3 * PX))
    for draft in run(drafts(2, background), tools, [layout.Params(), lesion.Params(steps=2)]):
        assert draft.region is not None
        np.testing.assert_array_equal(draft.image[~draft.region], background[~draft.region])
        assert (draft.image != background).any()


def test_an_image_smaller_than_the_model_is_drawn_enlarged(inpainting_base: Base) -> None:
    background, _ = sector(24)
    tools = Tools(base=inpainting_base, adapters={}, donors=donors(24))
    stages: list[StageParams] = [layout.Params(), lesion.Params(steps=2), harmonize.Params(steps=4)]
    for draft in run(drafts(2, background), tools, stages):
        assert draft.image.shape == (24, 24)
        assert draft.region is not None
        np.testing.assert_array_equal(draft.image[~draft.region], background[~draft.region])
        assert (draft.image != background).any()
