import pyarrow as pa
import pytest
from pydantic import ValidationError

from storage.records import IMAGE, Ref, parquet_options, sample_schema


def test_records_refuse_unknown_fields_and_changes() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Ref.model_validate({"key": "a", "sha256": "b", "colour": "red"})
    with pytest.raises(ValidationError, match="frozen"):
        Ref(key="a", sha256="b").key = "c"  # type: ignore[misc]


def test_a_published_row_has_a_column_for_every_score_and_none_for_failure() -> None:
    names = sample_schema(["segmenter_dice"]).names
    assert "segmenter_dice" in names
    assert "failure" not in names
    assert names[-2:] == ["verdict", "reasons"]
    assert len(set(names)) == len(names)


def test_only_pixels_are_stored_uncompressed_and_without_statistics() -> None:
    schema = pa.schema([("id", pa.string()), ("image", IMAGE), ("reasons", pa.list_(pa.string()))])
    options = parquet_options(schema)
    assert options["compression"] == {
        "id": "ZSTD",
        "image.bytes": "NONE",
        "image.path": "ZSTD",
        "reasons.list.element": "ZSTD",
    }
    assert "image.bytes" not in options["write_statistics"]
