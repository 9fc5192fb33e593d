from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage import comparing
from storage.comparing import Diff, RowChange, compare, flattened, lines
from storage.errors import CorruptFileError
from storage.images import encode_grey
from storage.records import Manifest, SetScore
from storage.store import Store
from storage.versions import publish
from tests.fakes.samples import table
from tests.storage.forged import Rows, changed, publish_damaged, write

FID = SetScore(name="fid", value=1.5, low=1.1, high=2.0, n_real=20, n_synthetic=24, extractor="inception@1", floor=0.3)


def _publish(store: Store, tmp_path: Path, rows: pa.Table, dataset: str = "demo", **about: Any) -> Manifest:
    folder = tmp_path / f"folder-{len(list(tmp_path.iterdir()))}"
    return publish(store, dataset, folder, write(folder, rows, tars=False).model_copy(update=about))[0]


def _rows(change: Any, count: int = 40) -> pa.Table:
    rows = table(count, only_kept=True)
    listed = rows.to_pylist()
    listed = change(listed) or listed
    return pa.Table.from_pylist(listed, schema=rows.schema)


def test_a_version_does_not_differ_from_itself(store: Store, tmp_path: Path) -> None:
    version = _publish(store, tmp_path, table(24), scores=[FID])
    diff = compare(store, version, version)
    assert diff.same
    assert diff.rows.model_dump(exclude_defaults=True) == {"before": version.kept, "after": version.kept}
    assert (diff.recipe, diff.counts, diff.provenance, diff.licences_added, diff.licences_removed) == (
        [],
        [],
        [],
        [],
        [],
    )
    assert [(score.name, score.before, score.after, score.apart) for score in diff.scores] == [("fid", FID, FID, False)]


