"""Judges as steps: what they are trained on, and what is left untrained."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.records import Ref
from storage.store import Store
from tasks.gather import Scored, score_set
from tasks.ingest import ingest, kept_scans
from tasks.quality import classifier, segmenter
from tasks.quality.extractors import ExtractorParams
from tasks.score import describe_real, origins
from tasks.screening import ScreenParams
from tasks.sources import busi, hc18
from tasks.train_judges import JudgesParams, report_of, train_judge
from tests.fakes.busi import busi as fake_busi
from tests.fakes.hc18 import hc18 as fake_hc18

QUICK = JudgesParams(
    classifier=classifier.Params(steps=1, batch=4), segmenter=segmenter.Params(steps=1, batch=4), critic=None
)
SCORES = ["classifier_confidence", "segmenter_dice", "nearest_similarity", "picture_similarity"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def heads(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Ref:
    """Scans of one label, as a fetal source gives them."""
    source = hc18.Params(root=fake_hc18(tmp_path_factory.mktemp("hc18")))
    return ingest.fn(store.url, source, ScreenParams(px=64, val=0.25, test=0.25), 0).ref


def test_scans_of_one_label_get_a_segmenter_and_no_classifier(store: Store, heads: Ref):
    judges = {name: train_judge.fn(store.url, heads, name, QUICK, 0).ref for name in ("classifier", "segmenter")}
    assert judges["classifier"].rows == 0
    assert report_of(store, judges["classifier"]) == {}
    assert judges["segmenter"].rows == sum(scan.split == "train" for scan in kept_scans(store, heads)) > 0
    assert train_judge.fn(store.url, heads, "classifier", QUICK, 0).reused


def test_scans_of_two_labels_get_both(store: Store, tmp_path: Path):
    source = busi.Params(root=fake_busi(tmp_path / "busi", n=12, shape=(60, 70)))
    scans = ingest.fn(store.url, source, ScreenParams(px=32, val=0.25, test=0.25), 0).ref
    judge = train_judge.fn(store.url, scans, "classifier", QUICK, 0).ref
    assert judge.rows == sum(scan.split == "train" for scan in kept_scans(store, scans))
    assert "n_held_out" in report_of(store, judge)


def test_pictures_of_one_label_are_scored_without_a_classifier(store: Store, heads: Ref):
    judges = {name: train_judge.fn(store.url, heads, name, QUICK, 0).ref for name in ("classifier", "segmenter")}
    real = describe_real.fn(store.url, heads, judges, ExtractorParams(), ["head"], SCORES, 0).ref
    table = store.open_table(real.key)
    made_by = origins(table)
    assert (made_by.classifier, made_by.labels) == ("none", [])
    assert "answers" not in table.column_names
    frame = table.to_pandas()
    assert np.isnan(frame["classifier_confidence"]).all()
    assert np.isfinite(frame[["segmenter_dice", "nearest_similarity", "picture_similarity"]]).all(axis=None)
    learned = frame["split"] == "train"
    assert (frame.loc[learned, "picture_similarity"] > 0.999).all()  # each is its own copy
    assert (frame.loc[~learned, "picture_similarity"] < 0.999).all()

    key = "builds/detect/none.parquet"
    nobody = pa.table({"side": pa.array([], pa.string()), "id": pa.array([], pa.string())})
    nobody = Ref(key=key, sha256=store.put_table(key, nobody), rows=0)
    scored = Scored(store, [replace_ids(store, real)], real, nobody, 0)
    samples, reals = scored.samples(["group", "label"]), scored.reals(["group", "label"])
    kid, counted = score_set(scored, ["kid", "classifier_score"], samples, reals, reals)
    assert kid.value is not None
    assert counted.note == "refused: no classifier answered"


def replace_ids(store: Store, table: Ref) -> Ref:
    """The same rows as if they were samples."""
    rows = store.open_table(table.key)
    ids = pa.array([f"syn-{number:06d}" for number in range(rows.num_rows)])
    key = "builds/score/heads.parquet"
    renamed = rows.set_column(rows.column_names.index("id"), "id", ids)
    return replace_key(table, key, store.put_table(key, renamed))


def replace_key(table: Ref, key: str, sha256: str) -> Ref:
    return table.model_copy(update={"key": key, "sha256": sha256})
