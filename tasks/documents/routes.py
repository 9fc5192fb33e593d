"""How the pictures of a version came about, as its documents say it, by the stages of its recipe."""

from collections.abc import Mapping
from typing import Any, Literal

Route = Literal["lesion", "mask", "prompt", "pair"]

SYNTHETIC: Mapping[Route, str] = {
    "lesion": (
        "Every lesion here is synthetic, drawn into the background that its row names; a real background is a real "
        "patient."
    ),
    "mask": (
        "Every picture here is synthetic, drawn whole from a prompt and held to its mask by a ControlNet. How well a "
        "picture keeps to its mask is measured, not certain."
    ),
    "prompt": "Every picture here is synthetic, drawn whole from a prompt. There are no masks.",
    "pair": (
        "Every picture and every mask here is synthetic, drawn together. How well a mask outlines what its picture "
        "shows is measured, not certain."
    ),
}
"""What of a sample is no scan."""

COLLECTED: Mapping[Route, str] = {
    "lesion": "A diffusion model drew every lesion into a background",
    "mask": "A diffusion model, taught by scans, drew every picture whole, to a mask and a prompt",
    "prompt": "A diffusion model, taught by scans, drew every picture whole, to a prompt",
    "pair": "A diffusion model, taught by scans, drew every picture whole, with its mask",
}

ANNOTATED: Mapping[Route, str] = {
    "lesion": "the mask is what was drawn into, the label what was asked",
    "mask": "mask and label are what was asked",
    "prompt": "the label is what was asked",
    "pair": "the mask was drawn with the picture, the label is what was asked",
}
"""Where masks and labels come from."""


def route(recipe: Mapping[str, Any]) -> Route:
    """The route of a recipe, as it is published.

    >>> route({"stages": [{"stage": "segmentation"}, {"stage": "picture"}]})
    'mask'
    """
    stages = [str(stage["stage"]) for stage in recipe.get("stages", [])]
    if "pair" in stages:
        return "pair"
    if "picture" in stages:
        return "mask" if "segmentation" in stages else "prompt"
    return "lesion"
