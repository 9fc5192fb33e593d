import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import keys
from storage.images import encode_grey, encode_mask
from storage.manifests import read
from storage.records import Manifest, parquet_options
from storage.retractions import retract
from storage.store import Store
from storage.verifying import verify
from storage.versions import publish
from tests.fakes.samples import table
from tests.storage.forged import (
    SHARD,
    Damage,
    Rows,
    changed,
    forge,
    json_changed,
    publish_damaged,
    put_file,
    replaced,
    write,
)


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Manifest:
    return publish(store, "demo", tmp_path / "folder", write(tmp_path / "folder"))[0]


def _problems(tmp_path: Path, *damages: Damage, rows: pa.Table | None = None) -> list[str]:
    """What a deep verification finds in a version that was damaged before it was published."""
    store, version = publish_damaged(tmp_path, *damages, rows=rows)
    assert verify(store, version) == []
    return verify(store, version, deep=True)


def test_a_sound_version_has_no_problems_retracted_or_not(store: Store, version: Manifest) -> None:
    assert verify(store, version) == []
    assert verify(store, version, deep=True) == []
    retract(store, version, "a leak")
    assert verify(store, version, deep=True) == []


def test_a_version_of_which_nothing_was_kept_is_whole(tmp_path: Path) -> None:
    rows = table(12)
    rejected = {"verdict": ["rejected"] * 12, "reasons": [["lesion_contrast 0.10 < 0.30"]] * 12}
    for name, values in rejected.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array(values, rows.schema.field(name).type))
    store = Store(tmp_path / "store")
    made, _ = publish(store, "demo", tmp_path / "files", write(tmp_path / "files", rows))
    assert made.kept == 0
    assert verify(store, made, deep=True) == []


