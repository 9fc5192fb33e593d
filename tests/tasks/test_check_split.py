"""The leakage check of a study's folds: silent where nothing leaks, loud where a leak was planted."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from numpy.typing import NDArray

from storage.images import encode_grey, pixels_sha256
from storage.records import SCAN_SCHEMA, SYNTHETIC_SCHEMA, Ref
from storage.store import Store
from tasks.check_split import LOOKED_AT, check_split
from tasks.curate import Curation
from tasks.sources import folder
from tasks.study import Fold
from tests.fakes.pictures import picture, save

SPLITS = ("train", "train", "val", "test", "test")


def drawn(seed: int) -> NDArray:
    return picture(seed, (128, 128))[0]


def row(name: str, split: str, group: str, image: NDArray, **more: object) -> dict[str, object]:
    about = {"label": "head", "organ": "fetal head", "dataset": "toy", "pixel_mm": 0.5}
    own = {"id": name, "group": group, "split": split, "image": {"bytes": encode_grey(image), "path": f"{name}.png"}}
    return {**about, **own, "sha256": pixels_sha256(image), **more}


def fold(store: Store, made: dict[str, object], *, kept: bool) -> Fold:
    """A fold of five scans, each of an exam of its own, and one synthetic image of the training split."""
    scans = [
        row(f"scan-{k}", split, f"exam-{k}", drawn(k), file=f"images/{k}.png", verdict="kept", reasons=[])
        for k, split in enumerate(SPLITS)
    ]
    verdict = pa.table({"id": ["made-0"], "verdict": ["kept" if kept else "rejected"]})
    tables = {
        "scans": pa.Table.from_pylist(scans, schema=SCAN_SCHEMA),
        "shard": pa.Table.from_pylist([made], schema=SYNTHETIC_SCHEMA),
        "curation": verdict,
    }
    refs = {
        name: Ref(key=f"{name}.parquet", sha256=store.put_table(f"{name}.parquet", t)) for name, t in tables.items()
    }
    counts = {"planned": 1, "kept": int(kept), "rejected": {} if kept else {"copied": 1}, "failed": 0}
    curation = Curation(**counts, scores=[], table=refs["curation"], thresholds=[], problems=[])
    store.put("curated.json", curation.model_dump_json().encode())
    return Fold(
        scans=refs["scans"], shards=[refs["shard"]], curated=Ref(key="curated.json", sha256=f"{kept}{made['id']}")
    )


def found(tmp_path: Path, made: dict[str, object], *, kept: bool = True) -> dict[str, int]:
    store = Store(str(tmp_path))
    for k in range(len(SPLITS)):
        save(tmp_path / "source" / "images" / f"{k}.png", drawn(k))
    rows = "".join(f"{k}.png,head\n" for k in range(len(SPLITS)))
    (tmp_path / "source" / "labels.csv").write_text(f"file,label\n{rows}")
    source = folder.Params(root=tmp_path / "source", organ="fetal head")
    ref = check_split.fn(str(tmp_path), fold(store, made, kept=kept), source).ref
    assert json.loads(store.read(ref.key))["looked_at"] == ref.counts[LOOKED_AT]
    return dict(ref.counts)


def test_folds_by_exam_with_images_of_their_own_leak_nothing(tmp_path: Path) -> None:
    made = row("made-0", "train", "exam-0", drawn(50), mask_id="scan-0")
    assert found(tmp_path, made) == {LOOKED_AT: 6}


@pytest.mark.parametrize(
    ("kind", "planted"),
    [
        ("duplicate", row("made-0", "train", "toy/made-0", drawn(4)[:, ::-1] // 2 + 20)),
        ("group", row("made-0", "train", "exam-3", drawn(50))),
        ("mask", row("made-0", "train", "toy/made-0", drawn(50), mask_id="scan-3")),
    ],
)
def test_a_planted_leak_into_the_test_groups_is_found(tmp_path: Path, kind: str, planted: dict[str, object]) -> None:
    assert found(tmp_path, planted) == {LOOKED_AT: 6, kind: 1}


def test_what_curation_rejected_leaks_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, row("made-0", "train", "toy/made-0", drawn(4)), kept=False) == {LOOKED_AT: 5}
