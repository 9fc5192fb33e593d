import json

import numpy as np
import pytest

from tasks.quality import features
from tests import REPOSITORY
from tests.tasks.quality.toys import pictures

TRAIN = pictures(40, 0, labels=("benign", "malignant", "normal"))


def trained(seed: int = 0) -> bytes:
    return features.train(TRAIN.images, TRAIN.masks, TRAIN.labels, features.Params(steps=3, batch=8), seed)


def test_training_repeats_bit_for_bit_and_follows_its_seed():
    assert trained() == trained()
    assert trained() != trained(seed=1)


def test_saved_and_loaded_it_gives_the_same_features(tmp_path):
    weights = trained()
    digest = features.save(tmp_path, weights, about={"trained on": "toys"})
    loaded = features.load(tmp_path)
    assert loaded.identity == f"sonoforge-features@{digest[:12]}"
    assert (loaded.features(TRAIN.images) == features.loads(weights).features(TRAIN.images)).all()
    assert loaded.features(TRAIN.images).shape == (40, 32)
    assert loaded.features(TRAIN.images).dtype == np.float64


def test_no_images_have_no_features():
    assert features.loads(trained()).features(np.zeros((0, 64, 64), np.uint8)).shape == (0, 32)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.json and model.safetensors missing"):
        features.load(tmp_path)


def test_other_weights_than_the_configs_are_refused(tmp_path):
    features.save(tmp_path, trained())
    (tmp_path / "model.safetensors").write_bytes(trained(seed=1))
    with pytest.raises(ValueError, match="their config records"):
        features.load(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    features.save(tmp_path, trained())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": 2}))
    with pytest.raises(ValueError, match="this version reads"):
        features.load(tmp_path)


def test_floats_and_single_images_are_refused():
    extractor = features.loads(trained())
    with pytest.raises(ValueError, match="expected uint8"):
        extractor.features(TRAIN.images[0])
    with pytest.raises(ValueError, match="expected uint8"):
        extractor.features(TRAIN.images / 255.0)


def test_the_shipped_extractor_tells_degraded_pictures_from_untouched_ones():
    """Every kind of damage moves the cloud, and more damage moves it further."""
    folder = REPOSITORY / "models" / "extractor"
    if not (folder / "config.json").is_file():
        pytest.skip("models/extractor is not there")
    from tasks.quality.degradation import DEGRADATIONS
    from tasks.quality.kernel import kernel_distance
    from tasks.sources import phantom

    extractor, rng = features.load(folder), np.random.default_rng(0)
    scans = phantom.read(phantom.Params(dataset="phantom", count=80, px=128, seed=977))
    shown = np.stack([scan.image for scan in scans if scan.image is not None])
    plain, other = extractor.features(shown[::2]), shown[1::2]
    same = kernel_distance(plain, extractor.features(other))
    for name, kind in DEGRADATIONS.items():
        mild, strong = (
            kernel_distance(plain, extractor.features(np.stack([kind(image, s, rng) for image in other])))
            for s in (0.4, 1.0)
        )
        assert same < mild < strong, name