def test_a_flipped_byte_is_found_wherever_it_is(store: Store, version: Manifest) -> None:
    for number, file in enumerate(version.files):
        data = bytearray(store.read(file.key))
        data[number * len(data) // len(version.files)] ^= 1
        store.put(file.key, bytes(data))
    assert verify(store, version) == []
    found = verify(store, version, deep=True)
    assert {problem.split(":")[0] for problem in found} == {file.path for file in version.files}
    assert all("sha256 is" in problem for problem in found)


def test_missing_cut_and_longer_files_are_found_by_one_listing(
    store: Store, version: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, short, long = version.files[:3]
    store.delete(missing.key)
    store.put(short.key, store.read(short.key)[:-1])
    store.put(long.key, store.read(long.key) + b"x")
    listings: list[str] = []
    walk = Store.walk

    def counted(self: Store, prefix: str = "") -> Any:
        listings.append(prefix)
        return walk(self, prefix)

    monkeypatch.setattr(Store, "walk", counted)
    monkeypatch.setattr(Store, "size", lambda *_: pytest.fail("a request for each file"))
    expected = [
        f"{missing.path}: missing from the store",
        f"{short.path}: {short.bytes - 1} bytes, expected {short.bytes}",
        f"{long.path}: {long.bytes + 1} bytes, expected {long.bytes}",
    ]
    assert verify(store, version) == expected
    assert listings == ["demo/objects"]
    monkeypatch.undo()
    assert [line for line in verify(store, version, deep=True) if line in expected] == expected


def test_a_manifest_that_is_not_the_one_in_the_store_is_found(store: Store, version: Manifest) -> None:
    assert verify(store, version.model_copy(update={"licences": ["MIT"]})) == [
        "manifest: differs from the one in the store"
    ]
    other = version.model_copy(update={"digest": "0" * 64})
    assert "manifest: its digest is not that of its files" in verify(store, other)
    store.delete(keys.manifest_key("demo", 1))
    assert verify(store, version) == ["manifest: missing from the store"]
    store.put(keys.manifest_key("demo", 1), b"{}")
    [problem] = verify(store, version)
    assert problem.startswith("manifest: ")
    assert "no sealed JSON" in problem


def test_a_damaged_tombstone_is_found(store: Store, version: Manifest) -> None:
    store.put(keys.tombstone_key("demo", 1), b"{}")
    [problem] = verify(store, version)
    assert "retracted.json" in problem


def test_an_unsafe_manifest_is_a_problem_not_a_crash(store: Store, version: Manifest) -> None:
    evil = version.files[0].model_copy(update={"path": "../evil"})
    problems = verify(store, version.model_copy(update={"files": [evil]}), deep=True)
    assert any("could leave its folder" in problem for problem in problems)


def _break_png(rows: Rows) -> None:
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:60]


def _exchange(rows: Rows) -> None:
    rows[0]["image"]["bytes"] = encode_grey(np.zeros((32, 32), np.uint8))


def _small_mask(rows: Rows) -> None:
    rows[0]["mask"]["bytes"] = encode_mask(np.ones((16, 16), np.bool_))


def _no_region(rows: Rows) -> None:
    rows[0]["region"] = None


def _swap(rows: Rows) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def _repeat(rows: Rows) -> None:
    rows[1]["id"] = rows[0]["id"]


def _relabel(rows: Rows) -> None:
    rows[0]["label"] = "cyst"


def _move(rows: Rows) -> None:
    rows[0]["image_at"] += 1


def _overlap(rows: Rows) -> None:
    rows[1]["image_at"] = rows[0]["image_at"]


def _outside(rows: Rows) -> None:
    rows[0]["image_at"] = 10**15


def _elsewhere(rows: Rows) -> None:
    rows[0]["file"] = "data/val-00000-of-00001.parquet"


def _fail(rows: Rows) -> None:
    rows[0]["verdict"] = "failed"


def _climb(rows: Rows) -> None:
    rows[0]["id"] = "../../evil"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (changed(_break_png), f"{SHARD}: row demo-000002 does not decode"),
        (changed(_exchange), f"{SHARD}: row demo-000000: pixels differ from their sha256"),
        (changed(_small_mask), f"{SHARD}: row demo-000000: image (32, 32), mask (16, 16)"),
        (changed(_exchange), "index.parquet: image of row demo-000000 has another digest"),
        (changed(_no_region), "index.parquet: region of row demo-000000 is in only one of data and index"),
        (changed(_swap), f"{SHARD}: row demo-000001 stands where demo-000000 is expected, against metadata.parquet"),
        (changed(_swap), f"{SHARD}: the id 'demo-000000' stands behind 'demo-000001': ids do not ascend"),
        (changed(_repeat), f"{SHARD}: the id 'demo-000000' occurs twice"),
        (changed(_relabel), f"{SHARD}: row demo-000000 differs in label, against metadata.parquet"),
        (changed(_climb), f"{SHARD}: '../../evil' cannot name a row"),
        (changed(lambda rows: rows.pop()), " declared"),
        (changed(_move, "index.parquet"), "index.parquet: image of row demo-000000 does not lie at bytes"),
        (changed(_overlap, "index.parquet"), "index.parquet: image of row demo-000001 does not lie at bytes"),
        (changed(_outside, "index.parquet"), "index.parquet: image of row demo-000000 does not lie at bytes"),
        (changed(_elsewhere, "index.parquet"), "index.parquet: row demo-000000 of data/train"),
        (changed(_repeat, "index.parquet"), "index.parquet: row demo-000000 stands where demo-000001 is expected"),
        (changed(_relabel, "metadata.parquet"), "metadata.parquet: row demo-000000 differs in label, against ledger"),
        (changed(_repeat, "metadata.parquet"), "metadata.parquet: the id 'demo-000000' occurs twice"),
        (changed(_climb, "metadata.parquet"), "metadata.parquet: '../../evil' cannot name a row"),
        (changed(lambda rows: rows[0].update(split="dev"), "metadata.parquet"), "metadata.parquet: split 'dev'"),
        (
            changed(lambda rows: rows[0].update(verdict="failed"), "metadata.parquet"),
            "metadata.parquet: verdict 'failed'",
        ),
        (changed(lambda rows: rows.pop(), "metadata.parquet"), "but the manifest counts"),
        (changed(lambda rows: rows.pop(), "ledger.parquet"), "23 rows, but the manifest counts 24 as planned"),
        (
            changed(lambda rows: rows.pop(0), "sources.parquet"),
            "sources.parquet: mask mask-0000 of row demo-000000 is not among the sources",
        ),
        (changed(lambda rows: rows[0].update(split="val"), "sources.parquet"), "splits: group"),
        (changed(_swap, "sources.parquet"), "sources.parquet: the id 'mask-0000' stands behind 'mask-0001'"),
        (replaced("metadata.parquet", "no Parquet"), "metadata.parquet: is no readable Parquet file"),
        (replaced("coco/val.json", "[]"), "coco/val.json: is no COCO file: expected '{', found '['"),
        (replaced("data/dev-00000-of-00001.parquet", "x"), "data/dev-00000-of-00001.parquet: belongs to no split"),
        (lambda folder: (folder / "sources.parquet").unlink(), "sources.parquet: is no file of this version"),
    ],
)
def test_what_a_publisher_got_wrong_is_found(tmp_path: Path, damage: Damage, expected: str) -> None:
    problems = _problems(tmp_path, damage)
    assert any(expected in problem for problem in problems), problems


