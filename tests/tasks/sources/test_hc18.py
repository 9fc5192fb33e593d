import csv

import numpy as np
import pytest

from tasks.sources.hc18 import Params, fill_outline, read
from tests import fakes, real_data
from tests.fakes.hc18 import ellipse, outline
from tests.fakes.pictures import save

SHAPE = (270, 400)


def circumference(mask):
    """Of the ellipse with the mask's second moments (Ramanujan)."""
    y, x = np.nonzero(mask)
    b, a = 2 * np.sqrt(np.linalg.eigvalsh(np.cov(np.stack([x, y]))))
    h = ((a - b) / (a + b)) ** 2
    return np.pi * (a + b) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h)))


@pytest.mark.parametrize(
    "centre",
    [(135, 200), (80, 200), (200, 190), (135, 90), (135, 330), (70, 80), (210, 330)],
    ids=["inside", "top", "bottom", "left", "right", "corner", "other corner"],
)
def test_an_outline_is_filled_also_where_it_leaves_the_picture(centre):
    axes = (120, 95)
    truth = ellipse(SHAPE, centre, axes)
    filled = fill_outline(outline(SHAPE, centre, axes))
    assert (filled & truth).sum() / (filled | truth).sum() > 0.995


def test_an_outline_with_a_gap_is_closed_by_its_ellipse():
    drawn = outline(SHAPE, (135, 200), (120, 95))
    drawn[:, 195:215] = False
    truth = ellipse(SHAPE, (135, 200), (120, 95))
    filled = fill_outline(drawn)
    assert (filled & truth).sum() / (filled | truth).sum() > 0.99


def test_filled_and_empty_annotations_stay_what_they_are():
    truth = ellipse(SHAPE, (135, 200), (120, 95))
    np.testing.assert_array_equal(fill_outline(truth), truth)
    assert not fill_outline(np.zeros(SHAPE, bool)).any()
    line = np.zeros(SHAPE, bool)
    line[100, 50:300] = True
    assert not fill_outline(line).any()


def test_frames_of_one_exam_share_its_group_and_carry_their_pixel_size(tmp_path):
    scans = {scan.file: scan for scan in read(Params(root=fakes.hc18(tmp_path)))}
    first, second = scans["training_set/000_HC.png"], scans["training_set/000_2HC.png"]
    assert first.group == second.group == "training_set/000"
    assert scans["training_set/001_HC.png"].group != first.group
    assert (first.pixel_mm, second.pixel_mm) == (0.12, 0.15)
    assert all(scan.defects == () for scan in scans.values())


def test_what_is_missing_or_spoilt_ends_as_a_row(tmp_path):
    root = fakes.hc18(tmp_path, n=4)
    (root / "training_set/000_HC.png").unlink()
    (root / "training_set/001_HC_Annotation.png").unlink()
    save(root / "training_set/002_HC_Annotation.png", np.zeros((9, 9), np.uint8))
    table = root / "training_set_pixel_size_and_HC.csv"
    table.write_text(table.read_text().replace("003_HC.png,0.15", "003_HC.png,wide"))
    defects = {scan.file: " ".join(scan.defects) for scan in read(Params(root=root))}
    assert "no file" in defects["training_set/000_HC.png"]
    assert "mask without image" in defects["training_set/000_HC_Annotation.png"]
    assert "image without mask" in defects["training_set/001_HC.png"]
    assert "9 × 9 px" in defects["training_set/002_HC.png"]
    assert "'wide'" in defects["training_set/003_HC.png"]


def test_a_folder_without_the_table_is_refused(tmp_path):
    (fakes.hc18(tmp_path) / "training_set_pixel_size_and_HC.csv").unlink()
    with pytest.raises(ValueError, match="lacks training_set_pixel_size_and_HC"):
        list(read(Params(root=tmp_path)))


def test_the_filled_heads_have_the_published_circumference():
    root = real_data("hc18")
    with (root / "training_set_pixel_size_and_HC.csv").open() as file:
        published = {row["filename"]: float(row["head circumference (mm)"]) for row in csv.DictReader(file)}
    errors = {}
    for scan in read(Params(root=root)):
        name = scan.file.rpartition("/")[2]
        if int(name[:3]) % 5 == 1:  # a fifth of them, among them the two cut off at the border
            errors[name] = circumference(scan.mask) * scan.pixel_mm / published[name] - 1
    assert {"186_HC.png", "346_HC.png"} <= set(errors)
    cut = {name: errors.pop(name) for name in ("186_HC.png", "346_HC.png")}
    assert max(map(abs, errors.values())) < 5e-4
    assert max(map(abs, cut.values())) < 5e-3  # the part outside the picture is not in the mask
