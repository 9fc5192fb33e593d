"""InceptionV3 as published FIDs use it: the network of 2015-12-05, converted from TensorFlow, in its own layout.

Names and shapes are those of `pt_inception-2015-12-05` (Conv2d_1a_3x3.conv.weight ... fc.bias, 1008 classes). It
differs from torchvision's: average pools count no padding, the last block pools by maximum, and there is no auxiliary
head. The weights are not shipped and are read from safetensors alone.

Pictures are brought to 299 px by bilinear interpolation without antialiasing, between the centres of pixels, and to
-1..1, as pytorch-fid does. TensorFlow 1's own resize, which torch-fidelity repeats, takes their corners instead.

Sources: Szegedy et al., arXiv 1512.00567; Heusel et al., arXiv 1706.08500; https://github.com/mseitzer/pytorch-fid.
"""

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tasks.quality import fitting
from tasks.quality.extractors import Extractor
from tasks.quality.extractors.modules import of_module

NAME = "inception-2015-12-05"
DIMENSION = 2048
PX = 299
CLASSES = 1008

_UNUSED = "num_batches_tracked"  # counts of batch normalization, which some converters leave out


class Unit(nn.Module):
    """Convolution, batch normalization, ReLU; padded so that the size stays, unless told otherwise or strided."""

    def __init__(
        self, before: int, after: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if padded and stride == 1 else 0
        self.conv: nn.Module = nn.Conv2d(before, after, size, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class BlockA(nn.Module):
    """1 × 1, 5 × 5, two 3 × 3 and an average pool, side by side."""

    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(before, 64, 1)
        self.branch5x5_1 = Unit(before, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5)
        self.branch3x3dbl_1 = Unit(before, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3)
        self.branch_pool = Unit(before, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_average(x))], dim=1)


class BlockB(nn.Module):
    """Halves the size: 3 × 3, two 3 × 3 and a maximum pool."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(before, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(before, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """7 × 7 in two factors, once and twice."""

    def __init__(self, before: int, narrow: int) -> None:
        super().__init__()
        across, down = (1, 7), (7, 1)
        self.branch1x1 = Unit(before, 192, 1)
        self.branch7x7_1 = Unit(before, narrow, 1)
        self.branch7x7_2 = Unit(narrow, narrow, across)
        self.branch7x7_3 = Unit(narrow, 192, down)
        self.branch7x7dbl_1 = Unit(before, narrow, 1)
        self.branch7x7dbl_2 = Unit(narrow, narrow, down)
        self.branch7x7dbl_3 = Unit(narrow, narrow, across)
        self.branch7x7dbl_4 = Unit(narrow, narrow, down)
        self.branch7x7dbl_5 = Unit(narrow, 192, across)
        self.branch_pool = Unit(before, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """Halves the size: 3 × 3, 7 × 7 then 3 × 3, and a maximum pool."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(before, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(before, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([small, large, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """3 × 3 in two factors side by side; the pool is of averages, or of maxima in the last block."""

    def __init__(self, before: int, maxima: bool) -> None:
        super().__init__()
        across, down = (1, 3), (3, 1)
        self.branch1x1 = Unit(before, 320, 1)
        self.branch3x3_1 = Unit(before, 384, 1)
        self.branch3x3_2a = Unit(384, 384, across)
        self.branch3x3_2b = Unit(384, 384, down)
        self.branch3x3dbl_1 = Unit(before, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3)
        self.branch3x3dbl_3a = Unit(384, 384, across)
        self.branch3x3dbl_3b = Unit(384, 384, down)
        self.branch_pool = Unit(before, 192, 1)
        self.maxima = maxima

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.branch3x3_1(x)
        two = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = [self.branch3x3_2a(one), self.branch3x3_2b(one), self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maxima else _average(x)
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled)], dim=1)


class Inception(nn.Module):
    """Features (B, 2048) of pictures (B, 3, 299, 299), -1..1: the means of the last block's maps."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, padded=False)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, maxima=False)
        self.Mixed_7c = BlockE(2048, maxima=True)
        self.fc = nn.Linear(DIMENSION, CLASSES)  # part of the layout; features come before it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def _average(x: torch.Tensor) -> torch.Tensor:
    """TensorFlow's average pool: at the border it divides by the pixels that are there."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def loads(weights: bytes) -> Extractor:
    """The extractor of the bytes of a safetensors file in the FID weights' layout; its digest is their sha256.

    Raises:
        ValueError: no safetensors, or other names or shapes than the layout's; with the first that differ.
    """
    try:
        tensors = load_tensors(weights)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"the InceptionV3 weights are no safetensors: {str(error).splitlines()[0]}") from error
    with torch.device("meta"):
        network = Inception()
    _check(network, tensors)
    known = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(_UNUSED)}
    for name, buffer in network.named_buffers():
        if name.endswith(_UNUSED):
            known[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    network.load_state_dict(known, assign=True)
    fused(network.eval()).to(fitting.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    digest = hashlib.sha256(weights).hexdigest()
    return of_module(network, NAME, DIMENSION, PX, resize="bilinear", batch=32, digest=digest)


def fused(network: Inception) -> Inception:
    """The same function with normalizations folded into convolutions: less to do, equal to about 1e-5."""
    for unit in network.modules():
        if isinstance(unit, Unit) and isinstance(unit.conv, nn.Conv2d) and isinstance(unit.bn, nn.BatchNorm2d):
            unit.conv, unit.bn = fuse_conv_bn_eval(unit.conv, unit.bn), nn.Identity()
    return network


def _check(network: Inception, tensors: dict[str, torch.Tensor]) -> None:
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items() if not name.endswith(_UNUSED)}
    found = {name: tuple(t.shape) for name, t in tensors.items() if not name.endswith(_UNUSED)}
    missing, foreign = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or foreign:
        raise ValueError(
            f"these are not the FID weights of InceptionV3 (pt_inception-2015-12-05): {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}), {len(foreign)} unknown ({', '.join(foreign[:3])})"
            + ("; AuxLogits are torchvision's, which give other features" if "AuxLogits" in str(foreign) else "")
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(
                f"these are not the FID weights of InceptionV3 (pt_inception-2015-12-05): {name} is {found[name]}, "
                f"not {shape}"
            )
