import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from tasks.quality import features
from tasks.quality.extractors import SHIPPED, Extractor, ExtractorParams, load, modules
from tests.tasks.quality.toys import pictures

TOYS = pictures(5, 0)


class Means(nn.Module):
    """Mean of every quarter of every channel."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, x):
        return self.weight * F.adaptive_avg_pool2d(x, 2).flatten(1)


def test_a_recipe_without_a_word_about_it_gets_the_shipped_extractor():
    extractor = load(ExtractorParams())
    assert (extractor.name, extractor.dimension) == ("sonoforge-features", 32)
    assert (extractor.features(TOYS.images) == features.load(SHIPPED).features(TOYS.images)).all()
    assert load(ExtractorParams(sha256=extractor.digest)).identity == extractor.identity
    with pytest.raises(ValueError, match=f"have sha256 {extractor.digest}, expected {'0' * 64}"):
        load(ExtractorParams(sha256="0" * 64))


def test_weights_are_read_from_a_folder_a_file_and_a_url_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = (SHIPPED / "model.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    url = f"file://{tmp_path}/w.safetensors"
    places = [str(SHIPPED), str(tmp_path / "w.safetensors"), url]
    found = {load(ExtractorParams(weights=place, sha256=sha256)).identity for place in places}
    assert found == {f"sonoforge-features@{sha256[:12]}"}
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    assert load(ExtractorParams(weights=url, sha256=sha256)).digest == sha256  # from the cache
    with pytest.raises(ValueError, match=f"expected {sha256}"):
        load(ExtractorParams(weights=str(tmp_path / "w.safetensors"), sha256=sha256))


def test_bytes_from_a_url_that_are_not_those_pinned_are_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "w.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"expected {'0' * 64}"):
        load(ExtractorParams(weights=f"file://{tmp_path}/w.safetensors", sha256="0" * 64))
    assert not list((tmp_path).rglob("cache/**/*.safetensors"))
    with pytest.raises(ValueError, match="cannot be read"):
        load(ExtractorParams(weights=f"file://{tmp_path}/gone.safetensors", sha256="0" * 64))


def test_what_cannot_be_an_extractor_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="needs weights"):
        ExtractorParams(kind="inception")
    with pytest.raises(ValueError, match="pin them by sha256"):
        ExtractorParams(weights="s3://bucket/w.safetensors")
    with pytest.raises(ValueError, match=r"is a pickle.*convert it once.*weights_only=True"):
        load(ExtractorParams(kind="inception", weights="pt_inception-2015-12-05-6726825d.pth"))
    with pytest.raises(ValueError, match="there are no weights at"):
        load(ExtractorParams(weights=str(tmp_path / "none.safetensors")))


def test_any_torch_module_is_an_extractor():
    extractor = modules.of_module(Means().train(), "means", 12, 32)
    found = extractor.features(TOYS.images)
    quarters = TOYS.images.reshape(5, 2, 32, 2, 32).mean((2, 4)).reshape(5, 4)
    assert found == pytest.approx(np.tile(2 * quarters / 255 - 1, 3), abs=1e-6)
    assert found.dtype == np.float64
    one = modules.of_module(nn.AdaptiveAvgPool2d(1), "mean", 1, 64, channels=1, mean=0, std=1)
    assert one.features(TOYS.images)[:, 0] == pytest.approx(TOYS.images.mean((1, 2)) / 255, abs=1e-6)


def test_the_digest_follows_the_weights_and_how_the_module_is_asked():
    digests = {
        modules.of_module(module, name, dimension, px, mean=mean).digest
        for module, name, dimension, px, mean in (
            (Means(), "a", 12, 32, 0.5),
            (Means(2.0), "a", 12, 32, 0.5),
            (Means(), "b", 12, 32, 0.5),
            (Means(), "a", 12, 64, 0.5),
            (Means(), "a", 12, 32, 0.4),
        )
    }
    assert len(digests) == 5
    assert modules.of_module(Means(), "a", 12, 32).digest == modules.of_module(Means(), "a", 12, 32).digest


def test_an_answer_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"means gave features of shape \(5, 12\), expected \(5, 7\)"):
        modules.of_module(Means(), "means", 7, 32).features(TOYS.images)


def test_images_and_masks_of_other_types_are_refused():
    extractor = Extractor("none", "0" * 64, 1, lambda images, masks: np.zeros((len(images), 1)))
    assert extractor.features(TOYS.images, TOYS.masks).shape == (5, 1)
    assert extractor.features(TOYS.images[:0]).shape == (0, 1)
    with pytest.raises(ValueError, match="expected uint8 images"):
        extractor.features(TOYS.images / 255.0)
    with pytest.raises(ValueError, match="expected bool masks"):
        extractor.features(TOYS.images, TOYS.masks[:2])
    with pytest.raises(ValueError, match="expected bool masks"):
        extractor.features(TOYS.images, TOYS.images)


def test_importing_extractors_needs_no_torch():
    import subprocess
    import sys

    check = "import sys, tasks.quality.extractors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_wrong_safetensors_are_no_sonoforge_extractor(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="not those of"):
        load(ExtractorParams(weights=str(tmp_path / "w.safetensors")))
