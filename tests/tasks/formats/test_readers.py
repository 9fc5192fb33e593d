"""What is exported, opened by the tools that people use."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO

from storage.images import decode_grey, decode_mask
from tasks.formats import coco, parquet
from tests.fakes.samples import table

COUNT = 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    parquet.write(table(COUNT).to_batches(), folder)
    coco.write(folder, folder)
    return folder


@pytest.fixture(scope="module")
def kept() -> list[dict[str, Any]]:
    return [row for row in table(COUNT).to_pylist() if row["verdict"] == "kept"]


def test_pandas_reads_pixels_and_metadata(exported: Path, kept: list[dict[str, Any]]) -> None:
    metadata = pd.read_parquet(exported / "metadata.parquet")
    assert metadata["id"].tolist() == [row["id"] for row in kept]
    assert metadata["segmenter_dice"].isna().sum() == sum(row["label"] == "normal" for row in kept)
    train = pd.read_parquet(exported / "data/train-00000-of-00001.parquet")
    first = train.iloc[0]
    assert decode_grey(first["image"]["bytes"]).shape == (32, 32)
    assert len(pd.read_parquet(exported / "data")) == len(kept)
    assert len(pd.read_parquet(exported / "ledger.parquet")) == COUNT


def test_datasets_shows_images(exported: Path, kept: list[dict[str, Any]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = {split: str(exported / f"data/{split}-*.parquet") for split in ("train", "val", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert all(isinstance(loaded["train"].features[name], datasets.Image) for name in ("image", "mask", "region"))
    expected = {row["id"]: row for row in kept}
    seen = 0
    for split in loaded:
        for row in loaded[split]:
            want = expected[row["id"]]
            assert np.array_equal(np.asarray(row["image"]), decode_grey(want["image"]["bytes"]))
            assert (row["mask"] is None) == (want["mask"] is None)
            if row["mask"] is not None:
                assert np.array_equal(np.asarray(row["mask"]), decode_mask(want["mask"]["bytes"]))
            assert row["reasons"] == []
            seen += 1
    assert seen == len(kept)


def test_duckdb_filters_metadata_and_joins_pixels(exported: Path, kept: list[dict[str, Any]]) -> None:
    found = duckdb.sql(
        f"SELECT label, count(*) FROM '{exported}/metadata.parquet' WHERE lesion_contrast > 0 GROUP BY label"
    ).fetchall()
    assert dict(found) == pd.Series([row["label"] for row in kept]).value_counts().to_dict()
    joined = duckdb.sql(
        f"SELECT d.id, d.image.bytes FROM '{exported}/data/*.parquet' d "
        f"JOIN '{exported}/metadata.parquet' m USING (id) WHERE m.segmenter_dice > 0.5 ORDER BY d.id"
    ).fetchall()
    expected = [row for row in kept if row["segmenter_dice"] is not None and row["segmenter_dice"] > 0.5]
    assert joined == [(row["id"], row["image"]["bytes"]) for row in expected]


# pycocotools 2.0.11 answers numpy's __array__ without `copy`; its masks are right.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_pycocotools_masks_equal_parquet_masks_pixel_for_pixel(
    exported: Path, kept: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {row["id"]: row for row in kept}
    compared = 0
    for path in sorted((exported / "coco").iterdir()):
        opened = COCO(str(path))
        for image in opened.loadImgs(opened.getImgIds()):
            want = expected.pop(image["sonoforge"]["id"])
            annotations = opened.loadAnns(opened.getAnnIds(imgIds=image["id"]))
            if want["mask"] is None:
                assert annotations == []
                continue
            [annotation] = annotations
            mask = decode_mask(want["mask"]["bytes"])
            assert np.array_equal(opened.annToMask(annotation).astype(bool), mask)
            assert annotation["area"] == mask.sum()
            assert opened.loadCats(annotation["category_id"])[0]["name"] == want["label"]
            compared += 1
    assert compared > 10
    assert expected == {}
