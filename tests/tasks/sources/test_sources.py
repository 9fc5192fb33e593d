import pytest
from pydantic import TypeAdapter, ValidationError

from tasks import sources
from tests import fakes

ON_DISK = [name for name in sources.SOURCES if name != "phantom"]


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_source_states_licence_citation_organ_labels_and_its_data_sheet(name):
    source = sources.SOURCES[name]
    assert source.LICENCE
    assert source.CITATION
    assert source.ORGAN in ("breast", "fetal head")
    assert source.LABELS
    for word in (
        ("Counts", "Layout", "Masks", "Licence", "Defects") if name not in ("phantom", "folder") else ("Layout",)
    ):
        assert word in source.__doc__


@pytest.mark.parametrize("name", ON_DISK)
def test_every_source_reads_its_fake_without_defects(name, tmp_path):
    getattr(fakes, name)(tmp_path)
    params = sources.at(name, tmp_path)
    scans = list(sources.read(params))
    assert scans
    assert all(scan.defects == () and scan.image.shape == scan.mask.shape for scan in scans)
    assert {scan.label for scan in scans} <= set(sources.SOURCES[name].LABELS)


@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_root_is_refused_with_the_expected_layout(name, tmp_path):
    with pytest.raises(ValueError, match="does not exist; expected a folder laid out as"):
        list(sources.read(sources.at(name, tmp_path / "nowhere")))


def test_the_digest_depends_on_content_and_not_on_the_place(tmp_path):
    digests = []
    for k, seed in enumerate((0, 0, 1)):
        root = fakes.busi(tmp_path / str(k), n=1, seed=seed)
        digests.append(sources.digest(sources.at("busi", root)))
    assert digests[0] == digests[1] != digests[2]


def test_unknown_sources_and_fields_are_refused():
    adapter = TypeAdapter(sources.SourceParams)
    with pytest.raises(ValidationError, match="busy"):
        adapter.validate_python({"dataset": "busy", "root": "."})
    with pytest.raises(ValidationError, match="roof"):
        adapter.validate_python({"dataset": "busi", "root": ".", "roof": 1})
