import itertools
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.errors import VersionNotFoundError
from storage.images import encode_grey
from storage.store import Store
from storage.versions import publish
from tasks import sources
from tasks.picture_sets import open_set
from tests.fakes.busbra import busbra
from tests.fakes.busi import busi
from tests.fakes.busuclm import busuclm
from tests.fakes.folder import folder
from tests.fakes.hc18 import hc18
from tests.fakes.pictures import picture, save
from tests.fakes.samples import table
from tests.storage import published

IMAGE, MASK = picture(1)


def test_a_folder_is_read_at_any_depth_with_labels_and_splits_from_its_folders(tmp_path):
    for name in ("train/benign/b.png", "train/malignant/deep/m.jpg", "validation/x.bmp", ".hidden/h.png"):
        save(tmp_path / name, IMAGE)
    (tmp_path / "notes.txt").write_text("not a picture")
    found = open_set(str(tmp_path))
    assert found.count == 3
    assert found.describe == f"3 pictures in {tmp_path}"
    assert [(p.file, p.label, p.split, p.group) for p in found.pictures()] == [
        ("train/benign/b.png", "benign", "train", None),
        ("train/malignant/deep/m.jpg", "malignant", "train", None),
        ("validation/x.bmp", None, "val", None),
    ]
    assert [p.file for p in open_set(f"{tmp_path}:val").pictures()] == ["validation/x.bmp"]
    assert next(found.pictures()).image.shape == IMAGE.shape


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.png", "a_mask.png"),
        ("benign (1).png", "benign (1)_mask_1.png"),
        ("a.jpg", "masks/a.png"),
        ("images/a.png", "masks/a.png"),
        ("images/x/a.png", "masks/x/a.png"),
        ("train/images/a.png", "train/Masks/a_mask.png"),
        ("scans/a.png", "masks/a.png"),
    ],
)
def test_a_mask_is_found_beside_its_picture_or_below_masks(tmp_path, image, mask):
    save(tmp_path / image, IMAGE)
    save(tmp_path / mask, MASK)
    (found,) = open_set(str(tmp_path)).pictures()
    assert found.file == image
    assert (found.mask == MASK).all()


def test_the_masks_beside_an_opened_folder_of_images_are_found(tmp_path):
    save(tmp_path / "images" / "a.png", IMAGE)
    save(tmp_path / "masks" / "a.png", MASK)
    (found,) = open_set(str(tmp_path / "images")).pictures()
    assert (found.mask == MASK).all()


def test_several_masks_of_a_picture_are_merged_and_one_of_another_size_is_none(tmp_path):
    save(tmp_path / "a.png", IMAGE)
    save(tmp_path / "a_mask.png", MASK & (np.arange(150) < 75))
    save(tmp_path / "a_mask_1.png", MASK & (np.arange(150) >= 75))
    save(tmp_path / "b.png", IMAGE)
    save(tmp_path / "b_mask.png", MASK[:-1])
    a, b = open_set(str(tmp_path)).pictures()
    assert (a.mask == MASK).all()
    assert b.mask is None


def test_what_cannot_be_read_is_listed_with_the_reason_once_however_often_it_is_read(tmp_path):
    save(tmp_path / "good.png", IMAGE)
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    (tmp_path / "empty.png").touch()
    found = open_set(str(tmp_path))
    assert [[p.file for p in found.pictures()] for _ in range(2)] == [["good.png"], ["good.png"]]
    assert found.count == 3
    assert [bad.file for bad in found.unreadable] == ["empty.png", "torn.png"]
    assert found.unreadable[0].reason == "unreadable: empty file"


def test_a_set_without_one_readable_picture_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected .*\.png"):
        open_set(str(tmp_path))
    (tmp_path / "bad.png").write_text("hello")
    with pytest.raises(ValueError, match=r"no picture could be read from 1 pictures in .*; bad\.png: unreadable"):
        list(open_set(str(tmp_path)).pictures())


@pytest.mark.parametrize("make", [busuclm, busbra, hc18, folder])
def test_a_dataset_in_its_own_layout_is_read_as_its_source_reads_it(tmp_path, make):
    root = make(tmp_path / "set")
    found = open_set(str(root))
    scans = [scan for scan in sources.read(sources.at(make.__name__, root)) if scan.image is not None]
    pictures = list(found.pictures())
    assert found.describe.endswith(f"laid out as {make.__name__}")
    assert [(p.file, p.label, p.group) for p in pictures] == [(s.file, s.label, s.group) for s in scans]
    for read, scan in zip(pictures, scans, strict=True):
        assert (read.image == scan.image).all()
        assert (read.mask is None) == (scan.mask is None)
        assert read.mask is None or (read.mask == scan.mask).all()
    assert found.count == len(pictures) + len(found.unreadable)


def test_busi_is_read_as_its_source_reads_it(tmp_path):
    root = busi(tmp_path)
    pictures = list(open_set(str(root)).pictures())
    scans = list(sources.read(sources.at("busi", root)))
    assert [(p.file, p.label) for p in pictures] == [(s.file, s.label) for s in scans]
    assert all((p.mask == s.mask).all() for p, s in zip(pictures, scans, strict=True))


