"""A published version, read by the tools that people use: pulled, and straight from S3."""

import gc
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import duckdb
import fsspec
import mlcroissant
import numpy as np
import pandas as pd
import pytest
import s3fs
import webdataset
from pycocotools.coco import COCO

from storage.images import decode_grey, decode_mask
from storage.pulling import PullFormat, pull
from storage.records import SPLITS, Manifest
from storage.store import Store
from storage.versions import publish
from tasks.documents import card, croissant, scorecard
from tests.fakes.samples import table
from tests.storage.published import fill
from tests.tasks.documents import described

COUNT = 60
Rows = dict[str, dict[str, Any]]
Addresses = Mapping[str, str]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("filled")
    about = fill(folder, COUNT)
    facts = described.facts(folder)
    (folder / "README.md").write_text(card.render(facts, scorecard.judge(facts)))
    (folder / "croissant.json").write_text(croissant.render(facts, described.files(folder)))
    return folder, about


@pytest.fixture(scope="module")
def published(filled: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    store = Store(str(tmp_path_factory.mktemp("consumed") / "store"))
    return store, publish(store, "demo", *filled)[0]


@pytest.fixture(scope="module")
def pulled(published: tuple[Store, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Callable[[PullFormat], Path]:
    """The version pulled in a format, once."""
    done: dict[str, Path] = {}

    def pulled_as(format: PullFormat) -> Path:
        if format not in done:
            store, manifest = published
            done[format] = pull(store, manifest, tmp_path_factory.mktemp("pulled") / format, format=format).path
        return done[format]

    return pulled_as


@pytest.fixture
def rows() -> Rows:
    """What was kept, by id."""
    return {row["id"]: row for row in table(COUNT).to_pylist() if row["verdict"] == "kept"}


@pytest.fixture(scope="module")
def uploads() -> dict[str, Addresses]:
    """What was published where, so that each server gets it once."""
    return {}


@pytest.fixture
def on_s3(s3: tuple[str, str], filled: tuple[Path, Any], uploads: dict[str, Addresses]) -> Addresses:
    """Addresses of a version's files on each S3 server, by their path in the version."""
    endpoint, url = s3
    s3fs.S3FileSystem.clear_instance_cache()  # it knows file systems by their URL, not by the endpoint behind it
    if endpoint not in uploads:
        store = Store(url)
        manifest, _ = publish(store, "demo", *filled)
        uploads[endpoint] = {file.path: store.uri(file.key) for file in manifest.files}
    return uploads[endpoint]


def _same_pictures(row: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    assert np.array_equal(np.asarray(row["image"]), decode_grey(want["image"]["bytes"]))
    assert (row["mask"] is None) == (want["mask"] is None)
    if row["mask"] is not None:
        assert np.array_equal(np.asarray(row["mask"]).astype(bool), decode_mask(want["mask"]["bytes"]))


def test_pandas_reads_metadata_and_pixels_of_a_pulled_version(pulled: Callable[[PullFormat], Path], rows: Rows) -> None:
    folder = pulled("parquet")
    assert pd.read_parquet(folder / "metadata.parquet")["id"].tolist() == sorted(rows)
    assert len(pd.read_parquet(folder / "ledger.parquet")) == COUNT
    found = pd.read_parquet(folder / "data")
    assert set(found["id"]) == set(rows)
    for _, row in found.iterrows():
        assert row["image"]["bytes"] == rows[row["id"]]["image"]["bytes"]


def test_pandas_finds_one_picture_by_its_range_of_bytes(pulled: Callable[[PullFormat], Path], rows: Rows) -> None:
    folder = pulled("parquet")
    index = pd.read_parquet(folder / "index.parquet").set_index("id")
    for name, want in rows.items():
        place = index.loc[name]
        with (folder / place["file"]).open("rb") as file:
            file.seek(place["image_at"])
            assert file.read(place["image_bytes"]) == want["image"]["bytes"]


def test_pandas_reads_columns_straight_from_s3(on_s3: Addresses, rows: Rows) -> None:
    found = pd.read_parquet(on_s3["metadata.parquet"], columns=["id", "label"])
    assert dict(zip(found["id"], found["label"], strict=True)) == {name: row["label"] for name, row in rows.items()}


QUESTION = "SELECT label, count(*), avg(lesion_contrast) FROM '{}' WHERE split = 'train' GROUP BY label ORDER BY label"


def _expected(rows: Rows) -> list[tuple[str, int, float]]:
    train = pd.DataFrame([row for row in rows.values() if row["split"] == "train"])
    grouped = train.groupby("label")["lesion_contrast"].agg(["size", "mean"]).sort_index()
    return [(label, int(row["size"]), pytest.approx(row["mean"])) for label, row in grouped.iterrows()]


def test_duckdb_groups_metadata_and_joins_pixels_of_a_pulled_version(
    pulled: Callable[[PullFormat], Path], rows: Rows
) -> None:
    folder = pulled("parquet")
    with duckdb.connect() as connection:
        found = connection.sql(QUESTION.format(folder / "metadata.parquet")).fetchall()
        joined = connection.sql(
            f"SELECT d.id, d.image.bytes FROM '{folder}/data/*.parquet' d "
            f"JOIN '{folder}/metadata.parquet' m USING (id) WHERE m.segmenter_dice > 0.5 ORDER BY d.id"
        ).fetchall()
    assert found == _expected(rows)
    chosen = [row for row in rows.values() if (row["segmenter_dice"] or 0) > 0.5]
    assert joined == [(row["id"], row["image"]["bytes"]) for row in chosen]


def test_duckdb_asks_s3_through_fsspec(on_s3: Addresses, rows: Rows) -> None:
    """Through fsspec's file system: DuckDB would fetch its own, httpfs, from the internet at its first use."""
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("s3"))
        assert connection.sql(QUESTION.format(on_s3["metadata.parquet"])).fetchall() == _expected(rows)
        data = ", ".join(f"'{uri}'" for path, uri in on_s3.items() if path.startswith("data/"))
        ids = connection.sql(f"SELECT id FROM read_parquet([{data}]) ORDER BY id").fetchall()
    assert [name for (name,) in ids] == sorted(rows)


def test_datasets_loads_a_pulled_folder_as_it_is_named_in_the_card(
    pulled: Callable[[PullFormat], Path], rows: Rows, tmp_path: Path
) -> None:
    folder = pulled("parquet")
    files = {split: str(folder / f"data/{split}-*.parquet") for split in SPLITS}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    seen = {row["id"]: row for split in loaded for row in loaded[split]}
    assert set(seen) == set(rows)
    for name, row in seen.items():
        _same_pictures(row, rows[name])


def test_datasets_streams_a_pulled_folder(pulled: Callable[[PullFormat], Path], rows: Rows) -> None:
    folder = pulled("parquet")
    stream = datasets.load_dataset(
        "parquet", data_files={"train": str(folder / "data/train-*.parquet")}, split="train", streaming=True
    )
    _check_datasets(stream, rows)


def test_datasets_streams_straight_from_s3(on_s3: Addresses, rows: Rows) -> None:
    files = [uri for path, uri in on_s3.items() if path.startswith("data/train-")]
    stream = datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
    _check_datasets(stream, rows)


def _check_datasets(stream: Any, rows: Rows) -> None:
    assert isinstance(stream.features["image"], datasets.Image)
    seen = {row["id"]: row for row in stream}
    assert set(seen) == {name for name, row in rows.items() if row["split"] == "train"}
    for name, row in seen.items():
        _same_pictures(row, rows[name])


# pycocotools 2.0.11 answers numpy's __array__ without `copy`; its masks are right.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_pycocotools_masks_of_a_pulled_version_are_those_of_the_rows(
    pulled: Callable[[PullFormat], Path], rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pulled("coco")
    waiting = dict(rows)
    for path in sorted((folder / "annotations").iterdir()):
        opened = COCO(str(path))
        for image in opened.loadImgs(opened.getImgIds()):
            want = waiting.pop(image["sonoforge"]["id"])
            assert (folder / image["file_name"]).read_bytes() == want["image"]["bytes"]
            annotations = opened.loadAnns(opened.getAnnIds(imgIds=image["id"]))
            assert len(annotations) == (want["mask"] is not None)
            for annotation in annotations:
                assert np.array_equal(opened.annToMask(annotation).astype(bool), decode_mask(want["mask"]["bytes"]))
                assert opened.loadCats(annotation["category_id"])[0]["name"] == want["label"]
    assert waiting == {}


def test_coco_files_are_built_as_fiftyones_and_torchvisions_readers_expect(
    pulled: Callable[[PullFormat], Path],
) -> None:
    """What their source code relies on: `torchvision.datasets.CocoDetection` joins `root` and `file_name`, and indexes
    by id; FiftyOne's COCODetectionDatasetImporter also needs integer ids, sizes, and counts of type str."""
    folder = pulled("coco")
    names: dict[str, list[str]] = {}
    for path in sorted((folder / "annotations").iterdir()):
        content = json.loads(path.read_text())
        assert {"info", "licenses", "categories", "images", "annotations"} == set(content)
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        names[path.stem] = list(categories.values())
        assert len(images) == len(content["images"])
        assert len(categories) == len(content["categories"])
        assert all(type(number) is int and number > 0 for number in (*images, *categories))
        for image in images.values():
            relative = PurePosixPath(image["file_name"])
            assert not relative.is_absolute()
            assert ".." not in relative.parts
            height, width = decode_grey((folder / relative).read_bytes()).shape
            assert (image["height"], image["width"]) == (height, width)
        numbers = [annotation["id"] for annotation in content["annotations"]]
        assert len(set(numbers)) == len(numbers)
        for annotation in content["annotations"]:
            image = images[annotation["image_id"]]
            assert type(annotation["id"]) is int
            assert annotation["category_id"] in categories
            assert annotation["iscrowd"] == 0
            assert isinstance(annotation["segmentation"]["counts"], str)
            assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
            left, top, width, height = annotation["bbox"]
            assert min(left, top) >= 0
            assert min(width, height) >= 1
            assert left + width <= image["width"]
            assert top + height <= image["height"]
            assert 0 < annotation["area"] <= width * height
    assert len({tuple(listed) for listed in names.values()}) == 1  # one numbering for all splits


# rdflib and mlcroissant use names that their own dependencies have replaced.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlcroissant_reads_a_pulled_version_picture_for_picture(
    pulled: Callable[[PullFormat], Path], rows: Rows
) -> None:
    opened = mlcroissant.Dataset(jsonld=str(pulled("parquet") / "croissant.json"))
    assert opened.metadata.ctx.issues.errors == set()
    seen: set[str] = set()
    for record in opened.records("samples"):
        want = rows[record["samples/id"].decode()]
        assert record["samples/label"].decode() == want["label"]
        _same_pictures({name: record[f"samples/{name}"] for name in ("image", "mask")}, want)
        seen.add(want["id"])
    assert seen == set(rows)


def test_webdataset_reads_the_tars_of_a_pulled_version(pulled: Callable[[PullFormat], Path], rows: Rows) -> None:
    _check_webdataset([str(path) for path in sorted(pulled("webdataset").glob("*.tar"))], rows)


def test_webdataset_reads_tars_on_s3_through_fsspec(
    pulled: Callable[[PullFormat], Path], rows: Rows, s3: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own way to S3 is the AWS command line; any opener of addresses does as well."""
    s3fs.S3FileSystem.clear_instance_cache()
    store = Store(s3[1])
    tars = sorted(pulled("webdataset").glob("*.tar"))
    for path in tars:
        store.put_file(f"demo/{path.name}", path)
    monkeypatch.setitem(webdataset.gopen_schemes, "s3", lambda url, mode, bufsize: fsspec.open(url, mode).open())
    _check_webdataset([store.uri(f"demo/{path.name}") for path in tars], rows)


def test_members_of_the_tars_are_plain_files_grouped_by_sample(pulled: Callable[[PullFormat], Path]) -> None:
    for path in pulled("webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert all(member.isfile() for member in members)
        names = [member.name.split(".", 1)[0] for member in members]
        assert names == sorted(names)  # a sample whose files lie apart would be read as two


def _check_webdataset(tars: list[str], rows: Rows) -> None:
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its last file to the garbage collector
        for sample in webdataset.WebDataset(tars, shardshuffle=False):
            want = rows[sample["__key__"]]
            assert sample["png"] == want["image"]["bytes"]
            assert sample.get("mask.png") == (want["mask"] and want["mask"]["bytes"])
            described_by = json.loads(sample["json"])
            assert (described_by["id"], described_by["label"]) == (want["id"], want["label"])
            seen.add(want["id"])
        gc.collect()
    assert seen == set(rows)


# pycocotools, rdflib and mlcroissant use names that their own dependencies have replaced.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_cards_own_examples_run_as_they_stand(
    pulled: Callable[[PullFormat], Path],
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named: dict[str, PullFormat] = {"demo": "parquet", "demo-coco": "coco", "demo-tars": "webdataset"}
    for name, format in named.items():
        (tmp_path / name).symlink_to(pulled(format))
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "demo" / "README.md").read_text()
    assert all(f" {name}" in text for name in named)
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "README.md", "exec"), found)
    assert len(found["table"]) == len(found["pictures"].fetchall()) == len(rows)
    assert {row["id"] for split in found["rows"].values() for row in split} == set(rows)
    assert len(list(found["samples"])) == len(rows)
    train = [row for row in rows.values() if row["split"] == "train"]
    assert len(found["outlined"].imgs) == len(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert len(list(found.pop("stream"))) == len(train)
        gc.collect()
    assert found["png"] == rows[found["row"]["id"]]["image"]["bytes"]
