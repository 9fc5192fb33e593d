"""What a report shows is fetched, and nothing else."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.formats import parquet
from storage.images import decode_grey, decode_mask, encode_grey, encode_mask
from storage.records import SCAN_SCHEMA, Ref, SetScore
from storage.store import Store
from storage.versions import About, publish
from tasks import illustrate, report
from tasks.documents.licences import Licensed
from tasks.quality import HIGHER_IS_BETTER, IMAGE_SCORES, LOWER_IS_BETTER, SET_SCORES
from tests.fakes.samples import SCORES, table


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
    shown = illustrate.kept_examples(tmp_path, SCORES)
    assert shown.spread == report.pick_kept(rows.to_batches)
    ends = [id for sides in shown.extremes.values() for side in sides for id in side]
    assert {row["id"] for row in shown.rows} == {*shown.spread, *ends}
    for row in shown.rows:
        image, mask, label = illustrate.example(row)
        assert np.array_equal(image, decode_grey(by_id[row["id"]]["image"]["bytes"]))
        assert (mask is None) == (by_id[row["id"]]["mask"] is None)
        assert mask is None or np.array_equal(mask, decode_mask(by_id[row["id"]]["mask"]["bytes"]))
        assert label == by_id[row["id"]]["label"]
        assert row["seed"] == by_id[row["id"]]["seed"]


def test_extremes_are_few_however_many_scores_there_are(tmp_path: Path) -> None:
    rows = table(400, px=8)
    names = [f"score_{number}" for number in range(12)]
    rng = np.random.default_rng(3)
    for name in names:
        rows = rows.append_column(name, pa.array(rng.random(400), pa.float32()))
    parquet.write(rows.to_batches(), tmp_path)
    shown = illustrate.kept_examples(tmp_path, names)
    assert {len(side) for sides in shown.extremes.values() for side in sides} == {2 * 3}
    assert len(shown.rows) <= 3 * report.PER_LABEL + 12 * 2 * 2 * 3


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


def _lesion(seed: int, label: str = "benign", **changes: object) -> dict[str, object]:
    """A scan with a lesion of its own texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    mask = (y - rng.integers(24, 40)) ** 2 + (x - rng.integers(24, 40)) ** 2 < 12**2
    image = np.clip(rng.rayleigh(60, (64, 64)), 0, 255).astype(np.uint8)
    pictures = {"image": {"bytes": encode_grey(image), "path": ""}, "mask": {"bytes": encode_mask(mask), "path": ""}}
    known = {"id": f"scan-{seed:03d}", "file": f"{seed}.png", "group": f"g{seed}", "label": label, "split": "train"}
    return dict.fromkeys(SCAN_SCHEMA.names) | known | pictures | {"verdict": "kept"} | changes


def _sample(scan: dict[str, object], **changes: object) -> illustrate.Row:
    """A synthetic row with the pictures of a scan."""
    declared = {"background_id": "none", "mask_id": None, "levels_id": None}
    return {
        "id": "syn",
        "label": "benign",
        "group": "g",
        **declared,
        "image": scan["image"],
        "mask": scan["mask"],
    } | changes


def test_the_nearest_training_image_is_found_and_no_other_split_is_looked_at(tmp_path: Path) -> None:
    store, key = Store(tmp_path), "builds/ingest/x/scans.parquet"
    scans = [_lesion(seed) for seed in range(1, 150)]
    held_out = _lesion(900, split="test")
    table_of = pa.Table.from_pylist(
        [*scans, held_out, _lesion(7, id="set-aside", verdict="set aside")], schema=SCAN_SCHEMA
    )
    ref = Ref(key=key, sha256=store.put_table(key, table_of))
    samples = [
        _sample(scans[99], id="copy of 100", mask_id="scan-100"),
        _sample(held_out, id="copy of a held-out one"),
        _sample(scans[3], id="healthy", mask=None),
    ]
    found = illustrate.originals(store, ref, samples, shown=True)
    assert [(one.id, one.scan_id, one.declared) for one in found[:1]] == [("copy of 100", "scan-100", "mask")]
    assert found[0].similarity > 0.999
    assert found[1].similarity < 0.9
    assert len(found) == 2
    assert found[0].image is not None
    assert np.array_equal(found[0].image, decode_grey(scans[99]["image"]["bytes"]))  # type: ignore[index]
    assert [one.image for one in illustrate.originals(store, ref, samples, shown=False)] == [None, None]
    assert illustrate.originals(store, ref, [], shown=True) == []


