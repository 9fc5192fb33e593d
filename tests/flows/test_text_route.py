"""Pictures drawn whole, on tiny phantoms and a tiny random base: no row has a background, and nothing asks for one."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.build_dataset import BuildResult, build_dataset
from flows.recipe import parse
from storage import lineage, versions
from storage.images import decode_grey, decode_mask
from storage.pulling import pull
from storage.store import Store
from storage.verifying import verify
from tests.fakes.base import make_base

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of the text route that runs in seconds; its labels include healthy scans."""
    base = make_base(tmp_path_factory.mktemp("base"), channels=9)
    small = {"steps": 2, "warmup": 1, "batch": 2, "validate_every": 2, "checkpoint_every": 2}
    judges = {"steps": 2}
    return {
        "name": "text",
        "seed": 3,
        "source": {"dataset": "phantom", "count": 60, "px": 64},
        "screen": {"px": 64},
        "base": str(base),
        "lora": {**small, "rank": 2},
        "controlnet": small,
        "judges": {"classifier": judges, "segmenter": judges, "detector": judges},
        "plan": {"samples": 12, "shard": 6, "labels": {"benign": 2, "malignant": 2, "normal": 1}},
        "stages": [
            {
                "stage": "segmentation",
                "orientation": {"parallel": 1, "not parallel": 1},
                "attributes": ["margin", "orientation"],
                "attempts": 200,
            },
            {"stage": "picture", "steps": 2},
        ],
        "audit": {"scans": 8, "levels": 1},
        "gate": {"min_kept": 1},
    }


@pytest.fixture(scope="module")
def built(
    text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Store, BuildResult, Path]:
    """The store, the result, and the pulled version."""
    store = tmp_path_factory.mktemp("store")
    result = build_dataset(recipe=parse(text), store=str(store))
    opened = Store(str(store))
    folder = tmp_path_factory.mktemp("pulled") / "text"
    pull(opened, versions.open_manifest(opened, "text@latest"), folder)
    return opened, result, folder


@pytest.fixture(scope="module")
def rows(built: tuple[Store, BuildResult, Path]) -> pd.DataFrame:
    return pd.concat(pd.read_parquet(file) for file in sorted((built[2] / "data").glob("*.parquet")))


def test_a_version_without_backgrounds_is_whole_and_leaks_nothing(built: tuple[Store, BuildResult, Path]) -> None:
    store, result, _ = built
    assert result.planned == 12 == result.kept + sum(result.rejected.values()) + result.failed
    assert result.kept >= 10
    assert verify(store, versions.open_manifest(store, "text@latest"), deep=True) == []


def test_rows_name_no_background_and_have_no_region(rows: pd.DataFrame) -> None:
    for name in ("background_id", "background_kind", "background", "region", "outside_changed_px", "lesion_change"):
        assert name not in rows or rows[name].isna().all()
    assert rows["controlnet_digest"].nunique() == 1
    assert rows["controlnet_digest"].notna().all()
    assert rows["head_circumference_mm"].isna().all()


def test_lesions_have_their_donors_group_and_healthy_samples_one_of_their_own(rows: pd.DataFrame) -> None:
    for _, row in rows.iterrows():
        mask = decode_mask(row["mask"]["bytes"])
        assert decode_grey(row["image"]["bytes"]).shape == mask.shape == (64, 64)
        if row["label"] == "normal":
            assert not mask.any()
            assert pd.isna(row["mask_id"])
            assert row["group"] == f"phantom/synthetic/{row['id']}"
        else:
            assert mask.any()
            assert row["mask_kind"] == "donor"
            assert "/synthetic/" not in row["group"]


def test_prompts_say_what_the_mask_was_measured_to_be(rows: pd.DataFrame) -> None:
    for _, row in rows.iterrows():
        if row["label"] == "normal":
            assert row["prompt"] == "ultrasound of breast, normal tissue"
        else:
            said = "parallel" if row["orientation"] == "parallel" else "taller than wide"
            assert row["prompt"].startswith(f"ultrasound of breast, {row['label']} lesion, ")
            assert row["prompt"].endswith(f"margin, {said}")


def test_documents_say_how_the_pictures_were_made(built: tuple[Store, BuildResult, Path]) -> None:
    folder = built[2]
    card, page = (folder / "README.md").read_text(), (folder / "report.html").read_text()
    assert "**Every picture here is synthetic**, drawn whole from a prompt and held to its mask by a ControlNet" in card
    assert "Every picture here is synthetic" in page
    assert "drawn into the background" not in card + page
    croissant = json.loads((folder / "croissant.json").read_text())
    assert "drew every picture whole, to a mask and a prompt" in croissant["rai:dataCollection"]
    scorecard = json.loads((folder / "scorecard.json").read_text())
    checks = {c["asked"]: c["verdict"] for one in scorecard["criteria"] for c in one["checks"]}
    assert (
        checks["every kept row says how it was made: base_digest, adapter_digest, seed, prompt, recipe_digest"]
        == "pass"
    )


def test_a_row_is_traced_to_its_mask_and_its_controlnet(
    built: tuple[Store, BuildResult, Path], rows: pd.DataFrame
) -> None:
    store, _, _ = built
    name = str(rows[rows["label"] != "normal"]["id"].iloc[0])
    found = lineage.trace(store, versions.open_manifest(store, "text@latest"), name)
    assert [ancestor.role for ancestor in found.ancestors] == ["mask"]
    assert found.ancestors[0].scan is not None
    assert [weights.role for weights in found.weights] == ["base", "adapter", "controlnet"]
    assert [weights.name for weights in found.weights] == ["base", "adapter", "controlnet"]


def test_coco_annotates_lesions_and_lists_healthy_pictures(
    built: tuple[Store, BuildResult, Path], rows: pd.DataFrame, tmp_path: Path
) -> None:
    store, _, _ = built
    pull(store, versions.open_manifest(store, "text@latest"), tmp_path / "coco", format="coco")
    content = json.loads((tmp_path / "coco" / "annotations" / "train.json").read_text())
    assert len(content["images"]) == len(rows)
    assert len(content["annotations"]) == (rows["label"] != "normal").sum()
    assert {category["name"] for category in content["categories"]} == {"benign", "malignant"}


def test_the_plan_is_a_prefix_of_a_larger_one(text: dict[str, Any], built: tuple[Store, BuildResult, Path]) -> None:
    larger = parse({**text, "plan": {**text["plan"], "samples": 18}})
    result = build_dataset(recipe=larger, store=built[0].url)
    assert (result.planned, result.version) == (18, 2)
