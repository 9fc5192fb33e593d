from pathlib import Path

import pytest

from storage.records import Ref
from storage.store import Store
from tasks.ingest import ingest, kept_scans
from tasks.narrow import narrow
from tasks.screening.screen import ScreenParams
from tasks.sources import busi
from tests import fakes


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ref]:
    root = fakes.busi(tmp_path_factory.mktemp("busi"), n=10, shape=(64, 72))
    store = tmp_path_factory.mktemp("store")
    return store, ingest.fn(str(store), busi.Params(root=root), ScreenParams(px=64, folds=3, fold=0), 3).ref


def ids(store: Path, scans: Ref, *splits: str) -> set[str]:
    return {scan.id for scan in kept_scans(Store(str(store)), scans) if scan.split in splits}


def test_few_training_scans_stay_and_all_others_for_validation_and_test(ingested: tuple[Path, Ref]) -> None:
    store, scans = ingested
    eight, four = (narrow.fn(str(store), scans, images, 3).ref for images in (8, 4))
    assert len(ids(store, eight, "train")) == 8
    assert ids(store, four, "train") < ids(store, eight, "train") < ids(store, scans, "train")
    assert ids(store, eight, "val", "test") == ids(store, scans, "val", "test")
    assert {scan.label for scan in kept_scans(Store(str(store)), eight) if scan.split == "train"} == {
        "benign",
        "malignant",
        "normal",
    }


def test_what_is_left_out_is_a_row_with_a_reason(ingested: tuple[Path, Ref]) -> None:
    store, scans = ingested
    done = narrow.fn(str(store), scans, 8, 3)
    rows = {row["id"]: row for row in Store(str(store)).open_table(done.ref.key).to_pylist()}
    left_out = ids(store, scans, "train") - ids(store, done.ref, "train")
    assert done.ref.counts == {"train": 8, "left out": len(left_out)}
    for id in left_out:
        assert rows[id]["verdict"] == "set aside"
        assert rows[id]["reasons"][-1] == "not among the first 8 to train on"
    assert done.ref.rows == len(rows) == scans.rows
    assert narrow.fn(str(store), scans, 8, 3).reused