def test_equal_rows_in_other_files_do_not_differ(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    rows = table(24)
    one = _publish(store, tmp_path, rows)
    two = _publish(store, tmp_path, rows, "other")
    diff = compare(store, one, two)
    assert diff.rows.model_dump(exclude_defaults=True) == {"before": one.kept, "after": one.kept}


@pytest.mark.parametrize("window", [1, 3, 8192])
def test_rows_added_removed_and_changed_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(comparing, "WINDOW", window)
    png = encode_grey(np.full((32, 32), 7, np.uint8))

    def change(rows: Rows) -> Rows:
        rows[4]["image"]["bytes"] = png
        rows[5]["label"] = "cyst"
        rows[5]["lesion_contrast"] = None
        rows[39]["reasons"] = ["looked at by hand"]
        new = [{**rows[0], "id": f"demo-000007{letter}"} for letter in "ab"] + [{**rows[0], "id": "zeta"}]
        return [*rows[1:8], *new[:2], *rows[8:20], *rows[25:], new[2]]

    store = Store(tmp_path / "store")
    one = _publish(store, tmp_path, _rows(lambda rows: rows))
    two = _publish(store, tmp_path, _rows(change))
    rows = compare(store, one, two, limit=2).rows
    assert (rows.before, rows.after, rows.added, rows.removed, rows.changed) == (40, 37, 3, 6, 3)
    assert rows.first_added == ["demo-000007a", "demo-000007b"]
    assert rows.first_removed == ["demo-000000", "demo-000020"]
    assert rows.first_changed == [
        RowChange(id="demo-000004", columns=["image"]),
        RowChange(id="demo-000005", columns=["label", "lesion_contrast"]),
    ]
    assert rows.columns == {"image": 1, "label": 1, "lesion_contrast": 1, "reasons": 1}
    back = compare(store, two, one, limit=100).rows
    assert (back.added, back.removed, back.changed) == (6, 3, 3)
    assert back.first_removed == ["demo-000007a", "demo-000007b", "zeta"]


def test_versions_with_other_score_columns_are_compared_by_what_they_share(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    rows = table(24)
    place = rows.schema.get_field_index("lesion_contrast")
    renamed = rows.rename_columns(["sharpness" if i == place else name for i, name in enumerate(rows.column_names)])
    diff = compare(store, _publish(store, tmp_path, rows), _publish(store, tmp_path, renamed))
    assert (diff.rows.changed, diff.rows.columns_added, diff.rows.columns_removed) == (
        0,
        ["sharpness"],
        ["lesion_contrast"],
    )


def test_nan_does_not_differ_from_nan(tmp_path: Path) -> None:
    def spoil(seed: int) -> pa.Table:
        return _rows(lambda rows: rows[3].update(lesion_contrast=float("nan"), seed=seed))

    store = Store(tmp_path / "store")
    diff = compare(store, _publish(store, tmp_path, spoil(1)), _publish(store, tmp_path, spoil(2)))
    assert diff.rows.first_changed == [RowChange(id="demo-000003", columns=["seed"])]


def test_versions_without_rows_can_be_compared(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def reject(rows: Rows) -> None:
        for row in rows:
            row.update(verdict="rejected", reasons=["segmenter_dice 0.1 < 0.5"])

    none = _publish(store, tmp_path, _rows(reject))
    full = _publish(store, tmp_path, _rows(lambda rows: rows))
    assert compare(store, none, full).rows.added == 40
    diff = compare(store, full, none).rows
    assert (diff.removed, diff.after, diff.columns_removed) == (40, 0, [])


def test_recipe_scores_counts_licences_and_software_stand_side_by_side(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    better = FID.model_copy(update={"value": 0.6, "low": 0.5, "high": 0.7})
    other = FID.model_copy(update={"name": "kid", "extractor": "dino@2"})
    one = _publish(
        store,
        tmp_path,
        table(24),
        recipe={"plan": {"count": 24, "labels": ["a"]}, "seed": 1, "gone": True},
        scores=[FID, other.model_copy(update={"extractor": "dino@1"})],
        provenance={"torch": "2.6", "numpy": "2.0", "old": "1"},
        licences=["MIT", "Apache-2.0"],
    )
    two = _publish(
        store,
        tmp_path,
        table(30),
        recipe={"plan": {"count": 30, "labels": ["a", "b"]}, "seed": 1},
        scores=[better, other, FID.model_copy(update={"name": "gain", "value": None, "note": "too few"})],
        provenance={"torch": "2.7", "numpy": "2.0", "new": "1"},
        licences=["MIT", "CC0"],
    )
    diff = compare(store, one, two)
    assert [(change.field, change.change, change.before, change.after) for change in diff.recipe] == [
        ("gone", "removed", True, None),
        ("plan.count", "changed", 24, 30),
        ("plan.labels[1]", "added", None, "b"),
    ]
    assert [(score.name, score.apart) for score in diff.scores] == [("fid", True), ("kid", None), ("gain", None)]
    assert {change.field: (change.before, change.after) for change in diff.provenance} == {
        "torch": ("2.6", "2.7"),
        "old": ("1", None),
        "new": (None, "1"),
    }
    assert (diff.licences_added, diff.licences_removed) == (["CC0"], ["Apache-2.0"])
    counts = {change.field: (change.before, change.after) for change in diff.counts}
    assert counts["planned"] == (24, 30)
    assert counts["kept"] == (one.kept, two.kept)
    assert any(field.startswith("rejected.") for field in counts)
    assert Diff.model_validate_json(diff.model_dump_json()) == diff
    text = "\n".join(lines(diff))
    for expected in (
        "demo@1 → demo@2",
        f"rows: {one.kept} → {two.kept}",
        "  plan.count: 24 → 30",
        "  gone: True → nothing",
        "  fid: 1.5 (1.1 … 2), floor 0.3, N 20/24 → 0.6 (0.5 … 0.7), floor 0.3, N 20/24  the intervals are apart",
        "  gain: not scored → none (too few)",
        "  licences added: CC0",
        "  torch: 2.6 → 2.7",
    ):
        assert expected in text, text


def test_intervals_of_other_sizes_are_not_compared(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one = _publish(store, tmp_path, table(24), scores=[FID])
    more = FID.model_copy(update={"low": 9.0, "high": 9.5, "n_synthetic": 240})
    two = _publish(store, tmp_path, table(30), scores=[more])
    assert compare(store, one, two).scores[0].apart is None


@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        ("metadata.parquet", lambda rows: rows.reverse(), "list other rows"),
        ("index.parquet", lambda rows: rows.pop(), "list other rows"),
        ("index.parquet", lambda rows: rows[0].update(id="x"), "list other rows"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(tmp_path: Path, path: str, change: Any, expected: str) -> None:
    store, damaged = publish_damaged(tmp_path, changed(change, path))
    sound = _publish(store, tmp_path, table(30))
    with pytest.raises(CorruptFileError, match=expected):
        compare(store, damaged, sound)
    table_file = next(file for file in sound.files if file.path == path)
    store.put(table_file.key, store.read(table_file.key)[:-1])
    with pytest.raises(CorruptFileError, match=rf"{path} of demo@2 is damaged"):
        compare(store, sound, damaged)


def test_plain_values_have_one_path_each() -> None:
    nested = {"a": {"b": [1, {"c": None}]}, "d": [], "e": {}}
    assert flattened(nested) == {"a.b[0]": 1, "a.b[1].c": None, "d": [], "e": {}}


def test_pictures_are_compared_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    one, two = _publish(store, tmp_path, table(24)), _publish(store, tmp_path, table(30))
    fetched: set[str] = set()
    fetch = Store.fetch

    def noted(self: Store, key: str, *rest: Any, **more: Any) -> str:
        fetched.add(key)
        return fetch(self, key, *rest, **more)

    monkeypatch.setattr(Store, "fetch", noted)
    assert compare(store, one, two).rows.columns["image"] > 0
    files = [file for version in (one, two) for file in version.files]
    assert fetched == {file.key for file in files if file.path in ("metadata.parquet", "index.parquet")}
