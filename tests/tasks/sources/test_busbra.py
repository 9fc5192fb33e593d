import numpy as np

from tasks.sources.busbra import Params, read
from tests import fakes
from tests.fakes.pictures import save


def test_views_share_their_case_and_its_official_split(tmp_path):
    scans = list(read(Params(root=fakes.busbra(tmp_path, n=5))))
    assert [scan.file for scan in scans] == sorted(scan.file for scan in scans)
    groups = {}
    for scan in scans:
        groups.setdefault(scan.group, []).append(scan)
    assert all(len(views) == 2 and len({view.split for view in views}) == 1 for views in groups.values())
    assert [groups[f"case-{k}"][0].split for k in range(1, 6)] == ["train", "train", "train", "val", "test"]
    assert all(scan.mask.any() and scan.defects == () for scan in scans)


def test_without_official_folds_no_split_is_given(tmp_path):
    fakes.busbra(tmp_path)
    assert all(scan.split is None for scan in read(Params(root=tmp_path, official_folds=False)))
    (tmp_path / "5-fold-cv.csv").unlink()
    assert all(scan.split is None for scan in read(Params(root=tmp_path)))


def test_what_is_missing_or_spoilt_ends_as_a_row(tmp_path):
    root = fakes.busbra(tmp_path)
    (root / "Images/bus_0001-l.png").unlink()
    (root / "Masks/mask_0001-r.png").unlink()
    (root / "Images/bus_0002-l.png").unlink()
    (root / "Masks/mask_0002-l.png").unlink()
    save(root / "Masks/mask_0002-r.png", np.zeros((9, 9), np.uint8))
    save(root / "Images/bus_0099-l.png", np.zeros((9, 9), np.uint8))
    table = root / "bus_data.csv"
    table.write_text(table.read_text().replace("bus_0004-l,4,x,benign", "bus_0004-l,4,x,odd"))
    defects = {scan.file: " ".join(scan.defects) for scan in read(Params(root=root))}
    assert "mask without image" in defects["Masks/mask_0001-l.png"]
    assert "image without mask" in defects["Images/bus_0001-r.png"]
    assert "no file" in defects["Images/bus_0002-l.png"]
    assert "9 × 9 px" in defects["Images/bus_0002-r.png"]
    assert "no row" in defects["Images/bus_0099-l.png"]
    assert "unknown label 'odd'" in defects["Images/bus_0004-l.png"]
