import numpy as np
import pytest

from tasks.sources.folder import Params, read
from tests import fakes
from tests.fakes.pictures import save


def by_file(root):
    return {scan.file: scan for scan in read(Params(root=root))}


def test_images_masks_and_table_come_together(tmp_path):
    scans = by_file(fakes.folder(tmp_path))
    assert len(scans) == 9
    assert all(scan.defects == () and scan.pixel_mm == 0.1 for scan in scans.values())
    assert scans["images/benign-0.png"].group == "patient-1-0"
    assert not scans["images/normal-0.png"].mask.any()


def test_semicolons_subfolders_organs_and_splits_are_understood(tmp_path):
    fakes.folder(tmp_path)
    (tmp_path / "images/a").mkdir()
    (tmp_path / "images/normal-0.png").rename(tmp_path / "images/a/x.png")
    (tmp_path / "labels.csv").write_text("file;label;organ;split\na/x.png;Normal;fetal head;Test\n", "utf-8-sig")
    scan = by_file(tmp_path)["images/a/x.png"]
    assert (scan.label, scan.organ, scan.split, scan.defects) == ("normal", "fetal head", "test", ())


def test_every_gap_and_contradiction_ends_as_a_row(tmp_path):
    root = fakes.folder(tmp_path)
    table = root / "labels.csv"
    table.write_text(
        table.read_text().replace("benign-0.png,benign", "benign-0.png,cyst")
        + "gone.png,benign,,\nbenign-1.png,malignant,,\n"
    )
    (root / "masks/benign-2.png").unlink()
    save(root / "masks/nobody.png", np.zeros((9, 9), np.uint8))
    save(root / "images/extra.png", np.zeros((9, 9), np.uint8))
    save(root / "masks/malignant-0.png", np.zeros((120, 150), np.uint8))
    defects = {file: " ".join(scan.defects) for file, scan in by_file(root).items()}
    assert "unknown label 'cyst'" in defects["images/benign-0.png"]
    assert "2 different rows" in defects["images/benign-1.png"]
    assert "image without mask" in defects["images/benign-2.png"]
    assert "blank mask" in defects["images/malignant-0.png"]
    assert "no file" in defects["images/gone.png"]
    assert "mask without image" in defects["masks/nobody.png"]
    assert "no row" in defects["images/extra.png"]


@pytest.mark.parametrize("tables", [0, 2])
def test_the_table_must_be_one(tmp_path, tables):
    (fakes.folder(tmp_path) / "labels.csv").unlink()
    for k in range(tables):
        (tmp_path / f"{k}.csv").write_text("file,label\n")
    with pytest.raises(ValueError, match=rf"{tables} csv files; expected images/, masks/"):
        by_file(tmp_path)
