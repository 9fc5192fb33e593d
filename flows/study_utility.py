"""Does the data help? The DAG of the utility study: order, nothing else. Every step's work is in `tasks/`."""

from collections import Counter
from typing import Annotated, Any

from prefect import Task, flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import pins, temporary
from flows.build_dataset import Made, facts_of, folders_of, make, relied_on
from flows.recipe import Recipe
from storage.records import Record, Ref
from tasks.check_split import LOOKED_AT, check_split
from tasks.conclude import Answered, Answers, conclude
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.documents import licences
from tasks.export import export
from tasks.ingest import ingest, kept_scans
from tasks.quality import sam
from tasks.quality.judge import HEALTHY
from tasks.quality.measures import CLASSIFICATION
from tasks.report.study import FoldFacts, Study
from tasks.reuse import Done
from tasks.screening.screen import ScreenParams
from tasks.study import Fold, classify, segment, segment_by_sam
from tasks.synthesis import needs_background
from tasks.tell_apart import NEGATIVE_CONTROL, POSITIVE_CONTROL, detect, find_copies
from tasks.track import advance, track
from tasks.train_judges import report_of


class StudyResult(Record):
    """A finished study and where it lies: `uri` is study.json; study.html, study.md and answers.parquet are beside
    it."""

    study: Study
    key: str
    uri: str


@flow(name="study-utility", flow_run_name="{recipe.name}")
def study_utility(
    recipe: Annotated[Recipe, Field(description="The dataset to study.")],
    store: Annotated[str, Field(description="Folder or fsspec URL of the datasets and of what was finished.")],
    folds: Annotated[int, Field(ge=2, le=100, description="Folds by group; each is held out once.")] = 5,
    seeds: Annotated[int, Field(ge=1, le=100, description="Trainings of every downstream network.")] = 1,
) -> StudyResult:
    """Build the dataset of every fold and ask downstream networks about the fold's test groups.

    Everything finished is reused, so a killed study goes on. A fold whose set misses its gate is not published, and
    studied all the same.
    """
    temporary.tie()
    pins.check(recipe, studied=True)
    opened = open_store(store)
    opened.probe()
    licences.combine(facts_of(recipe).made_from)  # a conflict is told before hours of work
    with relied_on(opened, f"study {recipe.name}"):
        external = _external(recipe, store)
        answers = [_answer(of_fold(recipe, folds, fold), fold, store, seeds, external) for fold in range(folds)]
        concluded = conclude(store, recipe.name, recipe.digest(), answers, recipe.study, recipe.seed)
    study = Study.model_validate_json(opened.read(concluded.ref.key))
    return StudyResult(study=study, key=concluded.ref.key, uri=opened.uri(concluded.ref.key))


def of_fold(recipe: Recipe, folds: int, fold: int) -> Recipe:
    """The recipe that holds out one fold, as a dataset of its own."""
    screen = recipe.screen.model_copy(update={"folds": folds, "fold": fold})
    return recipe.model_copy(update={"name": f"{recipe.name}-fold{fold}", "screen": screen})


def _external(recipe: Recipe, store: str) -> Ref | None:
    """The scans of the other dataset that everybody is tested on; marked ones too, because nothing learns from them."""
    other = recipe.study.external
    if other is None:
        return None
    return ingest(store, other, ScreenParams(px=recipe.screen.px, keep_marked=True), recipe.seed).ref


def _answer(recipe: Recipe, number: int, store: str, seeds: int, external: Ref | None) -> Answers:
    done: list[Done] = []
    made = make(recipe, store, done)
    fold = Fold(scans=made.scans, shards=made.shards, curated=made.curated, external=external)
    facts = _facts(recipe, number, store, made, done, check_split(store, fold, recipe.source).ref)
    params = recipe.study
    labels = set(recipe.plan.labels) - {HEALTHY}
    looked = {view: params.detector.model_copy(update={"view": view}) for view in params.views}
    if params.controls:
        unaided = params.detector.seeing(whole=not needs_background(recipe.stages))
        looked |= {POSITIVE_CONTROL: unaided, NEGATIVE_CONTROL: unaided}
    detected = {what: detect(store, fold, what, own, recipe.seed).ref for what, own in looked.items()}
    trials = params.trials(recipe.seed, seeds)
    with ThreadPoolTaskRunner(max_workers=recipe.runner.workers) as runner:

        def ask(task: Task[Any, Done], one: Record | None, of: list[dict[str, object]]) -> list[Ref]:
            if one is None:
                return []
            asked = [runner.submit(task, {"store_url": store, "fold": fold, "params": one, **about}) for about in of]
            what = f"{task.name}, fold {number}"
            with track(what, len(asked), "trainings"):
                return [_counted(future.result(), what) for future in asked]

        about: list[dict[str, object]] = [{"trial": trial} for trial in trials]
        drawn = ask(segment, params.unet, about)
        prompted = [{**one, "drawn": ref} for one, ref in zip(about, drawn, strict=True)]
        found = {
            "segmentation": drawn,
            CLASSIFICATION: ask(classify, params.classifier if len(labels) > 1 else None, about),
        }
        if params.sam is not None:
            found[sam.title(params.sam)] = ask(segment_by_sam, params.sam, prompted)
    answered = {
        task: [Answered(trial=trial, ref=ref) for trial, ref in zip(trials, refs, strict=True)]
        for task, refs in found.items()
        if refs
    }
    return Answers(
        made=fold,
        real=made.real,
        scores=made.scores,
        answered=answered,
        detected=detected,
        copied=find_copies(store, fold).ref,
        facts=facts,
    )


def _counted(done: Done, what: str) -> Ref:
    advance(what, 1)
    return done.ref


def _facts(recipe: Recipe, fold: int, store: str, made: Made, done: list[Done], leaks: Ref) -> FoldFacts:
    """What became of the fold's dataset, which is published where it passes its gate."""
    opened = open_store(store)
    curation = Curation.model_validate_json(opened.read(made.curated.key))
    splits = Counter(scan.split for scan in kept_scans(opened, made.scans))
    version = None
    if curation.kept and not curation.problems:
        published = export(
            store, facts_of(recipe), made.scans, made.shards, made.curated, made.weights, folders_of(done)
        )
        version = f"{recipe.name}@{published.summary.version}"
    return FoldFacts(
        fold=fold,
        dataset=recipe.name,
        planned=curation.planned,
        kept=curation.kept,
        rejected=curation.rejected,
        failed=curation.failed,
        problems=curation.problems,
        published=version,
        critic=report_of(opened, made.critic),
        learned_from=splits["train"],
        tested=splits["test"],
        looked_at=leaks.counts[LOOKED_AT],
        leaks={kind: count for kind, count in leaks.counts.items() if kind != LOOKED_AT},
    )
