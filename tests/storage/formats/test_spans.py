from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.formats import parquet, spans
from storage.images import png_digest
from storage.records import IMAGE, INDEX_SCHEMA, PIXEL_COLUMNS, sample_schema
from tests.fakes.samples import table


def _check(folder: Path, rows: list[dict[str, Any]]) -> int:
    """Every picture fetched by its span is the row's; how many there were."""
    kept = [row for row in rows if row["verdict"] == "kept"]
    index = pq.read_table(folder / "index.parquet")
    assert index.schema.remove_metadata() == INDEX_SCHEMA
    assert index.column("id").to_pylist() == [row["id"] for row in kept]
    fetched = 0
    for span, row in zip(index.to_pylist(), kept, strict=True):
        assert span["file"].startswith(f"data/{row['split']}-")
        with (folder / span["file"]).open("rb") as file:
            for name in PIXEL_COLUMNS:
                found = [span[f"{name}_{part}"] for part in ("at", "bytes", "blake3")]
                png = None if row[name] is None else row[name]["bytes"]
                if png is None:
                    assert found == [None, None, None]
                    continue
                file.seek(span[f"{name}_at"])
                assert file.read(span[f"{name}_bytes"]) == png
                assert span[f"{name}_blake3"] == png_digest(png)
                fetched += 1
    return fetched


@pytest.mark.parametrize("seed", range(5))
def test_every_picture_is_where_the_index_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 15_000)
    monkeypatch.setattr(parquet, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(parquet, "THIN_ROWS", 16)
    rows = table(120, seed=seed)
    written = parquet.write(rows.to_batches(max_chunksize=13), tmp_path)
    assert sum(path.startswith("data/train") for path in written) > 1
    assert _check(tmp_path, rows.to_pylist()) > 100


def test_pictures_larger_than_a_page_are_found(tmp_path: Path) -> None:
    rows = table(6, px=1024, only_kept=True)
    assert max(len(row["image"]["bytes"]) for row in rows.to_pylist()) > 3 * 2**18
    parquet.write(rows.to_batches(max_chunksize=2), tmp_path)
    assert _check(tmp_path, rows.to_pylist()) == 6 + 2 * 4


_PNG = st.one_of(
    st.none(),
    st.binary(max_size=3),
    st.sampled_from([b"\x89PNG same", b"\x00\x00\x00\x00", b"\x15\x00\x15\x10", b"\x04\x00\x00\x00\x04\x00\x00\x00"]),
    st.integers(1, 40_000).map(lambda size: np.random.default_rng(size).bytes(size)),
    st.integers(1, 3_000_000).map(lambda size: b"\x00" * size),
)
_ROW = st.tuples(
    st.sampled_from(["train", "train", "val", "test"]), st.sampled_from(["kept", "kept", "failed"]), *[_PNG] * 4
)


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(_ROW, min_size=1, max_size=40), at_once=st.integers(1, 40), group=st.sampled_from([1, 2000, 10**8])
)
def test_any_pictures_are_found_even_where_they_read_like_headers(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], at_once: int, group: int
) -> None:
    schema = sample_schema([])
    rows = [
        dict.fromkeys(schema.names)
        | {"id": f"{number:03d}", "split": split, "verdict": verdict}
        | {
            # None: no picture. An odd row has it as a struct without bytes, an even one as no struct.
            name: ({"bytes": None, "path": None} if number % 2 else None) if png is None else {"bytes": png, "path": ""}
            for name, png in zip(PIXEL_COLUMNS, pngs, strict=True)
        }
        for number, (split, verdict, *pngs) in enumerate(drawn)
    ]
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_BYTES", group)
        parquet.write(pa.Table.from_pylist(rows, schema=schema).to_batches(max_chunksize=at_once), folder)
    _check(folder, rows)


def test_a_picture_that_is_not_there_as_it_is_is_an_error(tmp_path: Path) -> None:
    group = pa.table({"id": ["a"], "image": pa.array([{"bytes": b"picture", "path": "a.png"}], IMAGE)})
    path = tmp_path / "file"
    path.write_bytes(b"header" + b"\x07\x00\x00\x00pictUre" + b"\x07\x00\x00\x00picture")
    assert spans.find(path, 6, path.stat().st_size, group).to_pylist()[0]["image_at"] == 21
    with pytest.raises(RuntimeError, match="a PNG of 7 bytes is not in the file as it is"):
        spans.find(path, 6, path.stat().st_size - 1, group)
