import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import lookup
from storage.errors import CorruptFileError, RowNotFoundError
from storage.formats import parquet
from storage.lineage import Lineage, lines, trace
from storage.manifests import read
from storage.records import Manifest
from storage.store import Store
from storage.versions import publish
from tests.fakes.samples import table
from tests.storage.forged import Rows, changed, forge, publish_damaged, put_file, replaced, write

BASE, ADAPTER = "ab12cd34ef" + "0" * 54, "0f1e2d3c4b" + "0" * 54
DEPENDENCIES = [
    {"name": "scans", "digest": {"sha256": "1" * 64}},
    {"name": "adapter/benign", "digest": {"sha256": ADAPTER}, "uri": "store:builds/adapter"},
    {"name": "base", "digest": {"sha256": BASE}, "uri": "hub:sd"},
    {"name": "package/torch", "uri": "pkg:pypi/torch@2.6"},
]


def _statement(dependencies: Any) -> str:
    return json.dumps({"subject": [], "predicate": {"buildDefinition": {"resolvedDependencies": dependencies}}})


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """Where it does not matter which kind of store it is."""
    return Store(tmp_path / "local")


def _publish(store: Store, tmp_path: Path) -> Manifest:
    folder = tmp_path / "folder"
    about = write(folder)
    replaced("provenance.json", _statement(DEPENDENCIES))(folder)
    return publish(store, "demo", folder, about.model_copy(update={"recipe": {"seed": 3}}))[0]


def test_a_kept_row_is_traced_to_scans_weights_and_settings(store: Store, tmp_path: Path) -> None:
    version = _publish(store, tmp_path)
    found = trace(store, version, "demo-000000")
    row = table(24).to_pylist()[0]
    assert (found.version, found.id, found.verdict, found.reasons) == ("demo@1", "demo-000000", "kept", [])
    assert {name: found.row[name] for name in ("label", "split", "group", "sha256")} == {
        name: row[name] for name in ("label", "split", "group", "sha256")
    }
    assert [(ancestor.role, ancestor.id, ancestor.kind) for ancestor in found.ancestors] == [
        ("background", "phantom-0000", "real"),
        ("mask", "mask-0000", None),
    ]
    assert found.ancestors[0].scan is not None
    assert found.ancestors[0].scan["file"] == "phantom-0000.png"
    assert found.ancestors[0].scan["split"] == row["split"]
    assert [(weights.role, weights.digest, weights.name, weights.uri) for weights in found.weights] == [
        ("base", "ab12cd34ef", "base", "hub:sd"),
        ("adapter", "0f1e2d3c4b", "adapter/benign", "store:builds/adapter"),
    ]
    assert found.drawing == {
        "prompt": "ultrasound of breast, benign",
        "sampler": "dpmsolver++",
        "steps": 20,
        "guidance": 3.0,
        "seed": 0,
        "candidates": 4,
        "critic": 0.5,
        "outside_changed_px": 0,
    }
    assert found.scores == {name: row[name] for name in ("segmenter_dice", "lesion_contrast")}
    assert (found.recipe_digest, found.recipe) == ("cafe", {"seed": 3})
    assert Lineage.model_validate_json(found.model_dump_json()) == found
    text = "\n".join(lines(found))
    for expected in (
        "demo-000000 of demo@1, kept",
        "├─ background (real): phantom-0000",
        "file phantom-0000.png",
        "├─ adapter: 0f1e2d3c4b (adapter/benign, store:builds/adapter)",
        "seed 0",
        "└─ recipe cafe",
    ):
        assert expected in text, text


@pytest.mark.parametrize("verdict", ["rejected", "failed"])
def test_rows_that_were_not_kept_are_traced_too(tmp_path: Path, verdict: str) -> None:
    store = Store(tmp_path / "store")
    rows = table(60)
    version = publish(store, "demo", tmp_path / "folder", write(tmp_path / "folder", rows))[0]
    row = next(row for row in rows.to_pylist() if row["verdict"] == verdict)
    found = trace(store, version, row["id"])
    assert (found.verdict, found.reasons) == (verdict, row["reasons"])
    assert f"{verdict}: {row['reasons'][0]}" in lines(found)[0]
    assert all(ancestor.scan is not None for ancestor in found.ancestors)


def test_every_row_of_a_table_of_many_row_groups_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "THIN_ROWS", 7)
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", write(tmp_path / "folder", table(40)))[0]
    for name in ("demo-000000", "demo-000006", "demo-000007", "demo-000020", "demo-000039"):
        assert trace(store, version, name).id == name


