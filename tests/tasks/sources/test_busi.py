import numpy as np
import pytest
from PIL import Image

from tasks.sources.busi import LABELS, Params, read
from tests import fakes, real_data
from tests.fakes.pictures import save


def by_file(root):
    return {scan.file: scan for scan in read(Params(root=root))}


def test_every_image_is_one_scan_sorted_by_file_with_blank_masks_on_normals(tmp_path):
    scans = list(read(Params(root=fakes.busi(tmp_path, n=3))))
    assert [scan.file for scan in scans] == sorted(scan.file for scan in scans)
    assert {scan.label for scan in scans} == set(LABELS)
    assert len(scans) == 9
    assert all(scan.defects == () and scan.image is not None and scan.group is None for scan in scans)
    assert all(scan.mask.any() == (scan.label != "normal") for scan in scans)


def test_several_masks_are_merged_as_truth_values(tmp_path):
    fakes.busi(tmp_path)
    parts = [tmp_path / "benign" / f"benign (2)_mask{tail}.png" for tail in ("", "_1")]
    overlap = np.asarray(Image.open(parts[0])) | np.asarray(Image.open(parts[1]))
    save(parts[1], overlap.astype(np.uint8) * 255)  # overlapping: summed bytes would wrap
    np.testing.assert_array_equal(by_file(tmp_path)["benign/benign (2).png"].mask, overlap)


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (lambda r: (r / "benign/benign (1)_mask.png").unlink(), "benign/benign (1).png", "image without mask"),
        (lambda r: (r / "benign/benign (1).png").unlink(), "benign/benign (1)_mask.png", "mask without image"),
        (lambda r: (r / "normal/normal (1).png").write_text("text"), "normal/normal (1).png", "unreadable"),
        (lambda r: (r / "benign/notes.txt").write_text("text"), "benign/notes.txt", "not a picture file"),
        (
            lambda r: save(r / "axilla/a (1).png", np.zeros((9, 9), np.uint8)),
            "axilla/a (1).png",
            "unknown label folder",
        ),
        (lambda r: save(r / "stray.png", np.zeros((9, 9), np.uint8)), "stray.png", "outside the label folders"),
        (
            lambda r: save(r / "benign/benign (1)_mask.png", np.zeros((9, 9), np.uint8)),
            "benign/benign (1).png",
            "9 × 9 px, its image 150 × 120 px",
        ),
        (
            lambda r: save(r / "normal/normal (1)_mask.png", np.full((120, 150), 255, np.uint8)),
            "normal/normal (1).png",
            "normal with a lesion mask",
        ),
        (
            lambda r: save(r / "malignant/malignant (1)_mask.png", np.zeros((120, 150), np.uint8)),
            "malignant/malignant (1).png",
            "blank mask on a malignant image",
        ),
        (
            lambda r: (r / "benign/benign (2)_mask_1.png").write_bytes(b"broken"),
            "benign/benign (2).png",
            "mask benign (2)_mask_1.png unreadable",
        ),
    ],
)
def test_a_spoilt_file_ends_as_a_row_with_the_reason(tmp_path, spoil, file, reason):
    spoil(fakes.busi(tmp_path))
    scan = by_file(tmp_path)[file]
    assert any(reason in defect for defect in scan.defects)
    others = [s for name, s in by_file(tmp_path).items() if name != file]
    assert all(s.defects == () for s in others)


def test_the_folder_around_the_release_is_found(tmp_path):
    fakes.busi(tmp_path / "Dataset_BUSI_with_GT", n=1)
    assert len(by_file(tmp_path)) == 3


def test_another_layout_is_refused_with_the_expected_one(tmp_path):
    fakes.busuclm(tmp_path)
    with pytest.raises(ValueError, match=r"holds .*INFO\.csv.* expected \{benign,malignant,normal\}"):
        list(read(Params(root=tmp_path)))


def test_the_real_scans_are_all_readable_with_their_masks():
    scans = list(read(Params(root=real_data("busi"))))
    assert len(scans) == 623
    assert all(scan.mask is not None for scan in scans)
    coloured = [scan.file for scan in scans if scan.defects]
    assert len(coloured) == 13
    assert all("coloured overlay" in scan.defects[0] for scan in scans if scan.defects)
