from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from tasks.documents import licences
from tasks.documents.card import render
from tasks.documents.facts import Facts
from tasks.documents.scorecard import judge
from tests.tasks.documents import described


@pytest.fixture
def facts(described_folder: Path) -> Facts:
    return described.facts(described_folder)


def _rendered(facts: Facts) -> str:
    return render(facts, judge(facts))


def _header(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def _of(*licences_stated: str) -> licences.Combined:
    return licences.combine([licences.Licensed(name=f"source {text}", licence=text) for text in licences_stated])


def test_the_header_is_what_the_hub_reads(facts: Facts) -> None:
    header = _header(_rendered(facts))
    assert header["license"] == "apache-2.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "val", "path": "data/val-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        }
    ]


def test_the_hubs_own_library_reads_it(facts: Facts) -> None:
    for terms in (facts.terms, _of("CC BY 4.0", "creativeml-openrail-m"), _of("Hospital X, ask Jane")):
        parsed = huggingface_hub.DatasetCard(_rendered(replace(facts, terms=terms)))
        assert isinstance(parsed.data, huggingface_hub.DatasetCardData)
        assert parsed.data.license in ("apache-2.0", ["cc-by-4.0", "creativeml-openrail-m"], "other")
        assert parsed.data.pretty_name == "demo"
        assert parsed.data.task_categories == ["image-classification", "image-segmentation"]


def test_a_licence_the_hub_does_not_know_is_named_and_warned_of(facts: Facts) -> None:
    text = _rendered(replace(facts, terms=_of("Hospital X, ask Jane")))
    header = _header(text)
    assert header["license"] == "other"
    assert header["license_name"] == "hospital-x-ask-jane"
    assert "**Licence not settled:** source Hospital X, ask Jane comes on terms that are not known" in text


def test_a_settled_licence_brings_no_warning_but_its_duties(facts: Facts) -> None:
    text = _rendered(replace(facts, terms=_of("CC BY-NC-SA 4.0", "MIT")))
    assert "not settled" not in text
    assert "**CC BY-NC-SA 4.0**" in text
    assert "no commercial use" in text
    assert "under the same licence" in text
    assert "`CC-BY-NC-SA-4.0`" in text


def test_the_counts_add_up_in_the_text(facts: Facts) -> None:
    outcome = facts.outcome
    rejected = outcome.rejected["segmenter_dice"]
    text = _rendered(facts)
    assert f"{outcome.planned} planned = {outcome.kept} kept + {rejected} rejected + {outcome.failed} failed" in text
    assert f"| segmenter_dice | {rejected} |" in text
    for split, labels in facts.tally.samples.items():
        cells = [str(labels.get(label, 0)) for label in facts.tally.by_label()]
        assert f"| {split} | {' | '.join(cells)} | {sum(labels.values())} |" in text


def test_scores_stand_with_interval_floor_n_and_extractor(facts: Facts) -> None:
    text = _rendered(facts)
    assert "| fid | 1.23 | 1 … 1.5 | 0.3 (0.2 … 0.4) | 4.12 | 100 | 12 | x@0123456789ab |" in text
    assert "| kid | – | – | – | – | 1 | 1 | x@0 |" in text
    assert "- fid: permutation p = 0.004; 0.9 on images damaged on purpose" in text
    assert "- kid: too few" in text


def test_the_scorecard_is_shown_in_seven_lines(facts: Facts) -> None:
    section = _rendered(facts).split("## Scorecard")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [one.name for one in judge(facts).criteria]
    assert "| congruence | pass | 1 of 1 | 1 |" in section


def test_every_file_of_a_version_is_named(facts: Facts) -> None:
    text = _rendered(replace(facts, formats=["parquet", "coco", "webdataset"]))
    for name in (
        "metadata.parquet",
        "ledger.parquet",
        "index.parquet",
        "sources.parquet",
        "coco/<split>.json",
        "webdataset/",
        "recipe.yaml",
        "croissant.json",
        "provenance.json",
        "scorecard.json",
        "report.html",
        "samples.png",
    ):
        assert name in text.split("## Files")[1].split("## Columns")[0], name
    assert "coco/<split>.json" not in _rendered(replace(facts, formats=["parquet"])).split("## Files")[1]


def test_a_pipe_or_a_line_break_in_a_note_does_not_break_a_table(facts: Facts) -> None:
    score = described.FID.model_copy(update={"extractor": "a|b\nc"})
    text = _rendered(replace(facts, outcome=facts.outcome.model_copy(update={"scores": [score]})))
    assert "| a\\|b c |" in text


def test_the_same_facts_make_the_same_text(facts: Facts) -> None:
    assert _rendered(facts) == _rendered(facts)