def test_columns_of_other_types_and_missing_columns_are_found(tmp_path: Path) -> None:
    def retype(folder: Path) -> None:
        rows = pq.read_table(folder / "metadata.parquet")
        place = rows.schema.get_field_index("seed")
        rows = rows.set_column(place, "seed", rows.column("seed").cast(pa.string()))
        pq.write_table(rows, folder / "metadata.parquet", **parquet_options(rows.schema))
        places = pq.read_table(folder / "index.parquet").drop_columns("mask_at")
        pq.write_table(places, folder / "index.parquet", **parquet_options(places.schema))

    problems = _problems(tmp_path, retype)
    assert "metadata.parquet: columns differ: seed string, expected int64" in problems
    assert "index.parquet: columns differ: mask_at missing, expected int64" in problems


def test_a_version_from_before_a_column_of_lineage_was_known_is_sound(tmp_path: Path) -> None:
    rows = table(24).drop_columns(
        ["levels_id", "decoder_digest", "margin", "controlnet_digest", "head_circumference_mm"]
    )
    assert _problems(tmp_path, rows=rows) == []


def test_pictures_that_were_drawn_whole_need_no_background_region_or_mask(tmp_path: Path) -> None:
    def whole(rows: Rows) -> None:
        for number, row in enumerate(rows):
            row |= dict.fromkeys(("background_id", "background_kind", "region", "outside_changed_px"))
            if number % 2:
                row |= dict.fromkeys(("mask", "mask_id"))

    assert _problems(tmp_path, rows=_changed_rows(whole)) == []


def _changed_rows(change: Any) -> pa.Table:
    rows = table(24)
    listed = rows.to_pylist()
    change(listed)
    return pa.Table.from_pylist(listed, schema=rows.schema)


def test_a_group_in_two_splits_is_found(tmp_path: Path) -> None:
    def leak(rows: Rows) -> None:
        rows[0]["group"] = next(row["group"] for row in rows if row["split"] == "val" and row["verdict"] == "kept")

    problems = _problems(tmp_path, rows=_changed_rows(leak))
    assert [line for line in problems if line.startswith("splits: group")]
    assert all("train and val" in line or "val and train" in line for line in problems if "splits: group" in line)


@pytest.mark.parametrize("column", ["background_id", "mask_id", "levels_id"])
def test_a_scan_that_two_splits_descend_from_is_found(tmp_path: Path, column: str) -> None:
    def share(rows: Rows) -> None:
        other = next(row for row in rows if row["split"] == "val" and row["verdict"] == "kept")
        other[column] = rows[0]["background_id"]

    problems = _problems(tmp_path, rows=_changed_rows(share))
    assert len(problems) == 1
    assert "phantom-0000 of row" in problems[0]
    assert problems[0].endswith((" (train) is a scan of val", " (val) is a scan of train"))


