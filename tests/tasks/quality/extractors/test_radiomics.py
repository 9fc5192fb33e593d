import itertools

import numpy as np
import pytest
from scipy import stats
from skimage.feature import graycomatrix, graycoprops

from tasks.quality.extractors import SPACES, radiomics
from tasks.quality.extractors.regions import LEAST_PX, content, lesions
from tests.tasks.quality.toys import pictures

TOYS = pictures(12, 0, labels=("benign", "malignant", "normal"))
RNG = np.random.default_rng(0)
EVERYWHERE = np.ones(TOYS.images.shape, bool)
COARSE = TOYS.images // 16


def test_first_order_statistics_are_those_of_scipy():
    found = radiomics.first_order(TOYS.images, TOYS.masks | (TOYS.images > 90))
    for row, image, region in zip(found, TOYS.images, TOYS.masks | (TOYS.images > 90), strict=True):
        values = image[region].astype(float)
        bins = np.bincount(image[region] // 8, minlength=32)
        expected = [
            values.mean(),
            values.std(),
            stats.skew(values),
            stats.kurtosis(values),
            np.percentile(values, 10, method="inverted_cdf"),
            np.percentile(values, 90, method="inverted_cdf"),
            stats.entropy(bins, base=2),
        ]
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("distance", radiomics.DISTANCES)
def test_pair_statistics_are_those_of_scikit_image(distance):
    found = radiomics.pair_statistics(radiomics.pair_counts(COARSE, EVERYWHERE, distance))
    # scikit-image takes a diagonal as a distance, (1, 1) as 1.41; these angles land on the same neighbours.
    steps = [(distance, 0.0), (distance, np.pi / 2)], [(distance * 2**0.5, np.pi / 4), (distance * 2**0.5, -np.pi / 4)]
    for row, image in zip(found, COARSE, strict=True):
        pairs = itertools.chain(*steps)
        counts = sum(graycomatrix(image, [d], [angle], levels=16, symmetric=True) for d, angle in pairs)
        share = counts / counts.sum()
        expected = [graycoprops(share, name)[0, 0] for name in ("contrast", "homogeneity", "energy", "correlation")]
        assert row == pytest.approx(expected, rel=1e-9)


def test_pairs_are_counted_inside_the_region_alone():
    image = np.array([[[0, 1, 1], [2, 1, 15]]], np.uint8)
    region = np.array([[[True, True, True], [False, True, False]]])
    counts = radiomics.pair_counts(image, region, 1)[0]
    # Across: 0-1, 1-1; down: 1-1; diagonals: 0-1 (\) and 1-1 (/); each counted both ways.
    assert counts[0, 1] == counts[1, 0] == 2
    assert counts[1, 1] == 6
    assert counts.sum() == 10


def test_run_lengths_are_those_counted_one_by_one():
    region = TOYS.masks | (TOYS.images > 60)
    found = radiomics.run_lengths(COARSE, region)
    for row, image, inside in zip(found, COARSE, region, strict=True):
        lengths = []
        for lines, shown in ((image, inside), (image.T, inside.T)):
            for line, there in zip(lines, shown, strict=True):
                runs = itertools.groupby(zip(line.tolist(), there.tolist(), strict=True))
                lengths += [len(list(run)) for (_, usable), run in runs if usable]
        length = np.array(lengths, float)
        expected = [(1 / length**2).mean(), np.log((length**2).mean()), len(length) / (2 * inside.sum())]
        assert row == pytest.approx(expected, rel=1e-9)


def test_columns_are_named_and_of_picture_lesion_and_ring():
    found = radiomics.features(TOYS.images, TOYS.masks)
    assert found.shape == (12, len(radiomics.NAMES)) == (12, 54)
    column = radiomics.NAMES.index
    benign = np.array([label == "benign" for label in TOYS.labels])
    assert (found[benign, column("lesion_mean")] < found[benign, column("ring_mean")]).all()
    inside = [image[mask].mean() for image, mask in zip(TOYS.images[benign], TOYS.masks[benign], strict=True)]
    assert found[benign, column("lesion_mean")] == pytest.approx(inside)
    assert (radiomics.features(TOYS.images, None) == found[:, :18]).all()


def test_a_picture_without_a_lesion_says_of_it_what_it_says_of_itself():
    found = radiomics.features(TOYS.images, TOYS.masks).reshape(12, 3, 18)
    normal = np.array([label == "normal" for label in TOYS.labels])
    assert (found[normal, 1] == found[normal, 0]).all()
    assert (found[normal, 2] == found[normal, 0]).all()
    assert (found[~normal, 1] != found[~normal, 0]).any(axis=1).all()


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.full((64, 64), 255, np.uint8),
        np.tile(np.array([0, 255], np.uint8), (64, 32)),
        np.pad(np.full((1, 1), 255, np.uint8), 32)[:64, :64],
        RNG.integers(0, 256, (64, 64), dtype=np.uint8),
        RNG.integers(0, 256, (40, 200), dtype=np.uint8),
    ],
    ids=["black", "white", "stripes", "one pixel", "noise", "wide"],
)
def test_every_picture_has_finite_numbers(name, image):
    extractor = SPACES[name]()
    tiny, most = np.zeros(image.shape, bool), np.ones(image.shape, bool)
    tiny[10, 10:12] = True
    most[:2] = False
    found = extractor.features(np.stack([image] * 3), np.stack([tiny, most, ~most]))
    assert np.isfinite(found).all()
    assert found.shape == (3, extractor.dimension)


@pytest.mark.parametrize("name", SPACES)
def test_a_picture_has_the_same_numbers_in_any_company(name):
    extractor = SPACES[name]()
    together = extractor.features(TOYS.images, TOYS.masks)
    alone = np.concatenate(
        [extractor.features(TOYS.images[k : k + 1], TOYS.masks[k : k + 1]) for k in reversed(range(12))]
    )
    assert together[::-1] == pytest.approx(alone, rel=1e-9, abs=1e-9)  # sums over more rows are rounded otherwise


def test_black_borders_are_not_content():
    image = np.zeros((1, 20, 30), np.uint8)
    image[0, 4:15, 6:25] = 100
    image[0, 8, 10:14] = 0  # a dark spot inside stays
    inside = content(image)[0]
    assert (inside.any(axis=1).nonzero()[0] == np.arange(4, 15)).all()
    assert (inside.any(axis=0).nonzero()[0] == np.arange(6, 25)).all()
    assert inside[8, 10:14].all()
    assert content(np.zeros((1, 5, 5), np.uint8)).all()


def test_the_ring_surrounds_the_lesion_by_a_sixteenth_of_the_side():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 20:40, 20:40] = True
    inside, ring = lesions(np.full((1, 64, 64), 90, np.uint8), mask, np.ones_like(mask))
    assert (inside == mask).all()
    assert ring.sum() == 28**2 - 20**2
    assert not (ring & mask).any()
    few = np.zeros_like(mask)
    few.reshape(-1)[: LEAST_PX - 1] = True
    assert all(part.all() for part in lesions(np.full((1, 64, 64), 90, np.uint8), few, np.ones_like(mask)))
