"""What a report shows is fetched, and nothing else."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.formats import parquet
from storage.images import decode_grey, decode_mask, encode_grey, encode_mask
from storage.records import SCAN_SCHEMA, Ref
from storage.store import Store
from tasks import illustrate, report
from tests.fakes.samples import table


def test_rows_pass_by_unchanged_and_those_wanted_are_kept() -> None:
    rows = table(60)
    wanted = ["demo-000030", "demo-000007", "demo-000008"]
    watched = illustrate.Watched(wanted)
    passed = pa.Table.from_batches(list(watched.passing(rows.to_batches(max_chunksize=9))))
    assert passed.equals(rows)
    by_id = {row["id"]: row for row in rows.to_pylist()}
    assert watched.rows == [by_id[id] for id in wanted]


def test_kept_examples_are_whole_rows_with_their_pictures(tmp_path: Path) -> None:
    rows = table(120)
    parquet.write(rows.to_batches(), tmp_path)
    by_id = {row["id"]: row for row in rows.to_pylist()}
    shown = illustrate.kept_examples(tmp_path)
    assert [row["id"] for row in shown] == report.pick_kept(rows.to_batches)
    for row in shown:
        image, mask, label = illustrate.example(row)
        assert np.array_equal(image, decode_grey(by_id[row["id"]]["image"]["bytes"]))
        assert (mask is None) == (by_id[row["id"]]["mask"] is None)
        assert mask is None or np.array_equal(mask, decode_mask(by_id[row["id"]]["mask"]["bytes"]))
        assert label == by_id[row["id"]]["label"]
        assert row["seed"] == by_id[row["id"]]["seed"]


def _scan(number: int, **changes: object) -> dict[str, object]:
    mask = np.zeros((16, 16), np.bool_)
    mask[4:8, 4 : 6 + number % 5] = True
    row = dict.fromkeys(SCAN_SCHEMA.names) | {
        "id": f"scan-{number:03d}",
        "image": {"bytes": encode_grey(np.full((16, 16), number, np.uint8)), "path": ""},
        "mask": {"bytes": encode_mask(mask), "path": ""},
        "label": ("benign", "malignant")[number % 2],
        "split": "test",
        "verdict": "kept",
    }
    return row | changes


def test_real_examples_are_lesions_that_nothing_was_trained_on(tmp_path: Path) -> None:
    blank = {"bytes": encode_mask(np.zeros((16, 16), np.bool_)), "path": ""}
    left_out = [
        _scan(100, split="train"),
        _scan(101, verdict="set aside", image=None, mask=None),
        _scan(102, mask=None),
        _scan(103, mask=blank),
    ]
    rows = [*left_out, *(_scan(number) for number in range(49, -1, -1))]  # a source need not sort them
    store = Store(tmp_path)
    sha256 = store.put_table("builds/ingest/x/scans.parquet", pa.Table.from_pylist(rows, schema=SCAN_SCHEMA))
    found = illustrate.real_examples(store, Ref(key="builds/ingest/x/scans.parquet", sha256=sha256), 6)
    assert [int(image[0, 0]) for image, _, _ in found.first] == [0, 1, 2, 3, 4, 5]
    assert [label for _, _, label in found.by_label] == ["benign"] * 8 + ["malignant"] * 8
    shown = [int(image[0, 0]) for image, _, _ in found.by_label]
    assert shown[0] == 0
    assert shown[8] == 1
    assert max(shown) < 50


def test_a_source_without_held_out_lesions_has_no_examples(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = pa.Table.from_pylist([_scan(1, split="train")], schema=SCAN_SCHEMA)
    ref = Ref(key="builds/ingest/x/scans.parquet", sha256=store.put_table("builds/ingest/x/scans.parquet", rows))
    assert illustrate.real_examples(store, ref, 6) == illustrate.RealExamples([], [])
