"""Does the generator give its training scans away? The 20 % experiment: order, nothing else."""

from typing import Annotated

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import temporary
from flows.build_dataset import facts_of, make, relied_on
from flows.recipe import Recipe
from storage.records import Record, Ref
from tasks.connect import open_store
from tasks.documents import licences
from tasks.ingest import ingest
from tasks.memorise import Drawn, Made, ask, conclude_memorisation, find_copied, take_sides
from tasks.quality.gate import GateParams
from tasks.quality.judge import HEALTHY
from tasks.quality.resnet import Params as ResNetParams
from tasks.report.memorisation import LESSONS, Lesson, Memorisation
from tasks.reuse import Done
from tasks.track import advance, track


class MemorisationResult(Record):
    """A finished experiment; `uri` is memorisation.json; .html, .md and answers.parquet are beside it."""

    memorisation: Memorisation
    key: str
    uri: str


@flow(name="memorisation", flow_run_name="{recipe.name}")
def memorisation(
    recipe: Annotated[Recipe, Field(description="Any dataset of two labels.")],
    store: Annotated[str, Field(description="Folder or fsspec URL of the datasets and of what was finished.")],
    share: Annotated[float, Field(gt=0, le=0.5, description="Of the training scans, whole groups, that teach.")] = 0.2,
    seeds: Annotated[int, Field(ge=1, le=100, description="Trainings of every classifier in a draw.")] = 3,
    draws: Annotated[int, Field(ge=1, le=100, description="Draws of the groups, each with a generator.")] = 1,
) -> MemorisationResult:
    """Teach the generator with a share of the groups, a classifier with its samples, and ask the classifier about
    those groups and about unseen ones: the gap is what the samples give away.

    Nothing is published. Everything finished is reused, so a killed experiment goes on.
    """
    temporary.tie()
    opened = open_store(store)
    opened.probe()
    labels = _labels(recipe)
    licences.combine(facts_of(recipe).made_from)  # a conflict is told before hours of work
    params = recipe.study.classifier or ResNetParams()
    with relied_on(opened, f"memorisation {recipe.name}"):
        drawn = [_drawn(of_draw(recipe, share, draw), store, labels, params, seeds) for draw in range(draws)]
        about = {"recipe": recipe.name, "digest": recipe.digest(), "base": str(recipe.published()["base"])}
        ref = conclude_memorisation(store, about, share, drawn, params, recipe.study.resamples, recipe.seed).ref
    found = Memorisation.model_validate_json(opened.read(ref.key))
    return MemorisationResult(memorisation=found, key=ref.key, uri=opened.uri(ref.key))


def of_draw(recipe: Recipe, share: float, draw: int) -> Recipe:
    """The recipe whose generator learns from `share` of the training scans; each draw has other groups.

    There is no test split (unless folds ask for one): held-out scans set the limits of curation, so none of them is
    unseen, and the groups left out of training are.
    """
    screen = recipe.screen if recipe.screen.folds is not None else recipe.screen.model_copy(update={"test": 0.0})
    # Nothing is published, so nothing has to pass: neither the gate nor the audit that it may ask for.
    update: dict[str, object] = {"audit": None, "gate": GateParams()}
    update |= {"screen": screen, "training_scans": share, "seed": recipe.seed + 1000 * draw}
    return recipe.model_copy(update=update)


def _labels(recipe: Recipe) -> tuple[str, str]:
    labels = sorted(set(recipe.plan.labels) - {HEALTHY})
    if len(labels) != 2:
        raise ValueError(
            f"recipe {recipe.name} plans the labels {', '.join(labels)}; the experiment tells two apart: give it a "
            "recipe whose plan has exactly two beside healthy scans"
        )
    return labels[0], labels[1]


def _drawn(recipe: Recipe, store: str, labels: tuple[str, str], params: ResNetParams, seeds: int) -> Drawn:
    scans = ingest(store, recipe.source, recipe.screen, recipe.seed).ref
    built = make(recipe, store, [])
    sides = take_sides(store, scans, built.scans, labels).ref
    made = Made(scans=scans, taught=built.scans, sides=sides, shards=built.shards, curated=built.curated, labels=labels)
    what = f"classifiers of seed {recipe.seed}"
    numbers = [recipe.seed + 100 * training for training in range(seeds)]
    with ThreadPoolTaskRunner(max_workers=recipe.runner.workers) as runner:

        def submitted(lesson: Lesson, seed: int) -> PrefectFuture[Done]:
            about = {"store_url": store, "made": made, "lesson": lesson, "params": params, "seed": seed}
            return runner.submit(ask, about)

        asked: dict[Lesson, list[PrefectFuture[Done]]] = {
            lesson: [submitted(lesson, number) for number in numbers] for lesson in LESSONS
        }
        with track(what, len(LESSONS) * seeds, "trainings"):
            answers: dict[Lesson, list[Ref]] = {
                lesson: [_counted(future.result(), what) for future in asked[lesson]] for lesson in asked
            }
    return Drawn(seed=recipe.seed, made=made, answers=answers, copied=find_copied(store, made).ref)


def _counted(done: Done, what: str) -> Ref:
    advance(what, 1)
    return done.ref
