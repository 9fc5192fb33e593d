import numpy as np
import pytest

from tasks.sources.busuclm import Params, nearest_colour, read
from tests import fakes, real_data
from tests.fakes.pictures import save


def by_name(root):
    return {scan.file.rpartition("/")[2]: scan for scan in read(Params(root=root))}


def test_frames_carry_label_patient_and_either_colour_of_mask(tmp_path):
    scans = by_name(fakes.busuclm(tmp_path))
    assert [scans[f"{name}_000.png"].label for name in ("ABCD", "EFGH", "IJKL")] == ["normal", "benign", "malignant"]
    assert scans["ABCD_000.png"].group == scans["ABCD_001.png"].group == "ABCD"
    assert all(scan.defects == () for scan in scans.values())
    assert not scans["ABCD_000.png"].mask.any()
    assert scans["EFGH_000.png"].mask.any()
    assert scans["IJKL_000.png"].mask.any()


def test_blurred_colour_codes_are_read_by_the_nearest():
    pixels = np.array([[[20, 30, 10], [40, 190, 60], [200, 70, 30], [90, 100, 90]]], np.uint8)
    np.testing.assert_array_equal(nearest_colour(pixels), [[0, 1, 2, 0]])


def test_contradictions_and_gaps_end_as_rows(tmp_path):
    root = fakes.busuclm(tmp_path, n=3)
    red = np.zeros((120, 150, 3), np.uint8)
    red[40:60, 40:60, 0] = 255
    save(root / "masks/EFGH_000.png", red)
    save(root / "masks/IJKL_000.png", red[:, :, :] * 0)
    (root / "masks/ABCD_000.png").unlink()
    (root / "images/ABCD_001.png").unlink()
    save(root / "masks/IJKL_001.png", red[:50])
    save(root / "images/IJKL_009.png", red)
    table = root / "INFO.csv"
    table.write_text(table.read_text().replace("EFGH_001.png;150x120;Benign;No", "EFGH_001.png;150x120;Benign;Yes"))
    defects = {name: " ".join(scan.defects) for name, scan in by_name(root).items()}
    assert "mask colour says 400 px malignant, the table benign" in defects["EFGH_000.png"]
    assert "blank mask" in defects["IJKL_000.png"]
    assert "image without mask" in defects["ABCD_000.png"]
    assert "mask without image" in defects["ABCD_001.png"]
    assert "150 × 50 px" in defects["IJKL_001.png"]
    assert "no row" in defects["IJKL_009.png"]
    assert "marks: Doppler" in defects["EFGH_001.png"]


def test_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected images/ABCD_000\.png"):
        list(read(Params(root=fakes.busi(tmp_path))))


def test_the_real_frames_are_read_and_mismatched_ones_named():
    scans = list(read(Params(root=real_data("bus-uclm"))))
    assert len(scans) == 62
    assert len({scan.group for scan in scans}) == 7
    assert [scan.group for scan in scans if scan.mask is None] == ["HESN"] * 13
    # The orientation mark and pictogram of every frame are no overlay; what the table flags is.
    assert sum(any(d.startswith("marks") for d in scan.defects) for scan in scans) == 16
