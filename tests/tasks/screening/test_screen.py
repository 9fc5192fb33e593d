import csv
import io
from itertools import islice

import numpy as np
import pytest
from pydantic import ValidationError

from storage.images import decode_grey, decode_mask, pixels_sha256
from storage.records import SCAN_SCHEMA, Scan
from tasks import screening, sources
from tests import fakes, real_data
from tests.fakes.pictures import picture, save, with_calipers

SHAPE = (240, 300)


def scan(seed, file, label="benign", change=None, **more):
    image, mask = picture(seed, SHAPE)
    return Scan(file, image if change is None else change(image), mask, label, "breast", **more)


def screened(*scans, **params):
    rows = screening.screen(scans, screening.ScreenParams(px=64, **params), 0, "busi")
    return {row.file: row for row in rows}


def test_every_scan_is_a_row_of_the_schema_letterboxed_with_its_scale():
    rows = screening.screen(
        [scan(0, "a.png", pixel_mm=0.1), Scan("b.png", None, None, "benign", "breast", defects=("unreadable: x",))],
        screening.ScreenParams(px=64),
        0,
        "busi",
    )
    table = screening.to_table(rows)
    assert table.schema == SCAN_SCHEMA
    good, bad = table.to_pylist()
    assert good["id"].startswith("busi-")
    assert len(good["id"]) == len("busi-") + 12
    assert good["pixel_mm"] == pytest.approx(0.1 * 300 / 64)
    image = decode_grey(good["image"]["bytes"])
    assert image.shape == decode_mask(good["mask"]["bytes"]).shape == (64, 64)
    assert good["sha256"] == pixels_sha256(image)
    assert (good["verdict"], bad["verdict"], bad["image"]) == ("kept", "set aside", None)
    assert bad["reasons"] == ["unreadable: x"]
    assert bad["split"] is None


def test_the_first_clean_copy_is_kept_and_the_others_name_it():
    rows = screened(scan(0, "a.png", change=with_calipers), scan(0, "b.png"), scan(0, "c.png"), scan(1, "d.png"))
    assert [row.verdict for row in rows.values()] == ["set aside", "kept", "set aside", "kept"]
    assert rows["c.png"].reasons == ("near-duplicate of b.png",)
    assert "near-duplicate of b.png" in rows["a.png"].reasons
    assert len({rows[file].group for file in ("a.png", "b.png", "c.png")}) == 1
    assert rows["d.png"].group != rows["a.png"].group


def test_copies_with_different_labels_are_all_set_aside():
    rows = screened(scan(0, "a.png"), scan(0, "b.png", "malignant"), scan(0, "c.png"), scan(1, "d.png"))
    assert rows["a.png"].reasons == ("label conflict with b.png",)
    assert rows["b.png"].reasons == ("label conflict with a.png",)
    assert rows["c.png"].reasons == ("label conflict with b.png",)
    assert [row.verdict for row in rows.values()] == ["set aside"] * 3 + ["kept"]


def test_copies_of_an_unknown_label_do_not_condemn_the_known():
    unknown = scan(0, "axilla/b.png", "axilla", defects=("unknown label folder 'axilla': expected one of benign",))
    assert screened(scan(0, "a.png"), unknown)["a.png"].verdict == "kept"


def test_a_copy_joins_the_patients_it_belongs_to():
    rows = screened(
        scan(0, "a.png", group="p1"), scan(1, "b.png", group="p1"), scan(1, "c.png", group="p2"), scan(2, "d.png")
    )
    assert rows["a.png"].group == rows["b.png"].group == rows["c.png"].group == "busi/p1"
    assert rows["d.png"].group == "busi/d.png"


def test_marks_set_aside_or_stay_as_a_remark():
    marked = scan(0, "a.png", change=with_calipers)
    coloured = scan(1, "b.png", defects=("marks: coloured overlay on 1.00% of the pixels",))
    assert [row.verdict for row in screened(marked, coloured).values()] == ["set aside", "set aside"]
    kept = screened(marked, coloured, keep_marked=True)
    assert [row.verdict for row in kept.values()] == ["kept", "kept"]
    assert kept["a.png"].reasons


def test_a_copy_of_a_test_image_is_never_trained_on():
    rows = screened(
        scan(0, "a.png", group="p1", split="train"),
        scan(1, "b.png", group="p1", split="train"),
        scan(1, "c.png", group="p2", split="test"),
        scan(2, "d.png", group="p2", split="test"),
    )
    assert {row.split for row in rows.values()} == {"test"}


def test_a_mask_that_vanishes_in_scaling_is_named():
    image, mask = picture(0, SHAPE)
    mask[:] = False
    mask[100, 100] = True
    row = screened(Scan("a.png", image, mask, "benign", "breast"))["a.png"]
    assert row.reasons == ("mask vanishes at 64 px",)


def test_splits_that_leave_nothing_to_train_are_refused():
    with pytest.raises(ValidationError, match="must be below 1"):
        screening.ScreenParams(val=0.5, test=0.5)


def test_every_scan_is_tested_in_one_fold_whatever_its_source_says():
    scans = [scan(seed, f"{seed}.png", "malignant" if seed % 2 else "benign", split="train") for seed in range(9)]
    tested = [
        file for fold in range(3) for file, row in screened(*scans, folds=3, fold=fold).items() if row.split == "test"
    ]
    assert sorted(tested) == sorted(own.file for own in scans)


@pytest.mark.parametrize(("given", "words"), [({"folds": 3}, "give both"), ({"folds": 3, "fold": 3}, "0 to 2")])
def test_a_fold_that_does_not_exist_is_refused(given, words):
    with pytest.raises(ValidationError, match=words):
        screening.ScreenParams(**given)


def test_findings_and_csv_tell_what_is_wrong(tmp_path):
    root = fakes.busi(tmp_path)
    image, mask = picture(101)
    for name in ("benign (8)", "benign (9)"):
        save(root / "benign" / f"{name}.png", np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8))
        save(root / "benign" / f"{name}_mask.png", mask)
    (root / "normal/normal (1).png").write_text("text")
    rows = screening.screen(list(sources.read(sources.at("busi", root))), screening.ScreenParams(px=64), 0, "busi")
    found = screening.inspect(rows)
    assert found.files == 14
    assert found.labels == {"benign": 6, "malignant": 4, "normal": 4}
    assert found.duplicates == [["benign/benign (8).png", "benign/benign (9).png", "malignant/malignant (1).png"]]
    assert found.conflicts == found.duplicates
    assert found.reasons == {"label conflict": 3, "unreadable": 1}
    assert list(found.defects) == ["normal/normal (1).png"]
    lines = list(csv.DictReader(io.StringIO(screening.to_csv(rows))))
    assert list(lines[0]) == ["file", "label", "group", "split", "verdict", "reasons"]
    assert len(lines) == 14
    assert sum(line["verdict"] == "kept" for line in lines) == sum(found.kept.values()) == 10


def test_no_group_spans_two_splits_on_real_scans():
    scans = list(islice(sources.read(sources.at("busi", real_data("busi"))), 80))
    rows = screening.screen(scans, screening.ScreenParams(px=64), 0, "busi")
    splits = {}
    for row in rows:
        if row.verdict == "kept":
            splits.setdefault(row.group, set()).add(row.split)
    assert all(len(own) == 1 for own in splits.values())
