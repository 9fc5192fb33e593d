import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.images import encode_grey
from storage.records import Scan
from tasks.copy_search import CopyParams, find, write_csv
from tasks.quality.copies import COPY
from tasks.screening.screen import ScreenParams, screen
from tests.fakes.pictures import picture, save

SHAPE = (200, 240)


def scan(seed):
    return picture(seed, SHAPE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six training scans with masks; among made pictures a cropped and a mirrored copy, a stranger, a lesion of scan 4
    in another picture, and a file that is no picture."""
    root = tmp_path_factory.mktemp("copies")
    for seed in range(6):
        image, mask = scan(seed)
        save(root / "train" / f"{seed}.png", image)
        save(root / "train" / f"{seed}_mask.png", mask)
    save(root / "made" / "cropped.png", scan(1)[0][15:-20, 20:-10])
    save(root / "made" / "mirrored.png", scan(2)[0][:, ::-1].copy())
    save(root / "made" / "stranger.png", scan(50)[0])
    image, mask = scan(4)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    patch = slice(rows[0] - 20, rows[-1] + 21), slice(columns[0] - 20, columns[-1] + 21)
    other, drawn = scan(51)[0].copy(), np.zeros(SHAPE, bool)
    other[patch], drawn[patch] = image[patch], mask[patch]
    save(root / "made" / "lesion.png", other)
    save(root / "made" / "lesion_mask.png", drawn)
    (root / "made" / "broken.png").write_bytes(b"no picture")
    return root


def test_copies_are_found_strangers_are_not_and_what_is_broken_is_told(folders, tmp_path):
    table = find(str(folders / "train"), str(folders / "made"))
    rows = {row.file: row for row in table.rows}
    assert {file for file, row in rows.items() if row.is_copy} == {"cropped.png", "mirrored.png", "lesion.png"}
    assert (rows["cropped.png"].nearest, rows["mirrored.png"].nearest) == ("1.png", "2.png")
    assert rows["lesion.png"].lesion_nearest == "4.png"
    assert rows["stranger.png"].similarity < COPY
    assert (table.copies.found, table.copies.of) == (3, 4)
    assert (table.copied.found, table.copied.of) == (3, 6)
    assert table.copies.low < 0.75 < table.copies.high
    assert list(table.unreadable) == ["broken.png"]

    write_csv(table, tmp_path / "copies.csv")
    with (tmp_path / "copies.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0])[:4] == ["file", "nearest", "similarity", "is_copy"]
    assert {row["file"]: row["is_copy"] for row in written}["cropped.png"] == "true"


def test_held_out_pictures_that_lie_in_training_raise_the_limit(folders):
    table = find(str(folders / "train"), str(folders / "made"), held_out=str(folders / "train"))
    assert table.strangers_95 == table.limit > 0.9
    assert any("the same people are on both sides" in note for note in table.notes)


def test_a_background_that_a_row_declares_is_no_copy(folders, tmp_path):
    image = scan(3)[0]
    [known] = screen([Scan("3.png", image, None, "normal", "breast")], ScreenParams(px=64), 0, "clinic")
    rows = [("declared", known.id), ("undeclared", None), ("another", f"clinic-{'0' * 12}")]
    pq.write_table(
        pa.table(
            {
                "id": [name for name, _ in rows],
                "image": [{"bytes": encode_grey(image), "path": name} for name, _ in rows],
                "background_id": pa.array([background for _, background in rows], pa.string()),
            }
        ),
        tmp_path / "made.parquet",
    )
    table = find(str(folders / "train"), str(tmp_path / "made.parquet"))
    found = {row.file: (row.nearest, row.is_copy, row.declared) for row in table.rows}
    assert found["declared"] == ("3.png", False, True)
    assert found["undeclared"] == found["another"] == ("3.png", True, False)
    assert table.declared == 1


def test_frames_of_one_group_do_not_make_each_other_strangers(tmp_path):
    rows = [{"bytes": encode_grey(scan(seed)[0][: 200 - 10 * k]), "path": ""} for seed in range(3) for k in range(2)]
    groups = [f"patient {seed}" for seed in range(3) for _ in range(2)]
    pq.write_table(pa.table({"image": rows, "group": groups}), tmp_path / "train.parquet")
    save(tmp_path / "made" / "0.png", scan(60)[0])
    table = find(str(tmp_path / "train.parquet"), str(tmp_path / "made"), params=CopyParams(strangers=20))
    assert table.alarms.of == 6
    assert table.strangers_95 < COPY
    assert table.limit == COPY


def test_blank_training_pictures_are_refused(tmp_path):
    save(tmp_path / "train" / "0.png", np.zeros((50, 60), np.uint8))
    save(tmp_path / "made" / "0.png", scan(0)[0])
    with pytest.raises(ValueError, match="found nothing to recognise in 1 training pictures"):
        find(str(tmp_path / "train"), str(tmp_path / "made"))
