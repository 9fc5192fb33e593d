"""The verb of detection: shard by shard it must say what the detectors say of everything at once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from storage.images import encode_grey, encode_mask
from storage.records import SCAN_SCHEMA, Ref
from storage.store import Store
from tasks import detect
from tasks.connect import open_store
from tasks.detect import WHOLE_SET, detect_synthetic, detections_of, with_detection
from tasks.quality import detector
from tasks.quality.judge import Pictures
from tests.tasks.quality.toys import pictures

REAL, MADE = pictures(24, 0), pictures(15, 1)
PARAMS = detector.Params(steps=2, folds=2, batch=4, networks=["small", "resnet18"], width=4)


def stored(store: Store, name: str, shown: Pictures, first: int, schema: pa.Schema | None) -> Ref:
    rows = [
        {
            "id": f"{name}-{first + k:03}",
            "image": {"bytes": encode_grey(image), "path": None},
            "mask": {"bytes": encode_mask(mask), "path": None},
            "label": label,
            "group": group,
            "split": "train",
            "verdict": "kept",
            "organ": "breast",
            "dataset": "toy",
            "failure": None,
        }
        for k, (image, mask, label, group) in enumerate(
            zip(shown.images, shown.masks, shown.labels, shown.groups, strict=True)
        )
    ]
    table = pa.Table.from_pylist(rows)
    if schema is not None:
        table = pa.Table.from_pylist([{field.name: row.get(field.name) for field in schema} for row in rows], schema)
    key = f"{name}/{first}.parquet"
    return Ref(key=key, sha256=store.put_table(key, table), rows=len(rows))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    url = str(tmp_path_factory.mktemp("store"))
    store = open_store(url)
    scans = stored(store, "scan", REAL, 0, SCAN_SCHEMA)
    shards = [stored(store, "made", MADE.select(np.arange(a, b)), a, None) for a, b in ((0, 6), (6, 15))]
    done = detect_synthetic.fn(url, shards, scans, ["benign", "malignant"], PARAMS, 0)
    again = detect_synthetic.fn(url, shards, scans, ["benign", "malignant"], PARAMS, 0)
    assert again.reused
    return store.open_table(done.ref.key).to_pandas()


def test_shard_by_shard_gives_what_all_at_once_gives(judged: pd.DataFrame):
    real, made = [f"scan-{k:03}" for k in range(24)], [f"made-{k:03}" for k in range(15)]
    found = detections_of(judged, real, made)
    expected = detector.out_of_fold(REAL, MADE, PARAMS, 0)
    assert found.detection is not None
    assert found.detection.real == pytest.approx(expected.real, abs=1e-5)
    assert found.detection.synthetic == pytest.approx(expected.synthetic, abs=1e-5)
    assert found.detection.synthetic_fold.tolist() == expected.synthetic_fold.tolist()
    assert list(found.detection.each) == ["small", "resnet18"]
    assert found.detection.each["resnet18"][1] == pytest.approx(expected.each["resnet18"][1], abs=1e-5)


def test_floor_and_control_judge_the_same_disjoint_halves(judged: pd.DataFrame):
    sides = {side: set(judged.loc[judged["side"] == side, "id"]) for side in (*detect.FLOOR, *detect.CONTROL)}
    assert sides["floor a"] == sides["control a"]
    assert sides["floor b"] == sides["control b"]
    assert not sides["floor a"] & sides["floor b"]
    found = detections_of(judged, [], [])
    assert found.detection is None  # nothing was asked for
    assert found.floor is not None
    assert found.control is not None
    assert (found.floor.synthetic != found.control.synthetic).any()


def test_rows_get_their_answer_and_strangers_none(judged: pd.DataFrame):
    rows = judged[judged["side"] == "synthetic"][["id"]].iloc[:2]
    rows.loc[len(judged)] = ["stranger"]
    found = with_detection(rows, judged, "synthetic")[WHOLE_SET].tolist()
    assert 0 < found[0] < 1
    assert np.isnan(found[2])


def test_a_single_real_image_is_refused(tmp_path: Path):
    store = open_store(str(tmp_path))
    scans = stored(store, "scan", REAL.select(np.arange(1)), 0, SCAN_SCHEMA)
    shards = [stored(store, "made", MADE, 0, None)]
    with pytest.raises(ValueError, match="1 real and 15 synthetic"):
        detect_synthetic.fn(str(tmp_path), shards, scans, ["benign"], PARAMS, 0)


def test_a_picture_that_was_drawn_without_a_mask_is_judged_with_a_blank_one() -> None:
    image = {"bytes": encode_grey(MADE.images[0]), "path": None}
    drawn = {"bytes": encode_mask(MADE.masks[0]), "path": None}
    rows = [{"image": image, "mask": mask, "label": "benign", "group": "g"} for mask in (drawn, None)]
    found = detect.pictures_of_rows([*rows, rows[1] | {"mask": {"bytes": None, "path": None}}])
    np.testing.assert_array_equal(found.masks[0], MADE.masks[0])
    assert not found.masks[1:].any()
    assert found.masks.shape == found.images.shape
