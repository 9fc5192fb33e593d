"""What turns a picture into numbers that set scores compare.

An extractor has a name, a digest of all that decides its numbers, and a dimension. `load` gives the one that a recipe
asks for, `modules.of_module` makes one of any torch module; `radiomics` and `speckle` need no weights. Importing this
needs no torch.
"""

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import fsspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from storage.records import Record
from tasks.imaging import Grey, Mask

SHIPPED = Path(__file__).resolve().parents[3] / "models" / "extractor"
"""The extractor that comes with the project."""

Compute = Callable[[Grey, Mask | None], NDArray[np.float64]]

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")


class ExtractorParams(Record):
    """Which extractor the set scores use."""

    kind: Literal["sonoforge", "inception"] = Field(
        default="sonoforge",
        description="sonoforge: 32 features, made for ultrasound; inception: InceptionV3's 2048, as in published FIDs",
    )
    weights: str | None = Field(
        default=None, description="safetensors file, a path or fsspec URL; left out: those shipped (sonoforge only)"
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights, checked; a URL needs it"
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.kind == "inception" and self.weights is None:
            raise ValueError(
                "the inception extractor needs weights: a safetensors file in the layout of the FID weights "
                "(pt_inception-2015-12-05), which are not shipped"
            )
        if self.weights is not None and "://" in self.weights and self.sha256 is None:
            raise ValueError(f"weights {self.weights} come from a URL: pin them by sha256")
        return self


@dataclass(frozen=True)
class Extractor:
    """Features of images. Those of two extractors are never comparable, so every score quotes `identity`."""

    name: str
    digest: str
    dimension: int
    compute: Compute = field(repr=False)
    batch: int = 64

    @property
    def identity(self) -> str:
        """Name and the first 12 digits of the digest of weights and definition."""
        return f"{self.name}@{self.digest[:12]}"

    def features(self, images: Grey, masks: Mask | None = None) -> NDArray[np.float64]:
        """Features (n, dimension) of images (n, h, w), uint8, with masks of the same shape where it looks at them.

        Raises:
            ValueError: other types or shapes.
        """
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ValueError(f"expected uint8 images of shape (n, h, w), found {images.dtype} {images.shape}")
        if masks is not None and (masks.shape != images.shape or masks.dtype != np.bool_):
            raise ValueError(f"expected bool masks of shape {images.shape}, found {masks.dtype} {masks.shape}")
        out = np.zeros((len(images), self.dimension))
        for at in range(0, len(images), self.batch):
            rows = slice(at, at + self.batch)
            found = self.compute(images[rows], None if masks is None else masks[rows])
            if found.shape != out[rows].shape:
                raise ValueError(f"{self.name} gave features of shape {found.shape}, expected {out[rows].shape}")
            out[rows] = found
        return out


def load(params: ExtractorParams) -> Extractor:
    """The extractor that a recipe asks for.

    Raises:
        ValueError: no weights there, other ones than pinned, of another architecture, or pickled.
    """
    from tasks.quality import features
    from tasks.quality.extractors import inception

    if params.kind == "inception":
        assert params.weights is not None  # checked with the parameters
        return inception.loads(_read(params.weights, params.sha256))
    if params.weights is None:
        return _expected(features.load(SHIPPED), params.sha256)
    if Path(params.weights).expanduser().is_dir():
        return _expected(features.load(Path(params.weights).expanduser()), params.sha256)
    return features.loads(_read(params.weights, params.sha256))


def _radiomics() -> Extractor:
    from tasks.quality.extractors import radiomics

    return radiomics.WITH_LESION


def _speckle() -> Extractor:
    from tasks.quality.extractors import speckle

    return speckle.WITH_LESION


SPACES: dict[str, Callable[[], Extractor]] = {"radiomics": _radiomics, "speckle": _speckle}
"""Extractors beside the one that a recipe chooses, each with a set score of its own."""


def _expected(extractor: Extractor, sha256: str | None) -> Extractor:
    if sha256 not in (None, extractor.digest):
        raise ValueError(f"the weights of {extractor.name} have sha256 {extractor.digest}, expected {sha256}")
    return extractor


def _read(weights: str, sha256: str | None) -> bytes:
    """The bytes of a safetensors file, checked against `sha256` where it is given."""
    if weights.lower().endswith(_PICKLES):
        raise ValueError(
            f"{weights} is a pickle, which runs whatever it likes when it is opened; convert it once where it is "
            'trusted: python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
            f"torch.load('{weights}', map_location='cpu', weights_only=True).items()}}, 'weights.safetensors')\""
        )
    data = _fetched(weights, sha256) if "://" in weights else _local(Path(weights).expanduser())
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise ValueError(f"the weights {weights} have sha256 {found}, expected {sha256}")
    return data


def _local(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}; expected a safetensors file")
    return path.read_bytes()


def _fetched(url: str, sha256: str | None) -> bytes:
    """The file at a URL, which travels once: it stays in the user's cache under its digest."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    kept = Path(root) / "sonoforge" / "weights" / f"{sha256}.safetensors"
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == sha256:
        return kept.read_bytes()
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()  # type: ignore[union-attr] - one file, not a list of them
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"the weights at {url} cannot be read: {str(error).splitlines()[0]}") from error
    if hashlib.sha256(data).hexdigest() == sha256:
        kept.parent.mkdir(parents=True, exist_ok=True)
        arriving = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
        arriving.write_bytes(data)
        arriving.replace(kept)
    return data