def test_kept_rows_of_a_parquet_file_are_pictures_with_lineage(tmp_path):
    rows = table(24)
    pq.write_table(rows, tmp_path / "rows.parquet")
    kept = [row for row in rows.to_pylist() if row["verdict"] == "kept"]
    found = open_set(str(tmp_path / "rows.parquet"))
    pictures = list(found.pictures())
    assert found.count == len(pictures) == len(kept) < 24
    assert [(p.file, p.label, p.group, p.split) for p in pictures] == [
        (row["id"], row["label"], row["group"], row["split"]) for row in kept
    ]
    assert pictures[0].lineage["background_id"] == "phantom-0000"
    assert "seed" not in pictures[0].lineage
    val = open_set(f"{tmp_path / 'rows.parquet'}:val")
    assert {p.split for p in val.pictures()} == {"val"}
    assert val.count == sum(row["split"] == "val" for row in kept)


def test_a_strangers_parquet_file_needs_a_column_image_and_nothing_else(tmp_path):
    save(tmp_path / "a.jpg", IMAGE)
    encoded = (tmp_path / "a.jpg").read_bytes()
    pq.write_table(pa.table({"image": [encoded, encode_grey(IMAGE), b"junk", None]}), tmp_path / "bytes.parquet")
    found = open_set(str(tmp_path / "bytes.parquet"))
    assert [p.file for p in found.pictures()] == ["row 0 of bytes.parquet", "row 1 of bytes.parquet"]
    assert [bad.reason for bad in found.unreadable] == ["unreadable: not a picture", "no picture in the row"]
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [3]}), tmp_path / "paths.parquet")
    (named,) = open_set(str(tmp_path / "paths.parquet")).pictures()
    assert (named.image == np.asarray(Image.open(tmp_path / "a.jpg"))).all()
    assert named.label == "3"
    pq.write_table(pa.table({"x": [1]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no column 'image'"):
        open_set(str(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match="no column 'split'"):
        open_set(f"{tmp_path / 'bytes.parquet'}:test")


def test_a_version_is_read_from_the_store_and_from_where_it_was_pulled(tmp_path):
    from storage.pulling import pull

    store = Store(tmp_path / "store")
    (tmp_path / "new").mkdir()
    manifest, _ = publish(store, "demo", tmp_path / "new", published.fill(tmp_path / "new"))
    pull(store, manifest, tmp_path / "pulled")
    pull(store, manifest, tmp_path / "coco", format="coco")
    url = str(tmp_path / "store")
    for split in ("", ":train"):
        here, pulled = open_set(f"demo@1{split}", url), open_set(f"{tmp_path / 'pulled'}{split}")
        rows = list(zip(here.pictures(), sorted(pulled.pictures(), key=lambda p: p.file), strict=True))
        assert here.count == pulled.count == len(rows)
        for a, b in rows:
            assert (a.file, a.label, a.group, a.split, a.lineage) == (b.file, b.label, b.group, b.split, b.lineage)
            assert (a.image == b.image).all()
    assert open_set(f"demo@sha256:{manifest.digest[:12]}", url).count == manifest.kept
    assert open_set("demo", url).describe == f"{manifest.kept} rows of demo@1 in {url}"
    coco = {p.file: p for p in open_set(str(tmp_path / "coco")).pictures()}
    for a in open_set("demo", url).pictures():
        b = coco[f"images/{a.file}.png"]
        assert (a.image == b.image).all()
        assert (a.mask is None) == (b.mask is None)
        assert (a.label, a.group, a.split) == (b.label, b.group, b.split)
        assert b.lineage["background_id"] == a.lineage["background_id"]
    assert open_set(f"{tmp_path / 'coco'}:val").count == open_set("demo:val", url).count
    pull(store, manifest, tmp_path / "tars", format="webdataset")
    with pytest.raises(ValueError, match=r"pulled as tar files.*pull it as Parquet or COCO"):
        open_set(str(tmp_path / "tars"))


def test_a_name_of_nothing_says_what_was_expected(tmp_path):
    with pytest.raises(VersionNotFoundError, match="neither a folder nor a file here, and there is no dataset"):
        open_set("nope", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no folder or file './nope'"):
        open_set("./nope", str(tmp_path))
    with pytest.raises(ValueError, match="no split 'tset': expected train, val, test"):
        open_set("demo:tset", str(tmp_path))
    pq.write_table(pa.table({"image": [b""], "split": ["train"]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"0 rows of .*rows.parquet:val: expected at least one"):
        open_set(f"{tmp_path / 'rows.parquet'}:val")
    (tmp_path / "one.png").touch()
    with pytest.raises(ValueError, match="is one file"):
        open_set(str(tmp_path / "one.png"))


def test_pictures_are_read_one_by_one(tmp_path):
    """300 pictures of 18 kB raw pass through less memory than 30 of them take."""
    encoded = [encode_grey(picture(seed % 5)[0]) for seed in range(300)]
    pq.write_table(pa.table({"image": encoded}), tmp_path / "rows.parquet", row_group_size=50)
    found = open_set(str(tmp_path / "rows.parquet"))
    for _ in itertools.islice(found.pictures(), 100):
        pass
    tracemalloc.start()
    seen = sum(p.image.shape == (120, 150) for p in found.pictures())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 300
    assert peak < 120 * (len(encoded[0]) + 1000) + 30 * IMAGE.size
