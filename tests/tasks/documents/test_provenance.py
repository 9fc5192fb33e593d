import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.documents import provenance
from tests.tasks.documents import described


@pytest.fixture(scope="module")
def statement(described_folder: Path) -> dict[str, Any]:
    return json.loads(provenance.render(described.facts(described_folder), described.files(described_folder)))


def test_it_is_an_in_toto_statement_about_every_file_but_itself(
    statement: dict[str, Any], described_folder: Path
) -> None:
    """https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md: what is required, and of which type."""
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    files = described.files(described_folder)
    itself = files[0].model_copy(update={"path": "provenance.json"})
    again = json.loads(provenance.render(described.facts(described_folder), [*files[::-1], itself]))
    assert again == statement
    assert statement["subject"] == [{"name": file.path, "digest": {"sha256": file.sha256}} for file in files]
    for subject in statement["subject"]:
        assert re.fullmatch(r"[0-9a-f]{64}", subject["digest"]["sha256"])


def test_its_predicate_has_what_slsa_requires(statement: dict[str, Any]) -> None:
    """https://slsa.dev/spec/v1.0/provenance: required fields, and URIs where it asks for them."""
    predicate = statement["predicate"]
    assert set(predicate) == {"buildDefinition", "runDetails"}
    definition = predicate["buildDefinition"]
    assert set(definition) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    uri = re.compile(r"[a-z][a-z0-9+.-]*:\S+")
    assert uri.fullmatch(definition["buildType"])
    assert uri.fullmatch(predicate["runDetails"]["builder"]["id"])
    assert definition["externalParameters"]["recipe"] == {"name": "demo", "gate": {"min_kept": 1}}
    for dependency in definition["resolvedDependencies"]:
        assert set(dependency) <= {"name", "digest", "uri"}
        assert "uri" in dependency or "digest" in dependency
        assert "uri" not in dependency or uri.fullmatch(dependency["uri"])
    assert all(isinstance(value, str) for value in predicate["runDetails"]["builder"]["version"].values())


def test_in_totos_own_library_accepts_it(statement: dict[str, Any]) -> None:
    pytest.importorskip(
        "in_toto_attestation", reason="in-toto-attestation is not installed: the shape is checked above"
    )
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    parsed = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())


def test_what_went_in_is_found_by_the_digest_that_rows_hold(statement: dict[str, Any]) -> None:
    listed = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    named = {one["digest"]["sha256"]: one["name"] for one in listed if "digest" in one}
    assert named == {item.sha256: item.name for item in described.INGREDIENTS}
    places = {one["name"]: one.get("uri") for one in listed}
    assert places["adapter/malignant"] == "store:builds/train-adapter/cd/w.safetensors"
    assert places["package/torch"] == "pkg:pypi/torch@2.13.0%2Bcpu"


def test_it_holds_no_time(statement: dict[str, Any]) -> None:
    assert not re.search(r"20\d\d-\d\d-\d\d", json.dumps(statement))
    assert "metadata" not in statement["predicate"]["runDetails"]


def test_two_ingredients_of_one_name_are_refused(described_folder: Path) -> None:
    facts = described.facts(described_folder, ingredients=[*described.INGREDIENTS, described.INGREDIENTS[0]])
    with pytest.raises(ValueError, match="not unique"):
        provenance.render(facts, described.files(described_folder))


def test_a_statement_about_nothing_is_refused(described_folder: Path) -> None:
    with pytest.raises(ValueError, match="there are none"):
        provenance.render(described.facts(described_folder), [])
