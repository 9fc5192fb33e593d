"""Recipe: the typed parameters of one dataset, composed of the components' own `Params`."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from flows import pins
from flows.runners import Runner
from storage import weights
from storage.formats import FORMATS
from storage.keys import canonical_json
from storage.records import Record
from tasks.audit import AuditParams
from tasks.plan import Plan
from tasks.quality import IMAGE_SCORES, SET_SCORES, unscored
from tasks.quality.extractors import ExtractorParams
from tasks.quality.gate import GateParams
from tasks.quality.quotas import Quotas
from tasks.quality.selection import SelectParams
from tasks.quality.thresholds import Threshold
from tasks.screening.screen import ScreenParams
from tasks.sources import SOURCES, SourceParams
from tasks.study import StudyParams
from tasks.synthesis import StageParams, needs_background, seams
from tasks.synthesis import background as backgrounds
from tasks.synthesis.diffusion.decoder import DecoderParams
from tasks.train import ControlNetParams, LoraParams
from tasks.train_judges import JudgesParams

AUDITED = "membership_auc"
"""The set score that the audit of the adapters adds."""

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be read: the message names each field, what was found and what is valid."""


class Recipe(Record):
    """One dataset: what it is made from, how, and what is good enough to publish."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$", description="Name of the dataset in the store.")
    description: str = Field(default="", description="One or two sentences for the dataset card.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything random; each sample derives its own.")
    source: SourceParams = Field(description="Where the real scans come from.")
    screen: ScreenParams = Field(default=ScreenParams(), description="How scans are fitted, checked and split.")
    training_scans: float | None = Field(
        default=None,
        gt=0,
        description="Generator, judges and studied networks learn from so many of the training scans alone, whole "
        "groups; up to 1 a share; null: all.",
    )
    base: str = Field(
        default="embedded",
        description="Base model in diffusers' Stable Diffusion layout: 'embedded', a folder, an s3:// URL or a hub id.",
    )
    decoder: DecoderParams | None = Field(
        default=None,
        description="Tuning of the base's decoder to the texture of the training scans; null: decoded as it is.",
    )
    lora: LoraParams = Field(
        default=LoraParams(),
        description="LoRA fine-tuning: one adapter a label of lesions, one for all of pictures drawn whole.",
    )
    controlnet: ControlNetParams | None = Field(
        default=None, description="Training of the network that holds whole pictures to their masks; null: none."
    )
    harmonizer: seams.Params | None = Field(
        default=None,
        description="LoRA fine-tuning of the harmonize stage on seam pairs; null: labels use their own adapter.",
    )
    judges: JudgesParams = Field(default=JudgesParams(), description="Training of the networks that score.")
    plan: Plan = Field(description="How many samples, of which labels, in shards of what size.")
    background: Literal["real", "synthetic"] = Field(
        default="real",
        description="What lesions are drawn into: healthy scans as they are, or redrawn by the base.",
    )
    background_drawing: backgrounds.Params = Field(
        default=backgrounds.Params(), description="How synthetic backgrounds are drawn; unused where they are real."
    )
    stages: list[StageParams] = Field(min_length=1, description="Stages of the synthesis, in order.")
    image_scores: list[str] | None = Field(
        default=None, description="Scores of each image; null: all that say something about these pictures."
    )
    set_scores: list[str] | None = Field(
        default=None, description="Scores of the whole set; null: all that say something about these pictures."
    )
    extractor: ExtractorParams = Field(
        default=ExtractorParams(), description="What turns images into the features that set scores compare."
    )
    curate: list[Threshold] = Field(default=[], description="What an image must reach to be kept.")
    audit: AuditParams | None = Field(
        default=AuditParams(), description="Attack on the adapters: do they give training scans away? null: none."
    )
    quotas: Quotas | None = Field(default=None, description="How many samples of each kind are kept; null: all.")
    select: SelectParams | None = Field(
        default=None, description="Leaving out samples to bring the set nearer to the real one; null: none for that."
    )
    gate: GateParams = Field(default=GateParams(), description="What the kept set must reach to be published.")
    formats: list[str] = Field(default=["parquet", "coco"], description="Export formats.")
    runner: Runner = Field(default=Runner(), description="Where shards run.")
    study: StudyParams = Field(default=StudyParams(), description="How `sonoforge study` trains and tests.")
    pins: dict[str, str] = Field(
        default={},
        description="Digest that each of the weights named above must have, as `sonoforge lock` writes them.",
    )

    @field_validator("image_scores", "set_scores", "formats")
    @classmethod
    def _names_exist(cls, names: list[str] | None, info: Any) -> list[str] | None:
        if names is None:
            return None
        tables: dict[str, Sequence[str]] = {
            "image_scores": list(IMAGE_SCORES),
            "set_scores": list(SET_SCORES),
            "formats": list(FORMATS),
        }
        valid = tables[info.field_name]
        for name in names:
            if name not in valid:
                raise ValueError(f"unknown name {name!r}; {_nearest(name, valid)}")
        if info.field_name == "formats" and "parquet" not in names:
            raise ValueError("'parquet' is missing; every version holds Parquet, other formats come beside it")
        return names

    @model_validator(mode="after")
    def _stages_are_one_route(self) -> "Recipe":
        whole, names = not needs_background(self.stages), [stage.stage for stage in self.stages]
        masked = names == ["segmentation", "picture"]
        if masked and self.controlnet is None:
            raise ValueError("controlnet: a picture stage that is given masks needs one to hold pictures to them")
        if self.controlnet is not None and not masked:
            raise ValueError(f"controlnet: needs the stages segmentation and picture, found {', '.join(names)}")
        idle = {"background": self.background == "synthetic", "harmonizer": self.harmonizer is not None}
        for field, is_given in idle.items():
            if whole and is_given:
                raise ValueError(f"{field}: the stages {', '.join(names)} draw pictures whole, into no background")
        return self

    @model_validator(mode="after")
    def _what_is_limited_is_scored(self) -> "Recipe":
        audited = [AUDITED] if self.audit is not None else []
        best = [] if self.quotas is None else [self.quotas.best]
        images, sets = (self._without_unscored(names) for names in (IMAGE_SCORES, SET_SCORES))
        for field, among, asked, scored in (
            ("image_scores", "image_scores", self.image_scores or [], images),
            ("set_scores", "set_scores", self.set_scores or [], sets),
            ("curate", "image_scores", [threshold.score for threshold in self.curate], self.scored_images),
            ("quotas", "image_scores", best, self.scored_images),
            ("gate", "set_scores", [limit.score for limit in self.gate.limits], [*self.scored_sets, *audited]),
        ):
            for name in asked:
                if name not in scored:
                    why = self._unscored.get(name) or _nearest(name, scored)
                    raise ValueError(f"{field}: score {name!r} is not among {among}; {why}")
        return self

    @property
    def scored_images(self) -> list[str]:
        """The scores of each image."""
        return self.image_scores or self._without_unscored(IMAGE_SCORES)

    @property
    def scored_sets(self) -> list[str]:
        """The scores of the whole set."""
        return self.set_scores or self._without_unscored(SET_SCORES)

    def _without_unscored(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._unscored]

    @property
    def _unscored(self) -> dict[str, str]:
        """Scores that say nothing about these pictures, and why. A folder's labels are known when it is read."""
        labels = SOURCES[self.source.dataset].LABELS or ("a folder's", "own")
        masked = any(stage.stage in ("layout", "segmentation", "pair") for stage in self.stages)
        return unscored(labels, not needs_background(self.stages), masked)

    def published(self) -> dict[str, object]:
        """All that decides the dataset's bytes, as plain data: not where it runs, where its scans and weights lie, how
        it is studied."""
        left_out: dict[str, Any] = {
            "runner": True, "study": True, "pins": True, "source": {"root"}, "extractor": {"weights"}
        }  # fmt: skip
        content = self.model_dump(mode="json", exclude=left_out)
        content["base"] = weights.shown(self.base)
        if self.controlnet is not None and self.controlnet.start is not None:
            content["controlnet"]["start"] = weights.shown(self.controlnet.start)
        return content

    def digest(self) -> str:
        """Digest of what is published."""
        return hashlib.sha256(canonical_json(self.published())).hexdigest()


