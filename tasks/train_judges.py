"""Train judges: the networks that score, and the critic that picks candidates; the training split is all they see."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from prefect import task
from pydantic import Field

from storage import keys
from storage.records import Record, Ref
from storage.store import Store
from tasks import plan as planning
from tasks import track
from tasks.connect import open_store
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import classifier, critic, segmenter
from tasks.quality.classifier import Params as ClassifierParams
from tasks.quality.detector import Params as DetectorParams
from tasks.quality.judge import Judge, Pictures
from tasks.quality.segmenter import Params as SegmenterParams
from tasks.reuse import Done, reuse
from tasks.synthesis import Draft
from tasks.synthesize import Generator, apply_stages, drafts_of, tools_of

JUDGE_ALGORITHM = 3
CRITIC_ALGORITHM = 3
CRITIC = "train-critic"

JudgeName = Literal["classifier", "segmenter"]
JUDGES: tuple[JudgeName, ...] = ("classifier", "segmenter")


class CriticParams(Record):
    """The critic and what it learns from."""

    generated: int = Field(
        default=96, ge=10, le=100_000, description="Trial samples it learns to tell from real lesions."
    )
    training: critic.Params = Field(default=critic.Params(), description="How it is trained.")


class JudgesParams(Record):
    """Training of the networks that score; all of them see the training split alone."""

    classifier: ClassifierParams = Field(default=ClassifierParams(), description="Label of an image.")
    segmenter: SegmenterParams = Field(default=SegmenterParams(), description="Lesion mask of an image.")
    detector: DetectorParams = Field(default=DetectorParams(), description="Real or synthetic, out of fold.")
    critic: CriticParams | None = Field(
        default=CriticParams(),
        description="Vision Transformer that picks among candidates; null: the first is taken.",
    )


@task(name="train judge", task_run_name="train {name}")
def train_judge(store_url: str, scans: Ref, name: JudgeName, params: JudgesParams, seed: int) -> Done:
    """Train the classifier or the segmenter on the training split; the Ref is its safetensors file.

    Of scans of one label there is nothing to classify: the Ref of the classifier then has no rows.
    """
    store = open_store(store_url)
    step = f"train-{name}"
    own = params.classifier if name == "classifier" else params.segmenter

    def make(key: str) -> Ref:
        kept = kept_scans(store, scans)
        examples, held_out = pictures_of(kept, "train"), pictures_of(kept, "val")
        if name == "classifier" and len(set(examples.labels)) < 2:
            return Ref(key=keys.step_file(step, key, "none"), sha256=_sha256(b""))
        with track.track(step, own.steps, "steps"):
            moved = partial(track.advance, step)
            if name == "classifier":
                judge = classifier.train(examples, held_out, params.classifier, seed, moved, view="lesion")
            else:
                judge = segmenter.train(examples, held_out, params.segmenter, seed, moved)
        return _stored(store, step, key, judge, len(examples))

    described = {"params": own.model_dump(mode="json"), "seed": seed}
    return reuse(store, step, JUDGE_ALGORITHM, described, [scans.sha256], make)


@task(name="train critic", task_run_name="train critic")
def train_critic(store_url: str, scans: Ref, generator: Generator, seed: int, params: CriticParams | None) -> Done:
    """Train the Vision Transformer that picks candidates: real lesions against generated ones.

    Both come from the training split: the stages run, without a critic, into its healthy scans. The Ref has no
    rows where the recipe trains no critic, or no stage would ask it.
    """
    store = open_store(store_url)
    # Nobody chooses here, so one critic serves every number of candidates.
    stages = [
        stage.model_copy(update={"candidates": 1}) if stage.stage == "lesion" else stage for stage in generator.stages
    ]
    generator = generator.model_copy(update={"stages": stages, "critic": None})

    def make(key: str) -> Ref:
        if params is None:
            return Ref(key=keys.step_file(CRITIC, key, "none"), sha256=_sha256(b""))
        kept = kept_scans(store, scans)
        plan = planning.Plan(samples=params.generated, labels=dict.fromkeys(sorted(generator.adapters), 1.0))
        tools = tools_of(store, generator, kept, lambda count: track.advance(CRITIC, count / len(stages)))
        with track.track(CRITIC, plan.samples):
            # Seeds of their own, so that no candidate of the dataset is one that the critic has seen.
            planned = planning.planned(plan, seed + 1, range(plan.samples))
            made = apply_stages(drafts_of(kept, planned, generator, tools), stages, tools)
        generated = pictures_of_drafts(made)
        lesions = pictures_of(kept, "train").with_labels(generator.adapters)
        held_out = pictures_of(kept, "val").with_labels(generator.adapters)
        # The generated lesions held out: by background, a fifth of them.
        unseen = np.array([int(_sha256(group.encode()), 16) % 5 == 0 for group in generated.groups], np.bool_)
        pair = held_out, generated.select(unseen)
        judge = critic.train(lesions, generated.select(~unseen), pair, params.training, seed)
        return _stored(store, CRITIC, key, judge, len(generated))

    described = {
        "params": None if params is None else params.model_dump(mode="json"),
        **generator.described(),
        "seed": seed,
    }
    return reuse(store, CRITIC, CRITIC_ALGORITHM, described, [scans.sha256, *generator.digests()], make)


def pictures_of(kept: Sequence[KeptScan], *splits: str) -> Pictures:
    """The scans of these splits as the judges take them; blank masks where a scan has none."""
    chosen = [scan for scan in kept if scan.split in splits]
    px = kept[0].image.shape[0] if kept else 0
    blank = np.zeros((px, px), np.bool_)
    return Pictures(
        images=np.stack([scan.image for scan in chosen]) if chosen else np.zeros((0, px, px), np.uint8),
        masks=np.stack([blank if scan.mask is None else scan.mask for scan in chosen])
        if chosen
        else np.zeros((0, px, px), np.bool_),
        labels=[scan.label for scan in chosen],
        groups=[scan.group for scan in chosen],
    )


def pictures_of_drafts(drafts: Sequence[Draft]) -> Pictures:
    """The drafts that were made, as the judges take them.

    Raises:
        ValueError: none was made; with the first reason.
    """
    made = [(draft, draft.mask) for draft in drafts if draft.failure is None and draft.mask is not None]
    if not made:
        raise ValueError(f"none of {len(drafts)} trial samples could be made; the first failed: {drafts[0].failure}")
    return Pictures(
        images=np.stack([draft.image for draft, _ in made]),
        masks=np.stack([mask for _, mask in made]),
        labels=[draft.label for draft, _ in made],
        groups=[draft.group for draft, _ in made],
    )


def report_of(store: Store, judge: Ref) -> dict[str, float]:
    """What a trained judge reached on held-out groups; nothing where none was trained."""
    if not judge.rows:
        return {}
    return json.loads(store.read(f"{judge.key.rsplit('/', 1)[0]}/report.json"))


def _stored(store: Store, step: str, key: str, judge: Judge, rows: int) -> Ref:
    file = keys.step_file(step, key, "weights.safetensors")
    store.put(file, judge.weights)
    store.put(keys.step_file(step, key, "report.json"), json.dumps(judge.report, sort_keys=True).encode())
    return Ref(key=file, sha256=judge.digest, rows=rows)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
