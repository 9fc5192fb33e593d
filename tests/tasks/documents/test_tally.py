from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from storage.records import IMAGE
from tasks.documents import tally
from tests.fakes.samples import SCORES, table


def _thin(rows: pa.Table) -> pa.Table:
    return rows.select([field.name for field in rows.schema if field.type != IMAGE])


def test_counts_are_those_of_the_rows_however_they_are_batched() -> None:
    rows = table(60)
    kept = rows.filter(pc.equal(rows["verdict"], "kept"))
    listed = _thin(kept).to_pylist()
    counted = [
        tally.count(_thin(kept).to_batches(max_chunksize=size), _thin(rows).to_batches(max_chunksize=size), SCORES)
        for size in (1, 7, 1000)
    ]
    for found in counted:
        assert found.kept == len(listed)
        assert found.by_label() == dict(sorted(Counter(row["label"] for row in listed).items()))
        assert found.planned == {"benign": 20, "malignant": 20, "normal": 20}
        assert found.filled["segmenter_dice"] == sum(row["segmenter_dice"] is not None for row in listed)
        assert found.distinct["group"] == len({row["group"] for row in listed})
        assert (found.untouched, found.compared) == (len(listed), len(listed))
        assert found.torn == []
        dice = [row["segmenter_dice"] for row in listed if row["label"] == "benign"]
        spread = found.scores["benign"]["segmenter_dice"]
        assert spread.mean == pytest.approx(sum(dice) / len(dice))
        assert (spread.low, spread.high) == (min(dice), max(dice))
        assert found.scores["normal"]["segmenter_dice"].mean is None


def test_a_group_in_two_splits_is_found() -> None:
    rows = _thin(table(12, only_kept=True)).to_pylist()
    rows[0] |= {"group": "torn", "split": "train"}
    rows[1] |= {"group": "torn", "split": "test"}
    found = tally.count(pa.Table.from_pylist(rows).to_batches(max_chunksize=1), [], SCORES)
    assert found.torn == ["torn"]


def test_rows_that_lack_a_column_count_as_empty() -> None:
    found = tally.count(pa.table({"label": ["benign"], "split": ["train"]}).to_batches(), [], SCORES)
    assert (found.kept, found.compared, found.backgrounds, found.scores) == (1, 0, {}, {})


def test_nothing_kept_is_counted_too(described_folder: Path) -> None:
    ledger = pq.read_table(described_folder / "ledger.parquet")
    found = tally.count(ledger.slice(0, 0).to_batches(), ledger.to_batches(), SCORES)
    assert (found.kept, found.by_label(), sum(found.planned.values())) == (0, {}, 30)