def test_pictures_that_were_drawn_whole_are_compared_whole(tmp_path: Path) -> None:
    store, key = Store(tmp_path), "builds/ingest/x/scans.parquet"
    scans = [_lesion(seed) for seed in range(1, 20)]
    ref = Ref(key=key, sha256=store.put_table(key, pa.Table.from_pylist(scans, schema=SCAN_SCHEMA)))
    (found,) = illustrate.originals(store, ref, [_sample(scans[4], id="copy", mask=None)], shown=True, whole=True)
    assert found.scan_id == "scan-005"
    assert found.similarity > 0.999


@pytest.mark.parametrize(
    ("name", "licence", "shown"),
    [
        ("scans of busi", "conflicting statements; citation requested (Al-Dhabyani et al. 2020)", True),
        ("scans of hc18", "CC BY 4.0", True),
        ("scans of folder", "CC BY 4.0", True),
        ("scans of folder", "as stated by the owner", False),
        ("scans of folder", "our clinic, for this study", False),
        ("scans of folder", "CC BY-ND 4.0", False),
        ("scans of udiat", "signed agreement", False),
    ],
)
def test_training_images_are_shown_only_where_their_licence_lets_them_be(name: str, licence: str, shown: bool) -> None:
    why = illustrate.withheld([Licensed(name=name, licence=licence), Licensed(name="base x", licence="Apache-2.0")])
    assert (why == "") == shown
    assert shown or licence in why


def _published(store: Store, folder: Path, number: int, made_by: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "data.txt").write_text(str(number))
    score = SetScore(name="kid", value=number / 10, low=None, high=None, n_real=9, n_synthetic=9, extractor="x")
    about = About(
        planned=10,
        kept=number,
        rejected={"kid": 10 - number},
        failed=0,
        scores=[score],
        licences=["MIT"],
        recipe={"seed": number, "plan": {"samples": 10}},
        provenance={},
        inputs=[made_by] if made_by else [],
    )
    publish(store, "demo", folder, about)


def test_every_score_is_explained_and_has_a_better_end() -> None:
    explained = illustrate.explanations()
    assert {*IMAGE_SCORES, *SET_SCORES} < set(explained)
    assert [name for name, text in explained.items() if not text.endswith(".") or len(text) < 20] == []
    assert set(IMAGE_SCORES) >= LOWER_IS_BETTER
    assert set(SET_SCORES) >= HIGHER_IS_BETTER


def test_history_is_the_versions_before_and_what_their_recipes_changed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    new = {"seed": 9, "plan": {"samples": 20}}
    assert illustrate.history(store, "demo", new, "builds/export/a") == ([], [])
    for number in (1, 2):
        _published(store, tmp_path / "made", number)
    versions, changes = illustrate.history(store, "demo", new, "builds/export/a")
    assert [(one.version, one.kept, one.scores[0].value, one.changes) for one in versions] == [
        (1, 1, 0.1, []),
        (2, 2, 0.2, ["seed 1 → 2"]),
    ]
    assert changes == ["plan.samples 10 → 20", "seed 2 → 9"]


def test_history_is_the_same_when_a_version_is_made_again(tmp_path: Path) -> None:
    store, step, recipe = Store(tmp_path / "store"), "builds/export/a", {"seed": 2, "plan": {"samples": 10}}
    _published(store, tmp_path / "made", 1)
    before = illustrate.history(store, "demo", recipe, step)
    _published(store, tmp_path / "made", 2, made_by=step)
    _published(store, tmp_path / "made", 3)
    assert illustrate.history(store, "demo", recipe, step) == before


def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(illustrate, "_VERSIONS", 3)
    store = Store(tmp_path / "store")
    for number in range(1, 6):
        _published(store, tmp_path / "made", number)
    assert [one.version for one in illustrate.history(store, "demo", {}, "")[0]] == [3, 4, 5]


def test_many_changes_of_a_recipe_are_counted_after_the_first() -> None:
    changes = illustrate.recipe_changes({"seed": 1}, {"seed": 1} | {f"t{number:02d}": number for number in range(11)})
    assert changes[0] == "t00 nothing → 0"
    assert changes[-1] == "and 3 more"
    assert len(changes) == 9


def test_a_source_without_held_out_lesions_has_no_examples(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = pa.Table.from_pylist([_scan(1, split="train")], schema=SCAN_SCHEMA)
    ref = Ref(key="builds/ingest/x/scans.parquet", sha256=store.put_table("builds/ingest/x/scans.parquet", rows))
    assert illustrate.real_examples(store, ref, 6) == illustrate.RealExamples([], [])