def test_counts_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    store, version = publish_damaged(tmp_path)

    def miscount(content: dict[str, Any]) -> None:
        content["planned"] += 75
        content["kept"] -= 1
        content["rejected"] = {"other": 1}

    forge(store, version, miscount)
    content = Manifest.model_validate(
        version.model_dump() | {"planned": 99, "kept": version.kept - 1, "rejected": {"other": 1}}
    )
    problems = verify(store, content, deep=True)
    for expected in (
        "counts: 99 planned, but",
        "ledger.parquet: 24 rows, but the manifest counts 99 as planned",
        f"ledger.parquet: {version.kept} rows kept, but the manifest counts {version.kept - 1}",
        "ledger.parquet: 0 rows rejected for 'other', but the manifest counts 1",
        f"data: {version.kept} rows, but the manifest counts {version.kept - 1} samples as kept",
    ):
        assert any(expected in problem for problem in problems), (expected, problems)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda coco: coco["annotations"].pop(), "annotations, expected"),
        (lambda coco: coco["images"].pop(), "images, expected"),
        (lambda coco: coco["images"].append(coco["images"][0]), "belongs to no row"),
        (lambda coco: coco["annotations"][0].update(id=7), "annotation 1: id 7, expected 1"),
        (lambda coco: coco["annotations"][1].update(image_id=1), "annotation 2: image_id 1, expected 2"),
        (lambda coco: coco["annotations"][0].update(area=float("nan")), "is no COCO file: NaN is no number"),
        (lambda coco: coco["annotations"][0].update(area=3.5), "annotation 1: area 3.5, expected"),
        (lambda coco: coco["annotations"][0].update(bbox=[0, 0, 1, 1]), "annotation 1: bbox [0, 0, 1, 1], expected"),
        (lambda coco: coco["annotations"][0].update(iscrowd=1), "annotation 1: iscrowd 1, expected 0"),
        (lambda coco: coco["annotations"][0].update(category_id=2), "annotation 1: category_id 2, expected 1"),
        (lambda coco: coco["annotations"][0].update(segmentation=None), "annotation 1: size missing"),
        (
            lambda coco: coco["annotations"][0]["segmentation"].update(counts="PPYo0"),
            "annotation 1: its run lengths are not those of the row's mask",
        ),
        (
            lambda coco: coco["annotations"][0]["segmentation"].update(size=[10**9, 10**9]),
            "annotation 1: size [1000000",
        ),
        (lambda coco: coco["images"][0].update(file_name="../../evil.png"), "image 1: file_name ../../evil.png"),
        (lambda coco: coco["images"][0].update(width=10**12), "image 1: width 1000000000000, expected 32"),
        (lambda coco: coco["images"].insert(0, 3), "image 1 is '3', expected an object"),
        (lambda coco: coco["categories"].append({"id": 1, "name": "x"}), "two categories share an id"),
        (lambda coco: coco["categories"][0].update(id=0), "categories are numbered from 1"),
    ],
)
def test_coco_that_disagrees_with_the_rows_is_found(tmp_path: Path, change: Any, expected: str) -> None:
    problems = _problems(tmp_path, json_changed(change))
    assert any(problem.startswith("coco/train.json: ") and expected in problem for problem in problems), problems
    assert all(problem.startswith("coco/train.json: ") for problem in problems), problems


def _retarred(change: Callable[[list[tuple[str, bytes]]], object], kind: bytes = tarfile.REGTYPE) -> Damage:
    """A damage that writes a shard's members anew, the first of another kind."""

    def damage(folder: Path) -> None:
        path = folder / "webdataset/train-000000.tar"
        with tarfile.open(path) as tar:
            members = [(item.name, tar.extractfile(item).read()) for item in tar]  # type: ignore[union-attr]
        change(members)
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for number, (name, content) in enumerate(members):
                item = tarfile.TarInfo(name)
                item.type, item.size = (
                    (kind, 0) if kind != tarfile.REGTYPE and not number else (item.type, len(content))
                )
                item.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE and not number else ""
                tar.addfile(item, io.BytesIO(content))

    return damage


