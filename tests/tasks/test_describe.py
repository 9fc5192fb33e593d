import json
from pathlib import Path

import pytest

from storage import weights
from storage.records import Ref, Written
from tasks import describe
from tasks.curate import Curation
from tasks.documents.licences import Licensed
from tasks.quality.thresholds import Threshold
from tasks.sources import busi, folder, phantom
from tasks.synthesis.diffusion import controlnet
from tests.fakes.base import make_base, make_controlnet
from tests.fakes.samples import SCORES
from tests.tasks.documents import described

NOWHERE = Ref(key="builds/curate/x/verdicts.parquet", sha256="0" * 64)
GATE = {"min_kept": 2, "limits": [{"score": "fid", "max": 5.0, "max_over_floor": 3.0}]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "report.html").write_text("<html></html>")
    return described.fill(tmp_path / "version")


def _described(filled: Path) -> Path:
    known = described.facts(filled)
    curation = Curation(
        **known.outcome.model_dump(),
        table=NOWHERE,
        thresholds=[Threshold(score="segmenter_dice", min=0.5)],
        problems=[],
    )
    facts = describe.gather(
        filled,
        dataset="demo",
        description="Speckle.",
        recipe={"name": "demo", "gate": GATE},
        recipe_digest="cafe" * 16,
        formats=["parquet", "coco"],
        score_names=SCORES,
        made_from=[described.PHANTOM, described.BASE],
        used=described.INGREDIENTS,
        curation=curation,
    )
    describe.write(filled, facts, {"metadata.parquet": Written(rows=1, sha256="ab" * 32)})
    return filled


def test_the_provenance_is_about_every_other_file(filled: Path) -> None:
    statement = json.loads((_described(filled) / "provenance.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    expected = {file.path: file.sha256 for file in described.files(filled) if file.path != "provenance.json"}
    assert {"README.md", "croissant.json", "scorecard.json", "report.html"} <= set(subjects)
    assert subjects == {**expected, "metadata.parquet": "ab" * 32}  # what the writer worked out is believed


def test_the_same_version_is_described_in_the_same_bytes(filled: Path, tmp_path: Path) -> None:
    names = ("README.md", "croissant.json", "provenance.json", "scorecard.json")
    first = {name: (_described(filled) / name).read_bytes() for name in names}
    for name in names:
        (filled / name).unlink()
    assert first == {name: (_described(filled) / name).read_bytes() for name in names}


def test_what_the_gate_asked_for_stands_in_the_scorecard(filled: Path) -> None:
    card = json.loads((_described(filled) / "scorecard.json").read_text())
    asked = {check["asked"] for criterion in card["criteria"] for check in criterion["checks"]}
    assert {"at least 2 samples kept", "fid ≤ 5 and ≤ 3 × its floor", "segmenter_dice ≥ 0.5, where it applies"} <= asked


def test_own_scans_come_on_the_terms_that_the_recipe_states(base: Path, tmp_path: Path) -> None:
    scans, model = describe.licensed(folder.Params(root=tmp_path, licence="CC BY-NC 4.0"), str(base))
    assert scans == Licensed(name="scans of folder", licence="CC BY-NC 4.0")
    assert model == Licensed(name="base tiny", licence="not stated")


def test_a_public_source_is_cited(tmp_path: Path) -> None:
    scans, model = describe.licensed(busi.Params(root=tmp_path), "embedded")
    assert "Al-Dhabyani" in scans.attribution
    assert model == Licensed(name="base sonoforge-base", licence="apache-2.0")


def test_ingredients_are_what_was_trained_and_where_it_lies(base: Path) -> None:
    trained = Ref(key="builds/train-adapter/ab/w.safetensors", sha256="ad" * 32, rows=3)
    skipped = Ref(key="builds/tune-decoder/cd/none", sha256="de" * 32)
    scans = Ref(key="builds/ingest/ef/scans.parquet", sha256="5c" * 32, rows=9)
    found = describe.ingredients(scans, str(base), {"decoder": skipped, "adapter/benign": trained})
    assert [item.name for item in found] == ["scans", "base", "adapter/benign", "extractor"]
    assert {item.name: item.uri for item in found} == {
        "scans": "store:builds/ingest/ef/scans.parquet",
        "base": None,  # a folder of this machine
        "adapter/benign": "store:builds/train-adapter/ab/w.safetensors",
        "extractor": "sonoforge:models/extractor",
    }
    assert found[2].sha256 == "ad" * 32


def test_a_controlnet_that_others_trained_counts_with_its_licence_and_digest(base: Path, tmp_path: Path) -> None:
    start = make_controlnet(tmp_path / "sketch")
    (start / "README.md").write_text("---\nlicense: openrail\n---\n")
    assert describe.licensed(phantom.Params(), "embedded", str(start))[-1] == Licensed(
        name="ControlNet sketch", licence="openrail"
    )
    scans = Ref(key="builds/ingest/ef/scans.parquet", sha256="5c" * 32, rows=9)
    named = {item.name: item for item in describe.ingredients(scans, str(base), {}, start=str(start))}
    assert named["controlnet start"].sha256 == weights.digest(start, controlnet.LAYOUT)
    assert named["controlnet start"].uri is None  # a folder of this machine


def test_no_password_of_a_bases_address_is_told() -> None:
    address = "s3://AKIAEXAMPLE:hunter2@bucket/models/base?token=hunter2"
    assert describe._base_uri(address) == "s3://bucket/models/base"


def test_phantoms_and_the_embedded_base_are_apache() -> None:
    assert [one.licence for one in describe.licensed(phantom.Params(), "embedded")] == ["Apache-2.0", "apache-2.0"]
