"""Weights pinned by digest: what `sonoforge lock` writes beside a recipe, and what a build holds against it.

A name says where weights lie, not what they are: a folder is replaced, a hub id moves on. Pins change no byte of a
dataset; they say whether the bytes will be those that the recipe was tried with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from storage import weights
from tasks.quality import extractors, sam
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet

if TYPE_CHECKING:
    from flows.recipe import Recipe

SUFFIX = ".lock.yaml"
STUDIED = "study.sam.weights"
"""The only weights that a build does not touch."""

_HEADER = """\
# Written by `sonoforge lock`: sha256 of the weights that {recipe} names. A build with others stops before any work.
"""


def lock_file(recipe: Path) -> Path:
    """Where the pins of a recipe file lie.

    >>> lock_file(Path("mine/breast.yaml")).as_posix()
    'mine/breast.lock.yaml'
    """
    return recipe.with_name(recipe.stem + SUFFIX)


def read(recipe: Path) -> dict[str, str]:
    """The pins beside a recipe file, none where it is not locked.

    Raises:
        ValueError: the lock is not what `write` makes.
    """
    file = lock_file(recipe)
    if not file.is_file():
        return {}
    try:
        found: object = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML ({str(error).splitlines()[0]}); {_again(recipe)}") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise ValueError(f"{file} is no lock, that is names of weights with their sha256; {_again(recipe)}")
    return cast(dict[str, str], found)


def write(recipe: Path, pins: Mapping[str, str]) -> Path:
    """Write the lock of a recipe file anew; its path."""
    file = lock_file(recipe)
    file.write_text(_HEADER.format(recipe=recipe.name) + yaml.safe_dump(dict(pins), sort_keys=True), encoding="utf-8")
    return file


def found(recipe: "Recipe") -> dict[str, str]:
    """The digest of all weights that a recipe names, by the field that names them.

    Raises:
        ValueError: some are not there, or not what they should be.
    """
    return {field: digest() for field, (_, digest) in _named(recipe).items()}


def check(recipe: "Recipe", *, studied: bool = False) -> None:
    """Refuse weights that are not those pinned; a recipe without pins takes what is there.

    Args:
        recipe: what is built.
        studied: also hold the weights against their pins that only a study uses.

    Raises:
        ValueError: which weights were found, which are pinned, and what to do.
    """
    if not recipe.pins:
        return
    for field, (name, digest) in _named(recipe).items():
        if field == STUDIED and not studied:
            continue
        pinned, now = recipe.pins.get(field), digest()
        if pinned is None:
            raise ValueError(
                f"{field} {name!r} is not pinned, while the recipe's lock pins {', '.join(sorted(recipe.pins))}: write "
                "the lock again with `sonoforge lock`, with the same --set as this command"
            )
        if pinned != now:
            raise ValueError(
                f"{field} {name!r} has sha256 {now}, but the recipe's lock pins {pinned}: bring back the weights that "
                "it was locked with (a hub id takes a revision: owner/name@revision), or, if these are the ones you "
                "want, write the lock again with `sonoforge lock`, with the same --set as this command"
            )


def _named(recipe: "Recipe") -> dict[str, tuple[str, Callable[[], str]]]:
    """By field, the name of weights and how to get their digest."""
    asked = recipe.extractor
    named: dict[str, tuple[str, Callable[[], str]]] = {
        "base": (recipe.base, lambda: bases.digest(bases.locate(recipe.base))),
        "extractor": (asked.weights or asked.kind, lambda: extractors.load(asked).digest),
    }
    start = recipe.controlnet.start if recipe.controlnet is not None else None
    if start is not None:
        named["controlnet.start"] = start, lambda: _digest(start, controlnet.LAYOUT)
    studied = recipe.study.sam.weights if recipe.study.sam is not None else sam.RANDOM
    if studied != sam.RANDOM:
        named[STUDIED] = studied, lambda: sam.digest(studied)
    return named


def _digest(name: str, layout: weights.Layout) -> str:
    return weights.digest(weights.locate(name, layout), layout)


def _again(recipe: Path) -> str:
    return f"delete it, then write it again with `sonoforge lock {recipe}` or build without pins"