def find(path: str | Path) -> Path:
    """The file of a recipe, given by itself or by the name of one of ours.

    Raises:
        RecipeError: there is none.
    """
    for file in (Path(path), RECIPES / f"{path}.yaml"):
        if file.is_file():
            return file
    ours = sorted(file.stem for file in RECIPES.glob("*.yaml") if not file.name.endswith(pins.SUFFIX))
    raise RecipeError(f"no recipe at {path}; give a YAML file, or one of ours: {', '.join(ours)}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (or the name of one in `flows/recipes/`) and its lock, apply `path.to.field=value`.

    Raises:
        RecipeError: no such file, not YAML, or fields that are unknown, missing or out of range.
    """
    file = find(path)
    try:
        raw = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{file} holds {type(raw).__name__}; expected a mapping of recipe fields")
    content = cast(dict[str, Any], raw)
    content.setdefault("pins", pins.read(file))
    for text in overrides:
        override(content, text)
    return parse(content)


def parse(content: Mapping[str, Any]) -> Recipe:
    """A `Recipe` from plain data, with errors a person can act on."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(detail) for detail in error.errors())) from error


def override(content: dict[str, Any], text: str) -> None:
    """Change one field of plain recipe content: "path.to.field=value", the value read as YAML.

    >>> content = {"plan": {"samples": 96}}
    >>> override(content, "plan.samples=8")
    >>> content
    {'plan': {'samples': 8}}
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {text!r}: expected path.to.field=value, for example plan.samples=32")
    *parents, last = path.split(".")
    node: Any = content
    for part in parents:
        if isinstance(node, list):
            node = node[_position(cast(list[Any], node), part, text)]
        else:
            node = node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {text!r}: {part} is a plain value, it has no fields")
    if isinstance(node, list):
        node[_position(cast(list[Any], node), last, text)] = yaml.safe_load(value)
    else:
        node[last] = yaml.safe_load(value)


def _position(items: list[Any], part: str, text: str) -> int:
    """Place of a list item given by number, or by the `stage` or `score` it is about."""
    for position, item in enumerate(items):
        if isinstance(item, dict) and part in (item.get("stage"), item.get("score")):
            return position
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise RecipeError(f"--set {text!r}: no item {part!r} among {len(items)}; use its number, stage or score")


def _explain(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            name = str(detail["loc"][-1])
            return f"{where}: unknown field; {_nearest(name, _fields_at(detail['loc'][:-1]))}"
        case "missing":
            return f"{where}: missing; the recipe must give it"
        case "union_tag_invalid":
            context = detail.get("ctx", {})
            valid = [tag.strip(" '") for tag in str(context.get("expected_tags", "")).split(",")]
            found = str(context.get("tag", ""))
            return f"{where}.{_tag(context)}: unknown name {found!r}; {_nearest(found, valid)}"
        case "union_tag_not_found":
            return f"{where}: {_tag(detail.get('ctx', {}))} is missing; it says which kind this is"
        case _:
            return f"{where or 'recipe'}: {detail['msg']}; found {str(detail['input'])[:80]!r}"


def _tag(context: Mapping[str, Any]) -> str:
    return str(context.get("discriminator", "kind")).strip("'")


def _nearest(name: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"valid: {', '.join(valid)}"


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """Fields of the model that a pydantic error location points into; tags of unions are steps of it too."""
    models: list[type[BaseModel]] = [Recipe]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [
            found
            for model in models
            if part in model.model_fields
            for found in _models(model.model_fields[part].annotation)
        ]
        tagged = [model for model in models if part in _tags(model)]
        models = tagged or inner or models
    return sorted({field for model in models for field in model.model_fields})


def _tags(model: type[BaseModel]) -> set[str]:
    return {
        str(tag) for name in ("dataset", "stage") if name in model.model_fields
        for tag in get_args(model.model_fields[name].annotation)
    }  # fmt: skip


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = get_args(annotation.__value__ if hasattr(annotation, "__value__") else annotation)
    if hasattr(annotation, "__metadata__"):
        arguments = arguments[:1]
    return [model for argument in arguments for model in _models(argument)]