def test_only_one_row_group_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "THIN_ROWS", 100)
    monkeypatch.setattr(lookup, "_TAIL", 64)
    store = Store(tmp_path / "store")
    version = publish(store, "demo", tmp_path / "folder", write(tmp_path / "folder", table(2000, px=16)))[0]
    moved: dict[str, int] = {}
    ranges = Store.ranges

    def counted(self: Store, key: str, spans: Any) -> Iterator[bytes]:
        for piece in ranges(self, key, spans):
            moved[key] = moved.get(key, 0) + len(piece)
            yield piece

    monkeypatch.setattr(Store, "ranges", counted)
    monkeypatch.setattr(Store, "fetch", lambda *_: pytest.fail("a whole file"))
    trace(store, version, "demo-001234")
    ledger = next(file for file in version.files if file.path == "ledger.parquet")
    footer = int.from_bytes(store.read(ledger.key)[-8:-4], "little")
    assert moved[ledger.key] - footer < 0.1 * (ledger.bytes - footer)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("demo-00007", "demo-000007"),
        ("demo-0000077", "demo-000007"),
        ("", "demo-000000"),
        ("zz", "demo-000023"),
        ("demo-99", "demo-000023"),
    ],
)
def test_an_id_that_is_not_there_brings_the_nearest(local: Store, tmp_path: Path, name: str, near: str) -> None:
    version = _publish(local, tmp_path)
    with pytest.raises(RowNotFoundError, match=rf"demo@1 planned no sample {name!r}: did you mean .*{near}"):
        trace(local, version, name)


def test_a_version_without_sources_and_provenance_says_what_it_knows(tmp_path: Path) -> None:
    store, version = publish_damaged(tmp_path, lambda folder: (folder / "sources.parquet").unlink())
    found = trace(store, version, "demo-000000")
    assert [ancestor.scan for ancestor in found.ancestors] == [None, None]
    assert [weights.name for weights in found.weights] == [None, None]
    assert "│    not among the sources of this version" in lines(found)


def test_a_scan_that_is_missing_from_the_sources_is_said(tmp_path: Path) -> None:
    store, version = publish_damaged(tmp_path, changed(lambda rows: rows.pop(0), "sources.parquet"))
    found = trace(store, version, "demo-000000")
    assert [ancestor.scan is None for ancestor in found.ancestors] == [False, True]


def test_digests_that_play_two_parts_are_named_by_their_part(tmp_path: Path) -> None:
    def share(rows: Rows) -> None:
        rows[0]["harmonizer_digest"] = rows[0]["adapter_digest"]

    rows = table(24)
    listed = rows.to_pylist()
    share(listed)
    folder = tmp_path / "folder"
    about = write(folder, pa.Table.from_pylist(listed, schema=rows.schema))
    both = [*DEPENDENCIES, {"name": "harmonizer", "digest": {"sha256": ADAPTER}}]
    replaced("provenance.json", _statement(both))(folder)
    store = Store(tmp_path / "store")
    version = publish(store, "demo", folder, about)[0]
    names = {weights.role: weights.name for weights in trace(store, version, "demo-000000").weights}
    assert names == {"base": "base", "adapter": "adapter/benign", "harmonizer": "harmonizer"}


@pytest.mark.parametrize("damage", ["cut", "gone", "nothing", "footer", "page"])
def test_a_damaged_ledger_is_refused(local: Store, tmp_path: Path, damage: str) -> None:
    store, version = local, _publish(local, tmp_path)
    file = next(file for file in version.files if file.path == "ledger.parquet")
    data = store.read(file.key)
    if damage == "gone":
        store.delete(file.key)
    else:
        middle = len(data) // 8
        new = {
            "cut": data[:-10],
            "nothing": b"x" * len(data),
            "footer": data[:-8] + b"\xff\xff\xff\x7f" + data[-4:],
            "page": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        }
        store.put(file.key, new[damage])
    with pytest.raises(CorruptFileError, match=r"ledger\.parquet|ends at byte"):
        trace(store, version, "demo-000000")


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", "{}", _statement("x"), _statement([1]), '{"a": NaN}', "[" * 10**5]
)
def test_provenance_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    store, version = publish_damaged(tmp_path, replaced("provenance.json", content))
    with pytest.raises(CorruptFileError, match=r"provenance\.json of demo@1 is no statement"):
        trace(store, version, "demo-000000")


def test_what_a_stranger_wrote_is_printed_without_control_characters(tmp_path: Path) -> None:
    store, version = publish_damaged(tmp_path)
    said = [{"name": "base\x1b[2J\nforged", "uri": 7, "digest": {"sha256": BASE}}]
    forge(store, version, lambda content: put_file(store, content, "provenance.json", _statement(said).encode()))
    found = lines(trace(store, read(store, "demo", 1), "demo-000000"))
    assert any("base\\x1b[2J\\nforged, 7" in line for line in found), found
    assert all(line.isprintable() for line in found)
