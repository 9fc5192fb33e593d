import yaml

from storage.records import SetScore
from tasks.formats.card import Card, render

CARD = Card(
    dataset="breast-staged",
    description="Staged synthesis on breast ultrasound.",
    samples={"train": {"benign": 5, "malignant": 4}, "test": {"benign": 2, "malignant": 1}},
    planned=20,
    rejected={"segmenter_dice": 6, "lesion_contrast": 1},
    failed=1,
    scores=[
        SetScore(
            name="fid",
            value=1.2345,
            low=1.0,
            high=1.5,
            floor=0.3,
            floor_low=0.2,
            floor_high=0.4,
            n_real=100,
            n_synthetic=12,
            extractor="x@0123456789ab",
        ),
        SetScore(name="kid", value=None, low=None, high=None, n_real=1, n_synthetic=1, extractor="x@0", note="too few"),
    ],
    licences=["CC BY 4.0"],
    sources=["BUSI, CC0 1.0: Al-Dhabyani et al. 2020"],
    gate=[],
    recipe_yaml="name: breast-staged\n",
)


def _header(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads() -> None:
    header = _header(render(CARD))
    assert header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        }
    ]


def test_a_licence_the_hub_does_not_know_is_named() -> None:
    header = _header(render(CARD.__class__(**{**CARD.__dict__, "licences": ["Research only, see source"]})))
    assert header["license"] == "other"
    assert header["license_name"] == "Research only, see source"


def test_the_counts_add_up_in_the_text() -> None:
    text = render(CARD)
    assert "20 planned = 12 kept + 7 rejected + 1 failed" in text
    assert "| train | 5 | 4 | 9 |" in text
    assert "| segmenter_dice | 6 |" in text


def test_scores_stand_with_interval_floor_n_and_extractor() -> None:
    text = render(CARD)
    assert "| fid | 1.23 | 1 … 1.5 | 0.3 (0.2 … 0.4) | 100 | 12 | x@0123456789ab |" in text
    assert "| kid | – | – | – | 1 | 1 | x@0 |" in text
    assert "- kid: too few" in text


def test_the_same_facts_make_the_same_text() -> None:
    assert render(CARD) == render(CARD)
