from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.documents import croissant, tally
from tasks.documents.card import render
from tasks.documents.facts import Facts
from tasks.documents.routes import ANNOTATED, COLLECTED, SYNTHETIC, Route, route
from tasks.documents.scorecard import judge
from tasks.synthesis import StageParams, pair, picture, segmentation
from tests.fakes.samples import SCORES
from tests.tasks.documents import described

WHOLE: dict[Route, list[StageParams]] = {
    "mask": [segmentation.Params(), picture.Params()],
    "prompt": [picture.Params()],
    "pair": [pair.Params()],
}


def drawn_whole(folder: Path, made: Route, **recipe: Any) -> Facts:
    """The facts of the filled folder as if its pictures had been drawn whole."""
    names = ("background_id", "background_kind", "outside_changed_px")
    rows = pq.read_table(folder / "metadata.parquet").drop_columns(list(names))
    for name in names:
        rows = rows.append_column(name, pa.nulls(len(rows), pa.string()))
    counted = tally.count(rows.to_batches(), pq.read_table(folder / "ledger.parquet").to_batches(), SCORES)
    stages = [stage.model_dump(mode="json") for stage in WHOLE[made]]
    facts = described.facts(folder)
    return replace(facts, tally=counted, recipe={**facts.recipe, "stages": stages, **recipe})


def test_every_route_is_told_by_the_stages_of_its_recipe() -> None:
    found = {made: route({"stages": [stage.model_dump() for stage in stages]}) for made, stages in WHOLE.items()}
    assert found == {made: made for made in WHOLE}
    assert route({"stages": [{"stage": "layout"}, {"stage": "lesion"}]}) == route({}) == "lesion"


@pytest.mark.parametrize("made", list(WHOLE))
def test_the_card_says_how_pictures_were_drawn_and_speaks_of_no_background(made: Route, described_folder: Path) -> None:
    facts = drawn_whole(described_folder, made)
    card = render(facts, judge(facts))
    assert SYNTHETIC[made].split(" synthetic", 1)[1] in card
    assert "drawn into the background" not in card
    assert "Every lesion" not in card


@pytest.mark.parametrize("made", list(WHOLE))
def test_the_scorecard_asks_for_no_background_where_there_is_none(made: Route, described_folder: Path) -> None:
    facts = drawn_whole(described_folder, made)
    criteria = {criterion.name: criterion for criterion in judge(facts).criteria}
    (asked,) = [check for check in criteria["comprehension"].checks if "how it was made" in check.asked]
    assert asked.verdict == "pass"
    assert "background" not in asked.asked
    named = [one.name for criterion in criteria.values() for one in criterion.measured]
    assert not [name for name in named if "background" in name or "declared region" in name]


@pytest.mark.parametrize("made", list(WHOLE))
def test_croissant_says_what_learned_from_patients_and_where_labels_come_from(
    made: Route, described_folder: Path
) -> None:
    of_patients = drawn_whole(described_folder, made, source={"dataset": "busi"})
    text = croissant.render(of_patients, described.files(described_folder))
    assert COLLECTED[made] in text
    assert ANNOTATED[made] in text
    assert "learned from scans of patients" in text
    simulated = drawn_whole(described_folder, made, source={"dataset": "phantom"})
    assert "no scan of a patient was used" in croissant.render(simulated, described.files(described_folder))


def test_lesions_drawn_into_scans_are_said_to_be(described_folder: Path) -> None:
    facts = described.facts(described_folder)
    assert "**Every lesion here is synthetic**, drawn into the background" in render(facts, judge(facts))
    (asked,) = [
        check
        for one in judge(facts).criteria
        for check in one.checks
        if check.asked.startswith("every kept row says how")
    ]
    assert "background_id" in asked.asked
