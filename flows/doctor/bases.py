"""A recipe: its fields, its scans, and whether the weights that it names load and are those of its lock."""

from collections.abc import Iterator, Sequence

from flows import pins
from flows import recipe as recipes
from flows.doctor.findings import Finding
from flows.recipe import Recipe
from storage.errors import StorageError
from tasks import sources
from tasks.synthesis.diffusion import base as bases


def check_recipe(name: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """Read a recipe, look at its scans, and load its base model as a build would."""
    try:
        recipe = recipes.load(name, overrides)
    except (ValueError, OSError) as error:
        yield Finding(check="recipe", level="failure", found=str(error), advice="correct the file, or --recipe")
        return
    yield Finding(check="recipe", level="ok", found=f"{recipe.name}: {recipe.plan.samples} samples planned")
    yield from _scans(recipe)
    yield from _weights(recipe, name)


def _scans(recipe: Recipe) -> Iterator[Finding]:
    try:
        next(iter(sources.read(recipe.source)), None)
    except (ValueError, OSError) as error:
        yield Finding(
            check="scans",
            level="failure",
            found=str(error),
            advice=f"give the folder: --set source.root=DIR, then sonoforge inspect {recipe.source.dataset} DIR",
        )


def _weights(recipe: Recipe, name: str) -> Iterator[Finding]:
    try:
        folder = bases.locate(recipe.base)
        digest = bases.digest(folder)
    except (ValueError, OSError, StorageError) as error:
        yield Finding(check="base model", level="failure", found=str(error), advice=_bring(recipe))
        return
    if recipe.pins:
        try:
            pins.check(recipe)
        except (ValueError, StorageError) as error:
            yield Finding(check="lock", level="failure", found=str(error), advice=f"sonoforge lock {name}")
            return
        yield Finding(check="lock", level="ok", found=f"holds {len(recipe.pins)} weights, and they are these")
    else:
        yield Finding(
            check="lock",
            level="information",
            found="none: a build takes the weights that are there, whatever they are",
            advice=f"pin them: sonoforge lock {name}",
        )
    try:
        base = bases.load(recipe.base)
    except (ValueError, OSError, RuntimeError) as error:
        said = f"{recipe.base} does not load: {type(error).__name__}: {error}".splitlines()[0]
        yield Finding(check="base model", level="failure", found=said, advice=_bring(recipe))
        return
    found = f"{recipe.base} loads: {base.px} px, sha256 {digest[:12]}… in {folder}"
    yield Finding(check="base model", level="ok", found=found)


def _bring(recipe: Recipe) -> str:
    if recipe.base == "embedded":
        return "git checkout -- models, or git lfs pull where the files are pointers"
    return "copy the model anew, or name another one: --set base=FOLDER, s3://bucket/prefix or owner/name@revision"
