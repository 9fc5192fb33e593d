from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.imaging import letterbox, to_grey
from tasks.quality import Evidence, detector
from tasks.quality.copies import nearest, picture_similarity
from tasks.quality.judge import Pictures
from tests import real_data
from tests.tasks.quality.toys import pictures


def planted(pictures: Pictures, kind: str) -> Pictures:
    """Copies of lesions as a generator would leave them: mirrored, regraded, blurred, or with a moved mask."""
    images, masks = pictures.images, pictures.masks
    if kind == "mirrored":
        images, masks = images[..., ::-1].copy(), masks[..., ::-1].copy()
    elif kind == "regraded":
        images = np.rint(255 * (images / 255.0) ** 0.8 * 0.9).astype(np.uint8)
    elif kind == "noisy":
        noise = np.random.default_rng(0).normal(0, 6, images.shape)
        images = np.clip(ndimage.gaussian_filter(images.astype(float), (0, 0.5, 0.5)) + noise, 0, 255).astype(np.uint8)
    elif kind == "shifted":
        masks = np.roll(masks, (1, 1), (1, 2))
    return replace(pictures, images=images, masks=masks)


@pytest.mark.parametrize("kind", ["exact", "mirrored", "regraded", "noisy", "shifted"])
def test_planted_copies_are_caught_and_point_at_their_original(kind: str):
    train, unseen = pictures(60, 0), pictures(60, 7)
    limit = np.quantile(nearest(unseen, train).similarity, 0.95)
    found = nearest(planted(train, kind), train)
    assert (found.similarity > limit).mean() >= 0.95
    assert (found.row == np.arange(60)).mean() >= 0.95


def test_a_copied_picture_is_caught_where_its_lesion_is_new():
    train, unseen = pictures(60, 0), pictures(60, 7)
    other = pictures(60, 3)
    images = np.where(other.masks | train.masks, other.images, train.images)
    redrawn = replace(planted(replace(train, images=images), "noisy"), masks=other.masks)
    limit = np.quantile(similarities(unseen, train), 0.95)
    assert (similarities(redrawn, train) > limit).mean() >= 0.95
    assert (similarities(pictures(40, 8), train) > limit).mean() < 0.25


def similarities(scored: Pictures, train: Pictures) -> NDArray[np.float32]:
    """Likeness of whole pictures to the training picture that each resembles most."""
    return picture_similarity(Evidence(scored, train, None, b"", detector.Params(), 0))


def test_pictures_without_lesion_have_no_neighbour():
    found = nearest(pictures(3, 0, labels=("normal",)), pictures(4, 1))
    assert np.isnan(found.similarity).all()
    assert (found.row == -1).all()


def test_a_flat_lesion_resembles_nothing():
    train = pictures(4, 0)
    flat = replace(train, images=np.full_like(train.images, 90))
    assert nearest(flat, train).similarity == pytest.approx(np.zeros(4), abs=1e-3)


@pytest.mark.slow
def test_copies_of_real_lesions_are_caught_at_five_percent_false_alarms():
    """On BUSI, near-duplicates left in: only images whose nearest neighbour in the whole set is far count as
    unseen, so the limit is not raised by the duplicates themselves."""
    root = real_data("busi") / "Dataset_BUSI_with_GT" / "benign"
    files = sorted(file for file in root.glob("*.png") if "_mask" not in file.name)[:160]
    pairs = [
        letterbox(
            to_grey(np.asarray(Image.open(file).convert("RGB"))),
            np.asarray(Image.open(file.with_name(f"{file.stem}_mask.png")).convert("L")) > 127,
            128,
        )
        for file in files
    ]
    masks = np.stack([pair.mask for pair in pairs if pair.mask is not None])
    everyone = Pictures(np.stack([pair.image for pair in pairs]), masks, ["benign"] * 160, files_as_groups(160))
    train, unseen = everyone.select(np.arange(0, 160, 2)), everyone.select(np.arange(1, 160, 2))
    similarity = nearest(unseen, train).similarity
    limit = np.quantile(similarity[similarity < 0.7], 0.95)
    for kind in ("exact", "mirrored", "regraded", "noisy", "shifted"):
        caught = (nearest(planted(train, kind), train).similarity > limit).mean()
        assert caught >= 0.95, f"{kind}: {caught:.0%} caught"


def files_as_groups(count: int) -> list[str]:
    return [str(row) for row in range(count)]
