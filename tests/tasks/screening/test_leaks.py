from tasks.screening.leaks import Entry, spans


def found(*entries):
    return [(span.kind, span.name, span.members) for span in spans(entries)]


def test_a_group_in_two_splits_is_named_with_its_members():
    entries = [
        Entry("a", "train", group="p1"),
        Entry("b", "test", group="p1"),
        Entry("c", "train", group="p2"),
        Entry("d", "train", group="p2"),
    ]
    assert found(*entries) == [("group", "p1", {"test": ["b"], "train": ["a"]})]


def test_what_has_no_split_or_nothing_in_common_leaks_nothing():
    entries = [Entry("a", "train", group="p1"), Entry("b", None, group="p1"), Entry("c", "test"), Entry("d", "val")]
    assert found(*entries) == []


def test_a_background_spans_by_its_rows_and_by_the_scan_itself():
    rows = [Entry("s1", "train", ancestors={"background": "scan-1"}, id="s1")]
    assert found(*rows, Entry("scan.png", "test", id="scan-1")) == [
        ("background", "scan-1", {"test": ["scan.png"], "train": ["s1"]})
    ]
    assert found(*rows, Entry("s2", "val", ancestors={"background": "scan-1"})) == [
        ("background", "scan-1", {"train": ["s1"], "val": ["s2"]})
    ]
    assert (
        found(*rows, Entry("scan.png", "train", id="scan-1"), Entry("s3", "test", ancestors={"mask": "scan-2"})) == []
    )


def test_equal_ids_without_descendants_are_no_lineage():
    assert found(Entry("a", "train", id="syn-1"), Entry("b", "test", id="syn-1")) == []


def test_a_scene_is_named_only_where_it_is_more_than_copies():
    copies = [Entry("a", "train", copies=0, scene=0), Entry("b", "test", copies=0, scene=0)]
    assert [kind for kind, *_ in found(*copies)] == ["duplicate"]
    sweep = [Entry("a", "train", copies=0, scene=0), Entry("b", "test", copies=1, scene=0)]
    assert found(*sweep) == [("scene", "a", {"test": ["b"], "train": ["a"]})]


def test_a_file_is_the_same_by_its_place_not_its_name():
    same, other = Entry("a.png", "train", place="/d/a.png"), Entry("a.png", "test", place="/e/a.png")
    assert found(same, other) == []
    assert found(same, Entry("a.png", "test", place="/d/a.png"))[0][0] == "file"
