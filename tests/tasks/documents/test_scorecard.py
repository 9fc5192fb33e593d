import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from tasks.documents import licences, scorecard
from tasks.documents.facts import Facts
from tasks.documents.scorecard import Criterion, Scorecard, judge
from tests.tasks.documents import described

SEVEN = ["congruence", "coverage", "constraint", "completeness", "compliance", "comprehension", "consistency"]


@pytest.fixture
def facts(described_folder: Path) -> Facts:
    return described.facts(described_folder)


def _criterion(facts: Facts, name: str) -> Criterion:
    return next(criterion for criterion in judge(facts).criteria if criterion.name == name)


def test_all_seven_are_there_in_the_papers_order_and_each_says_what_was_not_measured(facts: Facts) -> None:
    card = judge(facts)
    assert [criterion.name for criterion in card.criteria] == SEVEN
    assert all(criterion.not_measured for criterion in card.criteria)


def test_it_follows_its_own_json_schema_and_reads_back(facts: Facts) -> None:
    text = scorecard.render(judge(facts))
    jsonschema.validate(json.loads(text), Scorecard.model_json_schema())
    assert Scorecard.model_validate_json(text) == judge(facts)
    assert scorecard.render(judge(facts)) == text


def test_set_scores_stand_as_they_were_measured_and_a_refused_one_stays_without_a_value(facts: Facts) -> None:
    fid, kid = _criterion(facts, "congruence").measured
    assert fid.model_dump() == described.FID.model_dump()
    assert (kid.value, kid.note) == (None, "too few")


def test_a_verdict_stands_only_where_something_was_asked_for(facts: Facts) -> None:
    assert _criterion(facts, "congruence").verdict == "pass"
    assert _criterion(replace(facts, gates={}), "congruence").verdict == "no criterion"
    assert _criterion(facts, "coverage").verdict == "no criterion"
    assert _criterion(replace(facts, limits={}), "constraint").verdict == "no criterion"


def test_a_missed_gate_fails_the_criterion_it_is_about(facts: Facts) -> None:
    missed = replace(facts, problems=["fid 7.00 > 5"])
    assert _criterion(missed, "congruence").verdict == "fail"
    assert "fid 7.00 > 5" in _criterion(missed, "congruence").checks[0].found
    assert _criterion(missed, "completeness").verdict == "pass"


def test_a_gate_that_only_just_holds_warns(facts: Facts) -> None:
    doubted = replace(facts, outcome=facts.outcome.model_copy(update={"warnings": ["fid 1.23 ≤ 5, but 6 is possible"]}))
    assert _criterion(doubted, "congruence").verdict == "warn"
    assert "6 is possible" in _criterion(doubted, "congruence").checks[0].found


def test_numbers_that_do_not_add_up_fail_completeness(facts: Facts) -> None:
    outcome = facts.outcome.model_copy(update={"failed": facts.outcome.failed + 1})
    assert _criterion(replace(facts, outcome=outcome), "completeness").verdict == "fail"


def test_a_row_without_a_label_fails_completeness_and_names_the_column(facts: Facts) -> None:
    tally = replace(facts.tally, filled={**facts.tally.filled, "label": facts.tally.kept - 1})
    found = _criterion(replace(facts, tally=tally), "completeness")
    assert found.verdict == "fail"
    assert any("missing somewhere: label" in check.found for check in found.checks)


def test_a_row_that_does_not_name_its_adapter_fails_comprehension(facts: Facts) -> None:
    tally = replace(facts.tally, filled={**facts.tally.filled, "adapter_digest": 0})
    assert _criterion(replace(facts, tally=tally), "comprehension").verdict == "fail"


def test_an_unknown_licence_is_a_warning_and_its_text_is_there(facts: Facts) -> None:
    assert _criterion(facts, "compliance").verdict == "pass"
    terms = licences.combine([licences.Licensed(name="scans of folder", licence="as stated by the owner")])
    found = _criterion(replace(facts, terms=terms), "compliance")
    assert found.verdict == "warn"
    assert "scans of folder" in found.checks[0].found


def test_a_patient_in_two_splits_fails_consistency(facts: Facts) -> None:
    found = _criterion(replace(facts, tally=replace(facts.tally, torn=["g7"])), "consistency")
    assert found.verdict == "fail"
    assert "g7" in found.checks[0].found


def test_copies_are_not_measured_where_nobody_looked_for_them(facts: Facts) -> None:
    assert "copies of training pictures" in _criterion(facts, "compliance").not_measured


def test_shares_come_with_both_counts(facts: Facts) -> None:
    for criterion in judge(facts).criteria:
        for measured in criterion.measured:
            if " of " in measured.note and measured.note[0].isdigit():
                part, whole = measured.note.split(" of ")
                assert measured.value == pytest.approx(int(part) / int(whole), abs=1e-6)
                assert measured.n_synthetic == int(whole)


def test_it_says_whose_headings_these_are(facts: Facts) -> None:
    assert "10.1038/s44172-025-00450-1" in judge(facts).framework
    assert "sonoforge's" in judge(facts).framework
