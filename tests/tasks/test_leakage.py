import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.leakage import Shelf, check, lines
from tests.fakes import samples
from tests.fakes.pictures import picture, save, with_calipers

SHAPE = (200, 240)


def scan(seed):
    return picture(seed, SHAPE)[0]


def kinds(leakage):
    return {(span.kind, tuple(name for names in span.members.values() for name in names)) for span in leakage.spans}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Training and test folders of strangers, but for one cropped copy and one mirrored, marked one."""
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        save(root / "train" / f"{seed}.png", scan(seed))
    save(root / "test" / "9.png", scan(9))
    save(root / "test" / "cropped.png", scan(1)[10:-15, 20:])
    save(root / "test" / "mirrored.png", with_calipers(scan(2)[:, ::-1]))
    return root


def test_copies_are_found_between_two_folders_and_within_one_that_holds_both(folders):
    between = check([str(folders / "train"), str(folders / "test")])
    assert kinds(between) == {("duplicate", ("cropped.png", "1.png")), ("duplicate", ("mirrored.png", "2.png"))}
    assert between.splits == {str(folders / "test"): 3, str(folders / "train"): 3}
    assert (between.looked_at, between.concerned, between.unreadable) == (6, 4, {})
    inside = check([str(folders)])
    assert inside.counts == {"duplicate": 2}
    assert set(inside.spans[0].members) == {"train", "test"}
    assert json.loads(inside.model_dump_json())["splits"] == {"test": 3, "train": 3}
    assert lines(inside)[0] == "2 duplicates in more than one split"


def test_lists_of_files_are_read_and_groups_taken_from_their_names(folders, tmp_path):
    (tmp_path / "train.txt").write_text("# those\ntrain/0.png\ntrain/1.png\n\ngone.png\n")
    (tmp_path / "test.txt").write_text("test/9.png\ntest/cropped.png\ntrain/0.png\n")
    specs = [str(tmp_path / "train.txt"), str(tmp_path / "test.txt")]
    found = check(specs, root=folders)
    assert found.counts == {"file": 1, "duplicate": 2}
    assert list(found.unreadable) == ["gone.png"]
    names = check(specs, group_pattern=r"(.)\.png$")
    assert (names.looked_at, names.counts) == (0, {"file": 1, "group": 1})
    assert any("no two splits have pictures" in note for note in names.notes)


def test_a_table_of_splits_shows_groups_and_ancestors_that_span_them(tmp_path):
    (tmp_path / "splits.csv").write_text(
        "id,split,group,background_id\n"
        "scan-1,test,p1,\nscan-2,train,p2,\nsyn-1,train,p2,scan-1\nsyn-2,train,p2,scan-2\nx,val,p2,\ny,,p1,\n"
    )
    found = check([str(tmp_path / "splits.csv")])
    assert kinds(found) == {("group", ("scan-2", "syn-1", "syn-2", "x")), ("background", ("scan-1", "syn-1"))}
    assert (found.unassigned, found.concerned) == (1, 5)


def test_a_pulled_version_is_checked_against_the_scans_it_was_made_from(tmp_path):
    def rows(groups):
        table = samples.table(6, px=48)
        return table.set_column(table.schema.get_field_index("group"), "group", pa.array(groups))

    (tmp_path / "data").mkdir()
    pq.write_table(rows([f"g{k}" for k in range(6)]), tmp_path / "data" / "train-00000-of-00001.parquet")
    scan_of = {"id": "phantom-0000", "file": "0.png", "dataset": "phantom", "group": "phantom/7", "split": "test"}
    pq.write_table(pa.Table.from_pylist([scan_of]), tmp_path / "sources.parquet")
    found = check([str(tmp_path)])
    assert kinds(found) == {("background", ("phantom/0.png", "demo-000000"))}
    pq.write_table(rows(["7"] * 6), tmp_path / "data" / "train-00000-of-00001.parquet")
    assert check([str(tmp_path)]).counts == {"group": 1, "background": 1}


def test_what_cannot_leak_is_refused_with_the_reason(folders, tmp_path):
    with pytest.raises(ValueError, match="names one split, train: nothing can leak"):
        check([str(folders / "train")])
    with pytest.raises(ValueError, match="each once"):
        check([str(folders), str(folders)])
    with pytest.raises(ValueError, match="no bracket"):
        check([str(folders)], group_pattern="a")
    (tmp_path / "x.csv").write_text("name,split\na,train\n")
    with pytest.raises(ValueError, match="no column that names files"):
        check([str(tmp_path / "x.csv")])


def test_a_shelf_gives_back_what_was_put_on_it(tmp_path):
    images = [np.arange(height * 5, dtype=np.uint8).reshape(height, 5) for height in (3, 1, 7)]
    with (tmp_path / "shelf").open("w+b") as file:
        shelf = Shelf(file)
        for image in images:
            shelf.add(image)
        for number in (2, 0, 1):
            np.testing.assert_array_equal(shelf[number], images[number])
        assert len(shelf) == 3
