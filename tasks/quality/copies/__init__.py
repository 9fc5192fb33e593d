"""Is this picture, or this lesion, one of the training set? `Index` finds whole pictures and parts of them by their
speckle, `nearest` compares lesion squares."""

from tasks.quality.copies.lesions import (
    LESION_COPY,
    Nearest,
    nearest,
    nearest_similarity,
    nearest_texture,
    picture_similarity,
    textures,
)
from tasks.quality.copies.pictures import COPY, SAME, Index, Match

__all__ = [
    "COPY",
    "LESION_COPY",
    "SAME",
    "Index",
    "Match",
    "Nearest",
    "nearest",
    "nearest_similarity",
    "nearest_texture",
    "picture_similarity",
    "textures",
]
