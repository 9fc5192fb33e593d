import json
import logging
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.images import decode_grey, decode_mask
from storage.records import SPLITS
from tasks.documents import croissant, licences
from tests.tasks.documents import described

# rdflib and mlcroissant use names that their own dependencies have replaced.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlcroissant"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pyparsing"),
]
MISSING = {"https://schema.org/datePublished", "https://schema.org/version"}
"""What Croissant recommends and a text without time and number cannot say: the manifest does."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    filled = described.fill(tmp_path_factory.mktemp("croissant"))
    text = croissant.render(described.facts(filled), described.files(filled))
    (filled / "croissant.json").write_text(text)
    return filled


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "croissant.json").read_text())


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def test_mlcroissant_finds_no_error_and_misses_only_the_date_and_the_number(folder: Path) -> None:
    issues = mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).metadata.ctx.issues
    assert issues.errors == set()
    assert {url for url in MISSING if any(url in warning for warning in issues.warnings)} == MISSING
    assert len(issues.warnings) == len(MISSING)


def test_its_context_is_the_one_mlcroissant_expects(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="absl"):
        mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not [record for record in caplog.records if "@context" in record.getMessage()]


def test_records_read_through_it_are_the_rows_picture_for_picture(folder: Path) -> None:
    expected = {
        row["id"]: row
        for path in sorted((folder / "data").iterdir())
        for row in pq.read_table(path).to_pylist()
    }  # fmt: skip
    records = mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).records("samples")
    seen: set[str] = set()
    for record in records:
        row = {name.removeprefix("samples/"): _text(value) for name, value in record.items()}
        want = expected[row["id"]]
        assert np.array_equal(np.asarray(row["image"]), decode_grey(want["image"]["bytes"]))
        assert (row["mask"] is None) == (want["mask"] is None)
        if row["mask"] is not None:
            assert np.array_equal(np.asarray(row["mask"]), decode_mask(want["mask"]["bytes"]))
        for name in ("label", "split", "group", "seed", "pixel_mm", "segmenter_dice", "background_id", "levels_id"):
            assert row[name] == want[name], name
        assert list(row["reasons"]) == want["reasons"]
        assert set(row) == set(want)
        seen.add(row["id"])
    assert seen == set(expected)
    assert len(seen) > 10


@pytest.mark.parametrize("name", ["metadata", "ledger", "sources"])
def test_the_thin_tables_are_record_sets_too(folder: Path, name: str) -> None:
    table = pq.read_table(folder / f"{name}.parquet")
    records = list(mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).records(name))
    assert [_text(record[f"{name}/id"]) for record in records] == table.column("id").to_pylist()
    assert [_text(record[f"{name}/verdict"]) for record in records] == table.column("verdict").to_pylist()
    assert {key.removeprefix(f"{name}/") for key in records[0]} == set(table.column_names)


def test_splits_are_declared_as_such(folder: Path, document: dict[str, Any]) -> None:
    records = list(mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).records("splits"))
    assert [record["splits/name"] for record in records] == list(SPLITS)
    assert [record["splits/url"] for record in records] == ["cr:TrainingSplit", "cr:ValidationSplit", "cr:TestSplit"]
    samples = next(one for one in document["recordSet"] if one["@id"] == "samples")
    split = next(field for field in samples["field"] if field["name"] == "split")
    assert split["references"] == {"field": {"@id": "splits/name"}}


def test_a_damaged_table_is_refused_by_its_sha256(folder: Path, tmp_path: Path) -> None:
    for name in ("croissant.json", "metadata.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with (tmp_path / "metadata.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(mlcroissant.GenerationError):
        list(mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json")).records("metadata"))


def test_every_parquet_file_is_listed_with_its_size_and_sha256(folder: Path, document: dict[str, Any]) -> None:
    listed = {one["contentUrl"]: one for one in document["distribution"] if one["@type"] == "cr:FileObject"}
    files = {file.path: file for file in described.files(folder) if file.path.endswith(".parquet")}
    assert set(listed) == set(files)
    for path, one in listed.items():
        assert one["sha256"] == files[path].sha256
        assert one["contentSize"] == f"{files[path].bytes} B"


def test_every_column_of_every_file_is_a_field_with_a_meaning(folder: Path, document: dict[str, Any]) -> None:
    for record_set in document["recordSet"]:
        for field in record_set["field"]:
            assert record_set["@id"] == "splits" or len(field["description"]) > 5
    samples = next(one for one in document["recordSet"] if one["@id"] == "samples")
    columns = pq.read_schema(next((folder / "data").iterdir())).names
    assert [field["name"] for field in samples["field"]] == columns


def test_synthetic_and_provenance_fields_are_filled(document: dict[str, Any]) -> None:
    assert document["rai:hasSyntheticData"] is True
    for name in (
        "dataCollection",
        "dataCollectionType",
        "dataCollectionRawData",
        "dataAnnotationProtocol",
        "dataLimitations",
        "dataBiases",
        "dataUseCases",
        "dataSocialImpact",
        "personalSensitiveInformation",
    ):
        assert document[f"rai:{name}"], name
    derived = {one["prov:label"]: one["@id"] for one in document["prov:wasDerivedFrom"]}
    assert derived == {item.name: f"urn:sha256:{item.sha256}" for item in described.INGREDIENTS}
    [activity] = document["prov:wasGeneratedBy"]
    assert {one["@id"] for one in activity["prov:used"]} == set(derived.values())


def test_rai_fields_reach_mlcroissant(folder: Path, document: dict[str, Any]) -> None:
    metadata = mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).metadata
    assert metadata.data_collection == document["rai:dataCollection"]
    assert metadata.cite_as == document["citeAs"]
    assert metadata.license == ["https://www.apache.org/licenses/LICENSE-2.0"]


def test_a_licence_without_an_address_is_a_named_work(folder: Path, tmp_path: Path) -> None:
    scans = licences.Licensed(name="scans", licence="Hospital X, ask Jane")
    facts = described.facts(folder, terms=licences.combine([scans, described.BASE]))
    content = json.loads(croissant.render(facts, described.files(folder)))
    assert content["license"] == [
        {"@type": "sc:CreativeWork", "name": "other: Hospital X, ask Jane"},
        "https://www.apache.org/licenses/LICENSE-2.0",
    ]
    (tmp_path / "croissant.json").write_text(json.dumps(content))
    assert mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json")).metadata.ctx.issues.errors == set()


def test_a_million_rows_would_not_make_it_longer(folder: Path) -> None:
    few, many = (
        described.files(folder),
        [file.model_copy(update={"rows": 10**6}) for file in described.files(folder)],
    )
    facts = described.facts(folder)
    assert croissant.render(facts, few) == croissant.render(facts, many)


def test_the_same_facts_make_the_same_bytes_in_any_order_of_files(folder: Path) -> None:
    facts, files = described.facts(folder), described.files(folder)
    assert croissant.render(facts, files) == croissant.render(facts, files[::-1])