def _cut(folder: Path) -> None:
    path = folder / "webdataset/train-000000.tar"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_retarred(lambda members: members.pop()), "and those behind it are in no shard"),
        (_retarred(lambda members: members.append(("evil.png", b"x"))), "member 'evil.png' belongs to no row"),
        (_retarred(lambda members: members.insert(0, members[3])), "stands where demo-000000.json is expected"),
        (_retarred(lambda members: members.insert(1, ("../../evil", b""))), "member '../../evil' stands where"),
        (_retarred(lambda members: members.insert(1, ("x" * 300, b""))), "stands where demo-000000.png is expected"),
        (_retarred(lambda members: members.__setitem__(0, (members[0][0], b"{}"))), "differs from metadata.parquet"),
        (_retarred(lambda members: members.__setitem__(0, (members[0][0], b"[" * 10**5))), "is no JSON"),
        (_retarred(lambda members: members.__setitem__(1, (members[1][0], b"x"))), "is not the picture of its row"),
        (_retarred(lambda members: None, tarfile.SYMTYPE), "is no plain file"),
        (_retarred(lambda members: None, tarfile.CHRTYPE), "is no plain file"),
        (replaced("webdataset/train-000000.tar", b"x" * 2048), "is no tar shard"),
        (_cut, "is cut off"),
    ],
)
def test_webdataset_that_disagrees_with_the_rows_is_found(tmp_path: Path, damage: Damage, expected: str) -> None:
    problems = _problems(tmp_path, damage)
    assert any(problem.startswith("webdataset/train") and expected in problem for problem in problems), problems
    assert all(problem.startswith("webdataset/train") for problem in problems), problems


def _statement(manifest: Manifest) -> str:
    subjects = [{"name": file.path, "digest": {"sha256": file.sha256}} for file in manifest.files]
    return json.dumps({"subject": subjects})


def test_documents_that_name_other_digests_are_found(tmp_path: Path) -> None:
    store, version = publish_damaged(tmp_path)
    croissant = {"distribution": [{"@type": "cr:FileObject", "contentUrl": "metadata.parquet", "sha256": "0" * 64}]}
    content = version.model_dump(mode="json")
    put_file(store, content, "provenance.json", _statement(version).encode())
    forge(store, version, lambda old: old.update(content))
    assert verify(store, read(store, "demo", 1), deep=True) == []
    lies = json.loads(_statement(version))
    lies["subject"][0]["digest"]["sha256"] = "1" * 64
    lies["subject"][1]["name"] = "../../etc/passwd"
    put_file(store, content, "provenance.json", json.dumps(lies).encode())
    put_file(store, content, "croissant.json", json.dumps(croissant).encode())
    forge(store, version, lambda old: old.update(content))
    problems = verify(store, read(store, "demo", 1), deep=True)
    assert f"provenance.json: {version.files[0].path} has sha256 111111111111…, expected" in " ".join(problems)
    assert "provenance.json: names '../../etc/passwd', which is no file of this version" in problems
    assert f"provenance.json: says nothing of {version.files[1].path}" in problems
    assert any(problem.startswith("croissant.json: metadata.parquet has sha256 000000000000…") for problem in problems)


def test_many_problems_stay_few_lines(tmp_path: Path) -> None:
    def spoil(rows: Rows) -> None:
        for row in rows:
            row["sha256"] = "\x1b[2J\nforged line"

    problems = _problems(tmp_path, changed(spoil), rows=table(200, only_kept=True))
    assert len(problems) <= 120
    assert any(problem.startswith(f"{SHARD}: … and ") for problem in problems)
    assert all(problem.isprintable() for problem in problems)
