import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage.formats import coco, parquet
from tests.fakes.samples import table


def _written(folder: Path, rows: pa.Table) -> dict[str, Any]:
    parquet.write(rows.to_batches(), folder)
    coco.write(folder, folder)
    return {path.stem: json.loads(path.read_bytes()) for path in (folder / "coco").iterdir()}


def test_ids_count_from_one_and_refer_to_each_other(tmp_path: Path) -> None:
    for content in _written(tmp_path, table(60)).values():
        images, annotations = content["images"], content["annotations"]
        assert [image["id"] for image in images] == list(range(1, len(images) + 1))
        assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
        assert {annotation["image_id"] for annotation in annotations} <= {image["id"] for image in images}
        assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "benign"), (2, "malignant")]
        assert {image["license"] for image in images} <= {licence["id"] for licence in content["licenses"]}


def test_healthy_images_are_listed_without_annotations(tmp_path: Path) -> None:
    content = _written(tmp_path, table(60))["train"]
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    healthy = {image["id"] for image in content["images"] if image["sonoforge"]["label"] == "normal"}
    assert healthy
    assert not healthy & annotated
    assert healthy | annotated == {image["id"] for image in content["images"]}


def test_boxes_and_areas_fit_their_images(tmp_path: Path) -> None:
    content = _written(tmp_path, table(30))["train"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        assert width > 0
        assert height > 0
        assert left + width <= sizes[annotation["image_id"]][0]
        assert top + height <= sizes[annotation["image_id"]][1]
        assert 0 < annotation["area"] <= width * height
        assert annotation["iscrowd"] == 0
        assert isinstance(annotation["segmentation"]["counts"], str)


def test_file_names_are_relative_and_rows_are_counted(tmp_path: Path) -> None:
    parquet.write(table(60).to_batches(), tmp_path)
    written = coco.write(tmp_path, tmp_path)
    for path, count in written.items():
        images = json.loads((tmp_path / path).read_bytes())["images"]
        assert len(images) == count.rows
        assert all(image["file_name"] == f"images/{image['sonoforge']['id']}.png" for image in images)


def test_the_text_is_that_of_the_whole_as_one_value(tmp_path: Path) -> None:
    rows = table(60)
    parquet.write(rows.to_batches(), tmp_path)
    written = coco.write(tmp_path, tmp_path)
    for path, file in written.items():
        data = (tmp_path / path).read_bytes()
        assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
        assert file.sha256 == hashlib.sha256(data).hexdigest()
    coco.write(tmp_path, tmp_path / "again")
    for path in written:
        assert (tmp_path / path).read_bytes() == (tmp_path / "again" / path).read_bytes()


def test_a_split_without_lesions_has_no_annotations(tmp_path: Path) -> None:
    rows = table(60, only_kept=True)
    healthy = rows.filter([label == "normal" for label in rows.column("label").to_pylist()])
    for content in _written(tmp_path, healthy).values():
        assert content["annotations"] == content["categories"] == []
        assert content["images"]


def test_a_normal_image_with_a_marked_lesion_is_refused(tmp_path: Path) -> None:
    rows = table(6)
    labels = pa.array(["normal"] * 6)
    parquet.write(rows.set_column(rows.schema.get_field_index("label"), "label", labels).to_batches(), tmp_path)
    with pytest.raises(ValueError, match="labelled normal but its mask marks"):
        coco.write(tmp_path, tmp_path)


def test_heads_carry_their_circumference_and_rows_without_one_say_nothing_of_it(tmp_path: Path) -> None:
    rows = table(30)
    column = "head_circumference_mm"
    measured = [100.0 + at if at % 2 else None for at in range(len(rows))]
    with_it = rows.drop([column]).append_column(column, pa.array(measured, pa.float64()))
    ids = dict(zip(rows["id"].to_pylist(), measured, strict=True))
    for name, given in (("with", with_it), ("without", rows.drop([column]))):
        for content in _written(tmp_path / name, given).values():
            for image in content["images"]:
                expected = ids[image["sonoforge"]["id"]] if name == "with" else None
                assert image["sonoforge"].get(column) == expected
                assert (column in image["sonoforge"]) == (expected is not None)
