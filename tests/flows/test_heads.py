"""The whole path where there is one label and no background: fetal heads drawn around ellipses."""

import numpy as np
import pytest

from flows.build_dataset import BuildResult, build_dataset
from flows.recipe import AUDITED, RecipeError, parse
from storage.images import decode_mask
from storage.store import Store
from storage.verifying import verify
from storage.versions import open_manifest
from tasks.imaging.ellipse import circumference_mm
from tasks.quality import SET_SCORES
from tests.fakes.base import make_base
from tests.fakes.hc18 import hc18

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]

RECIPE = {
    "name": "heads",
    "seed": 3,
    "source": {"dataset": "hc18"},
    "screen": {"px": 64, "val": 0.2, "test": 0.3},
    "lora": {"steps": 2, "warmup": 1, "batch": 2, "rank": 2},
    "controlnet": {"steps": 2, "warmup": 1, "batch": 2},
    "judges": {"segmenter": {"steps": 2}, "detector": {"steps": 2}},
    "plan": {"samples": 6, "shard": 3, "labels": {"head": 1}},
    "audit": {"scans": 8, "levels": 1},
    "stages": [{"stage": "segmentation", "shapes": "ellipse"}, {"stage": "picture", "steps": 2, "guidance": 2}],
    "curate": [{"score": "picture_similarity", "max_real": 1}],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> tuple[Store, BuildResult]:
    folder = tmp_path_factory.mktemp("heads")
    where = {"source": {"dataset": "hc18", "root": str(hc18(folder / "hc18", n=24))}}
    base = {"base": str(make_base(folder / "base", channels=4))}
    return Store(str(folder / "store")), build_dataset(parse({**RECIPE, **where, **base}), str(folder / "store"))


def test_heads_are_published_whole_and_counts_add_up(built: tuple[Store, BuildResult]):
    store, result = built
    assert result.planned == 6 == result.kept + sum(result.rejected.values()) + result.failed
    assert result.kept > 0
    assert verify(store, open_manifest(store, "heads@latest"), deep=True) == []


def test_no_score_is_asked_of_a_classifier_that_nothing_could_train(built: tuple[Store, BuildResult]):
    store, _ = built
    manifest = open_manifest(store, "heads")
    assert [score.name for score in manifest.scores] == [n for n in SET_SCORES if n != "classifier_score"] + [AUDITED]
    (real,) = (store.open_table(key) for key in store.list("builds/describe-real") if key.endswith(".parquet"))
    assert not {"answers", "classifier_confidence", "lesion_change"} & set(real.column_names)
    assert np.isfinite(real["picture_similarity"].to_numpy()).all()


def test_every_head_has_the_circumference_of_its_mask_and_names_no_background(built: tuple[Store, BuildResult]):
    store, _ = built
    shards = [store.open_table(key) for key in store.list("builds/synthesize") if key.endswith(".parquet")]
    rows = [row for table in shards for row in table.to_pylist() if row["failure"] is None]
    assert len({row["group"] for row in rows}) == len(rows)  # no real mask is behind an ellipse
    for row in rows:
        measured = circumference_mm(decode_mask(row["mask"]["bytes"]), row["pixel_mm"])
        assert row["head_circumference_mm"] == pytest.approx(measured)
        assert (row["background_id"], row["background_kind"], row["region"]) == (None, None, None)
        assert (row["mask_kind"], row["label"]) == ("ellipse", "head")
        assert row["controlnet_digest"]


def test_a_limit_that_asks_a_classifier_about_one_label_is_refused_before_any_work():
    asked = {"curate": [{"score": "classifier_confidence", "min": 0.5}]}
    with pytest.raises(RecipeError, match="all scans are labelled head: there is no classifier to ask"):
        parse({**RECIPE, **asked, "source": {"dataset": "hc18", "root": "."}})
    gate = {"gate": {"limits": [{"score": "classifier_score", "min": 1.5}]}}
    with pytest.raises(RecipeError, match="there is no classifier to ask"):
        parse({**RECIPE, **gate, "source": {"dataset": "hc18", "root": "."}})
