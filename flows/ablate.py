"""What each part of a recipe buys: the recipe, and variants of it that lack one part or change one number."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

from prefect import flow
from pydantic import Field

from flows import temporary
from flows.build_dataset import make, relied_on
from flows.recipe import Recipe, override, parse
from storage.records import Record, Ref
from tasks.ablate import describe_variant, tabulate
from tasks.connect import open_store
from tasks.quality.gate import GateParams
from tasks.report.ablation import Ablation
from tasks.reuse import Done

CANDIDATES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Variant:
    """A name, and what `--set` would take."""

    name: str
    changes: tuple[str, ...]


class AblationResult(Record):
    """A finished ablation; `uri` is ablation.json, ablation.md lies beside it."""

    ablation: Ablation
    key: str
    uri: str


@flow(name="ablate", flow_run_name="{recipe.name}")
def ablate(
    recipe: Annotated[Recipe, Field(description="The whole recipe.")],
    store: Annotated[str, Field(description="Folder or fsspec URL of the datasets and of what was finished.")],
) -> AblationResult:
    """Make every variant up to its curation, and put their numbers side by side. Nothing is published.

    What variants have in common is made once.
    """
    temporary.tie()
    opened = open_store(store)
    opened.probe()
    with relied_on(opened, f"ablate {recipe.name}"):
        # The table says nothing of what adapters give away, and nothing is published: no gate may ask about it.
        compared = recipe.model_copy(update={"audit": None, "gate": GateParams()})
        described = [_described(compared, variant, store) for variant in variants(recipe)]
        table = tabulate(store, recipe.name, recipe.digest(), described)
    ablation = Ablation.model_validate_json(opened.read(table.ref.key))
    return AblationResult(ablation=ablation, key=table.ref.key, uri=opened.uri(table.ref.key))


def variants(recipe: Recipe) -> list[Variant]:
    """The whole recipe, then what can be taken from it or changed in it; what it lacks already is left out."""
    stages = [stage.model_dump(mode="json") for stage in recipe.stages]
    kinds = [str(stage["stage"]) for stage in stages]
    found = [Variant("full", ())]
    # An adapter that was trained for one step at next to no rate is zero to within rounding: the base alone.
    found.append(Variant("without LoRA", ("lora.steps=1", "lora.warmup=0", "lora.learning_rate=1e-12")))
    if recipe.decoder is not None:
        found.append(Variant("without tuned decoder", ("decoder=null",)))
    for optional in ("levels", "harmonize"):
        if optional in kinds:
            rest = [stage for stage in stages if stage["stage"] != optional]
            found.append(Variant(f"without {optional}", (f"stages={json.dumps(rest)}",)))
    if "harmonize" in kinds:
        if recipe.harmonizer is None:
            trained = json.dumps(recipe.lora.model_dump(mode="json"))
            found.append(Variant("with seam adapter", (f"harmonizer={trained}",)))
        else:
            found.append(Variant("without seam adapter", ("harmonizer=null",)))
    if "lesion" in kinds:
        now = stages[kinds.index("lesion")]["candidates"]
        if recipe.judges.critic is not None:
            found.append(Variant("without critic", ("judges.critic=null",)))
            found += [Variant(f"k = {k}", (f"stages.lesion.candidates={k}",)) for k in CANDIDATES if k != now]
    if "layout" in kinds:
        shapes = stages[kinds.index("layout")].get("shapes")
        found += [
            Variant(f"shapes: {other}", (f"stages.layout.shapes={other}",))
            for other in ("donors", "model")
            if shapes is not None and other != shapes
        ]
    return found


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with the changes that `--set` would make."""
    content: dict[str, Any] = recipe.model_dump(mode="json")
    for text in changes:
        override(content, text)
    return parse(cast(Mapping[str, Any], content))


def _described(recipe: Recipe, variant: Variant, store: str) -> Ref:
    done: list[Done] = []
    made = make(changed(recipe, variant.changes), store, done)
    return describe_variant(
        store,
        variant.name,
        variant.changes,
        made.shards,
        made.scores,
        made.real,
        made.detected,
        made.curated,
        recipe.seed,
    ).ref
