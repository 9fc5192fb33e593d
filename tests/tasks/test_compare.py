from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

from storage.images import encode_grey, encode_mask
from tasks.compare import CompareParams, Comparison, compare
from tasks.quality import SET_SCORES
from tasks.quality.degradation import DEGRADATIONS
from tasks.quality.extractors.modules import of_module
from tests.fakes.pictures import save
from tests.tasks.quality.toys import pictures

FAST = {"steps": 2, "batch": 8}
QUICK = CompareParams.model_validate({"px": 64, "detector": FAST, "classifier": FAST})
BARE = CompareParams(px=64, detector=None, classifier=None)


def table(path, toys, names="x", group=True):
    """Pictures as a Parquet file with a mask, a label and, where asked for, a group each."""
    rows = [
        {
            "id": f"{names}-{number:03d}",
            "image": encode_grey(toys.images[number]),
            "mask": encode_mask(toys.masks[number]),
            "label": toys.labels[number],
            "group": toys.groups[number] if group else None,
        }
        for number in range(len(toys))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def folder(root, toys):
    """The same as a folder of plain files, without masks or groups."""
    for number, image in enumerate(toys.images):
        save(root / toys.labels[number] / f"{number:03d}.png", image)
    return str(root)


def scored(comparison):
    return {score.name: score for score in comparison.scores}


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    root = tmp_path_factory.mktemp("sides")
    real = table(root / "real.parquet", pictures(45, 0, labels=("benign", "malignant", "normal")))
    return real, table(root / "made.parquet", pictures(30, 1), "y", group=False)


@pytest.fixture(scope="module")
def comparison(sides):
    return compare(*sides, params=QUICK)


def test_every_set_score_of_two_sets_is_given(comparison):
    found = scored(comparison)
    assert list(found) == list(SET_SCORES)
    for score in found.values():
        assert score.extractor
        assert score.value is not None or "refused" in score.note
    assert comparison.extractor == found["kid"].extractor
    assert (found["kid"].n_real, found["kid"].n_synthetic) == (30, 30)
    assert found["radiomic_frechet"].extractor.startswith("radiomics@")
    assert found["detector_auc"].floor is not None
    assert found["detector_auc"].control is not None
    assert found["classifier_score"].extractor.startswith("classifier, out of fold@")
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_a_reader_is_told_what_was_compared(comparison):
    real, made = comparison.real, comparison.synthetic
    assert (real.read, real.compared, real.groups, real.masks) == (45, 30, 22, 30)
    assert (made.read, made.compared, made.groups) == (30, 30, None)
    assert real.labels == made.labels == {"benign": 15, "malignant": 15}
    notes = "\n".join(comparison.notes)
    assert "labels that the synthetic set lacks are left out: 15 normal" in notes
    assert "the synthetic pictures have no patients: each counts as its own group" in notes
    assert "64 × 64 px" in notes


def test_the_same_sets_give_the_same_scores_in_any_order(sides, tmp_path):
    rows = pq.read_table(sides[0])
    pq.write_table(rows.take(np.random.default_rng(0).permutation(len(rows))), tmp_path / "real.parquet")
    first, again = (compare(real, sides[1], params=BARE) for real in (sides[0], str(tmp_path / "real.parquet")))
    assert again.scores == first.scores


def test_without_masks_whole_pictures_are_looked_at(tmp_path):
    real, made = folder(tmp_path / "real", pictures(24, 0)), folder(tmp_path / "made", pictures(20, 1))
    (tmp_path / "made" / "benign" / "torn.png").write_bytes(b"\x89PNG torn")
    found = compare(real, made, params=QUICK)
    assert scored(found)["radiomic_frechet"].extractor.startswith("radiomics-whole@")
    assert scored(found)["speckle_frechet"].extractor.startswith("speckle-whole@")
    assert "lesions are drawn in 0% of the real and 0% of the synthetic" in "\n".join(found.notes)
    assert [bad.file for bad in found.synthetic.unreadable] == ["benign/torn.png"]
    assert (found.synthetic.read, found.synthetic.described) == (20, f"21 pictures in {made}")
    assert scored(found)["detector_auc"].value is not None


def test_a_damaged_set_lies_further_from_the_real_one(tmp_path):
    real = table(tmp_path / "real.parquet", pictures(80, 0))
    clean, rng = pictures(40, 1), np.random.default_rng(0)
    spoiled = replace(clean, images=np.stack([DEGRADATIONS["blur"](image, 1.0, rng) for image in clean.images]))
    sets = {"clean": clean, "spoiled": spoiled}
    one, two = (
        scored(compare(real, table(tmp_path / f"{name}.parquet", made), params=BARE)) for name, made in sets.items()
    )
    for name in ("radiomic_frechet", "speckle_frechet"):
        assert two[name].over_floor_low > one[name].over_floor_high
    assert two["kid"].low > one["kid"].high
    assert two["detector_auc"].note == "refused: no detector was trained"


def test_any_torch_module_can_be_the_extractor(sides):
    extractor = of_module(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), "quarters", 4, 32, channels=1)
    found = compare(*sides, params=BARE, extractor=extractor)
    assert found.extractor == extractor.identity
    assert scored(found)["fid"].value is not None  # N = 15 a side is enough for four numbers


def test_what_cannot_be_compared_is_refused(sides, tmp_path):
    heads = pictures(6, 3, labels=("head",))
    with pytest.raises(ValueError, match=r"found 0 real pictures with labels head in .* at least 2 needed"):
        compare(sides[0], table(tmp_path / "heads.parquet", heads), params=BARE)
    lone = table(tmp_path / "one.parquet", pictures(1, 3))
    with pytest.raises(ValueError, match="found 1 synthetic pictures in 1 rows of"):
        compare(sides[0], lone, params=BARE)
    kept = compare(
        sides[0], table(tmp_path / "h.parquet", heads), params=BARE.model_copy(update={"same_labels": False})
    )
    assert kept.real.compared == 45


def test_the_comparison_says_when_it_saw_a_part(sides):
    found = compare(*sides, params=BARE.model_copy(update={"most": 20}))
    assert found.real.compared == 20
    assert "20 of 30 real pictures are compared: whole groups, drawn at random" in found.notes
