"""The verb of synthesis: what a sample starts from, and what its row says."""

from typing import cast

import numpy as np
import pytest

from storage.records import Ref
from tasks import plan as planning
from tasks.imaging.ellipse import Ellipse
from tasks.ingest import KeptScan
from tasks.synthesis import Draft, StageParams, Tools, layout, lesion, pair, picture, segmentation
from tasks.synthesize import Generator, drafts_of, row_of
from tests.fakes.drafts import drafts

PX = 64
NOTHING = Ref(key="none", sha256="0" * 64)
TOOLS = cast(Tools, None)  # drafts without synthetic backgrounds ask no model
WHOLE: list[StageParams] = [segmentation.Params(), picture.Params()]


def generator(stages: list[StageParams], **changes: object) -> Generator:
    adapter = Ref(key="adapter", sha256="a" * 64, rows=3)
    known = {"base": "embedded", "decoder": NOTHING, "adapters": {"head": adapter, "benign": adapter}}
    return Generator.model_validate({**known, "harmonizer": NOTHING, "stages": stages, **changes})


def scan(number: int, label: str, split: str = "train") -> KeptScan:
    image = np.full((PX, PX), 10 * number + 50, np.uint8)
    return KeptScan(f"s{number}", image, None, label, "fetal head", "hc18", f"g{number}", split, 0.2)


def planned(count: int = 3) -> list[planning.Planned]:
    return planning.planned(planning.Plan(samples=count, labels={"head": 1.0}), 0, range(count))


def test_a_sample_that_is_drawn_whole_starts_from_nothing_and_needs_no_healthy_scan() -> None:
    made = drafts_of([scan(0, "head"), scan(1, "head", "test")], planned(), generator(WHOLE), TOOLS)
    assert [draft.background_id for draft in made] == [None] * 3
    assert [draft.group for draft in made] == [f"hc18/synthetic/{draft.id}" for draft in made]
    assert [draft.point for draft in made] == [sample.point for sample in planned()]
    for draft in made:
        assert draft.image.shape == (PX, PX)
        assert not draft.image.any()
        assert (draft.background_kind, draft.pixel_mm, draft.organ) == (None, None, "fetal head")


def test_a_lesion_starts_from_a_healthy_training_scan_or_the_way_out_is_named() -> None:
    stages: list[StageParams] = [layout.Params(), lesion.Params()]
    kept = [scan(0, "head"), scan(1, "normal"), scan(2, "normal", "val")]
    assert {draft.background_id for draft in drafts_of(kept, planned(), generator(stages), TOOLS)} == {"s1"}
    with pytest.raises(ValueError, match=r"no normal scan in the training split.*draw pictures whole"):
        drafts_of([scan(0, "head")], planned(), generator(stages), TOOLS)


def head(**changes: object) -> Draft:
    (draft,) = drafts(1, np.zeros((PX, PX), np.uint8), "head")
    mask = Ellipse(32, 30, 24, 18, 0.3).filled((PX, PX))
    return Draft(**{**vars(draft), "mask": mask, "pixel_mm": 2.0, **changes})  # pyright: ignore[reportArgumentType]


def test_the_row_of_a_head_has_the_circumference_of_its_final_mask_in_mm() -> None:
    row = row_of(head(), "hc18", generator([pair.Params()]))
    exact = Ellipse(32, 30, 24, 18, 0.3).circumference * 2.0
    assert row["head_circumference_mm"] == pytest.approx(exact, rel=0.01)
    coarse = row_of(head(pixel_mm=4.0), "hc18", generator([pair.Params()]))
    assert coarse["head_circumference_mm"] == pytest.approx(2 * exact, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "benign"},
        {"pixel_mm": None},
        {"mask": None},
        {"mask": np.zeros((PX, PX), np.bool_)},
        {"failure": "no head"},
    ],
    ids=["no head", "no pixel size", "no mask", "blank mask", "failed"],
)
def test_what_is_no_head_of_known_size_has_no_circumference(changes: dict[str, object]) -> None:
    assert row_of(head(**changes), "hc18", generator([pair.Params()]))["head_circumference_mm"] is None


def test_a_row_names_the_controlnet_that_held_it_to_its_mask_if_there_was_one() -> None:
    trained = Ref(key="controlnet", sha256="c" * 64, rows=3)
    assert row_of(head(), "hc18", generator(WHOLE, controlnet=trained))["controlnet_digest"] == "c" * 64
    assert row_of(head(), "hc18", generator(WHOLE, controlnet=NOTHING))["controlnet_digest"] is None
    assert row_of(head(), "hc18", generator(WHOLE))["controlnet_digest"] is None
    assert generator(WHOLE, controlnet=trained).digests() != generator(WHOLE).digests()
