import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tasks.quality.extractors import ExtractorParams, inception, load
from tests.tasks.quality.extractors.weights import drawn

WEIGHTS = "SONOFORGE_INCEPTION"

FIRST_SHAPES = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_1a_3x3.bn.running_var": (32,),
    "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}

KNOWN = {0: 0.102409, 1: 0.393285, 320: 1.223495, 700: 3.017524, 1100: 0.009848, 1500: 1.968534, 1900: 0.0}
"""Of `test_picture` under `drawn` weights, by torch-fidelity 0.4.0's own network (FeatureExtractorInceptionV3)."""


def shapes():
    with torch.device("meta"):
        state = inception.Inception().state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}


def test_picture():
    """A picture of the network's own size, so that no resize is part of the comparison."""
    y, x = np.mgrid[:299, :299]
    return ((x * 7 + y * 3) % 256 // 2 + (np.hypot(x - 150, y - 120) < 60) * 100).astype(np.uint8)


test_picture.__test__ = False


@pytest.fixture(scope="module")
def tensors():
    return drawn(shapes())


@pytest.fixture(scope="module")
def extractor(tensors):
    return inception.loads(save(tensors))


def test_the_layout_is_that_of_the_fid_weights():
    found = shapes()
    assert FIRST_SHAPES.items() <= found.items()
    assert len(found) == 94 * 5 + 2  # units of a convolution and a normalization, and the last layer
    assert sum(int(np.prod(shape)) for shape in found.values()) == 23_885_392
    assert not any(name.startswith("AuxLogits") for name in found)


def test_features_are_those_of_torch_fidelitys_network(extractor):
    found = extractor.features(test_picture()[None])
    assert found.shape == (1, 2048)
    assert {place: found[0, place] for place in KNOWN} == pytest.approx(KNOWN, abs=2e-5)
    assert (found.mean(), found.std()) == pytest.approx((0.6777, 0.886041), abs=2e-5)


def test_the_digest_is_that_of_the_file(extractor, tensors):
    import hashlib

    assert extractor.digest == hashlib.sha256(save(tensors)).hexdigest()
    assert extractor.identity == f"inception-2015-12-05@{extractor.digest[:12]}"


def test_pictures_are_resized_between_pixel_centres_without_antialiasing():
    """A 2 × 2 picture: the outer quarter of each side repeats the border, the middle is the mean."""
    from tasks.quality.extractors.modules import resized

    small = np.array([[[0, 255], [0, 255]]], np.uint8)
    row = resized(small, inception.PX, "bilinear")[0, 0, 0]
    assert (row[:75] == 0).all()
    assert (row[-75:] == 1).all()
    assert row[149] == pytest.approx(0.5, abs=1e-6)
    # Shrinking takes four neighbours and no more: a line between them vanishes.
    wide = np.zeros((1, 1196, 1196), np.uint8)
    wide[:, :, ::4] = 255
    assert resized(wide, inception.PX, "bilinear").max() == 0


def test_weights_of_another_network_are_refused_with_the_first_difference(tensors):
    torchvision = {k: v for k, v in tensors.items() if k != "fc.bias"} | {"AuxLogits.conv0.conv.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"1 tensors missing \(fc.bias\), 1 unknown .*AuxLogits are torchvision's"):
        inception.loads(save(torchvision))
    with pytest.raises(ValueError, match=r"fc.bias is \(1000,\), not \(1008,\)"):
        inception.loads(save(tensors | {"fc.bias": torch.zeros(1000)}))
    with pytest.raises(ValueError, match="are no safetensors"):
        inception.loads(b"\x80\x02pickle")


def test_real_weights_give_the_features_that_pytorch_fid_gives():
    """Of `test_picture`, which somebody had pytorch-fid look at and kept beside the weights:

    `np.save("weights.npy", InceptionV3()(torch.tensor(picture / 255.0).expand(1, 3, -1, -1).float())[0].numpy())`
    """
    path = Path(os.environ.get(WEIGHTS, "absent"))
    if not (path.is_file() and path.with_suffix(".npy").is_file()):
        pytest.skip(
            f"no InceptionV3 weights: set {WEIGHTS} to a safetensors file with pytorch-fid's features beside it"
        )
    found = load(ExtractorParams(kind="inception", weights=str(path))).features(test_picture()[None])
    assert found[0] == pytest.approx(np.load(path.with_suffix(".npy")).ravel(), abs=1e-4)
