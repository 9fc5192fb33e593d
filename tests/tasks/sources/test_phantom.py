"""The phantom source: what it draws, what it promises, how alike the same numbers are."""

import time

import numpy as np
import pytest

from tasks.sources import phantom
from tasks.sources.phantom import Params, draw, read


def test_the_same_seed_draws_the_same_pictures_however_many_are_asked_for() -> None:
    few = list(read(Params(count=4, px=64, seed=3)))
    many = list(read(Params(count=6, px=64, seed=3)))
    for a, b in zip(few, many, strict=False):
        assert a.file == b.file
        assert a.image is not None
        assert b.image is not None
        np.testing.assert_array_equal(a.image, b.image)


def test_another_seed_draws_other_pictures() -> None:
    first, second = (next(iter(read(Params(count=1, px=64, seed=seed)))) for seed in (1, 2))
    assert first.image is not None
    assert second.image is not None
    assert (first.image != second.image).mean() > 0.3


def test_two_views_share_a_patient_and_its_label_but_no_picture() -> None:
    scans = list(read(Params(count=6, px=64)))
    assert [scan.group for scan in scans[:4]] == ["patient-00000"] * 2 + ["patient-00001"] * 2
    assert scans[0].label == scans[1].label
    assert scans[0].image is not None
    assert scans[1].image is not None
    assert (scans[0].image != scans[1].image).mean() > 0.2


def test_labels_come_in_the_shares_asked_for() -> None:
    labels = [phantom._kind(Params(normal=0.5, malignant=0.2), patient) for patient in range(200)]  # pyright: ignore
    assert abs(labels.count("normal") - 100) <= 3
    assert abs(labels.count("malignant") - 40) <= 3


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"more than 1"):
        next(iter(read(Params(normal=0.8, malignant=0.4))))


@pytest.mark.parametrize("kind", ["benign", "malignant", "head"])
def test_a_mask_lies_inside_what_the_probe_sees(kind: phantom.Kind) -> None:
    for patient in range(8):
        drawn = draw(kind, 5, patient, 0, 96)
        assert drawn.mask is not None
        assert drawn.image.shape == drawn.mask.shape == (96, 96)
        assert drawn.image.dtype == np.uint8
        assert drawn.mask.any()
        if kind != "head":
            assert not (drawn.mask & ~drawn.seen).any()
        assert not drawn.image[~drawn.seen].any()


def test_normal_tissue_has_no_mask() -> None:
    assert draw("normal", 0, 0, 0, 64).mask is None


def test_a_lesion_changes_its_place_and_what_lies_behind_it_only() -> None:
    drawn = draw("malignant", 9, 4, 0, 128, twin=True)
    assert drawn.healthy is not None
    assert drawn.mask is not None
    rows, columns = np.nonzero(drawn.mask)
    change = np.abs(drawn.image.astype(int) - drawn.healthy)
    above = change[: max(0, rows.min() - 14)]  # its margin is blurred
    aside = change[:, : max(0, columns.min() - 14)]
    assert change[drawn.mask].mean() > 10
    assert above.size == 0 or above.max() <= 2
    assert aside.size == 0 or aside.mean() < 1


def test_lesions_are_darker_than_around_and_malignant_ones_cast_shadows() -> None:
    behind: dict[str, list[float]] = {"benign": [], "malignant": []}
    for kind, found in behind.items():
        for patient in range(24):
            drawn = draw(kind, 2, patient, 0, 96, twin=True)  # pyright: ignore[reportArgumentType]
            assert drawn.mask is not None
            assert drawn.healthy is not None
            assert drawn.image[drawn.mask].mean() < drawn.healthy[drawn.mask].mean()
            below = np.maximum.accumulate(drawn.mask, axis=0) & ~drawn.mask & drawn.seen
            found.append(float(drawn.image[below].mean()) - float(drawn.healthy[below].mean()))
    assert np.median(behind["malignant"]) < -3 < 0 < np.median(behind["benign"])


def test_malignant_lesions_are_rounder_and_have_longer_outlines() -> None:
    shape: dict[str, list[tuple[float, float]]] = {"benign": [], "malignant": []}
    for kind, found in shape.items():
        for patient in range(24):
            mask = draw(kind, 8, patient, 0, 128).mask  # pyright: ignore[reportArgumentType]
            assert mask is not None
            rows, columns = np.nonzero(mask)
            edge = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
            found.append((np.ptp(columns) / np.ptp(rows), edge / np.sqrt(mask.sum())))
    benign, malignant = (np.median(shape[kind], axis=0) for kind in ("benign", "malignant"))
    assert benign[0] > 1.15 * malignant[0]
    assert malignant[1] > 1.1 * benign[1]


def test_speckle_in_soft_tissue_is_near_what_compounded_rayleigh_statistics_give() -> None:
    ratios: list[float] = []
    for patient in range(6):
        image = draw("normal", 4, patient, 0, 128).image.astype(float)
        tissue = image[40:80, 30:98]
        ratios.append(tissue.std() / tissue.mean())
    assert 0.08 < np.median(ratios) < 0.6


def test_a_picture_takes_milliseconds() -> None:
    start = time.process_time()
    for patient in range(6):
        draw("benign", 1, patient, 0, 128)
    assert (time.process_time() - start) / 6 < 0.2  # 25 to 40 ms on one quiet core
