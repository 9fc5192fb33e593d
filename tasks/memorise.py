"""Memorise: do samples tell more of the scans that taught their generator than of others?

A classifier learns from the samples alone and is asked about both. Source of the first half of the experiment, on the
generator's own scans: Freiche et al., arXiv 2502.08580, 2025.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task
from scipy.cluster.hierarchy import DisjointSet

from storage import keys
from storage.records import Record, Ref
from storage.store import Store
from tasks.connect import open_store
from tasks.curate import Curation
from tasks.detect import pictures_of_rows
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import copies, gain, resnet
from tasks.quality.arms import few
from tasks.quality.judge import Pictures
from tasks.quality.resampling import wilson
from tasks.quality.resnet import Params as ResNetParams
from tasks.report import memorisation_page
from tasks.report.ablation import Interval
from tasks.report.memorisation import Copies, Draw, Lesson, Memorisation, Row, Share, markdown
from tasks.reuse import Done, reuse
from tasks.screening.duplicates import find_alike
from tasks.train_judges import pictures_of

SIDES_ALGORITHM = ASK_ALGORITHM = COPIES_ALGORITHM = CONCLUDE_ALGORITHM = 1
SIDES, ASK, COPIES, CONCLUDE = "memorise-sides", "memorise-ask", "memorise-copies", "memorisation"
SEEN, UNSEEN, ALIKE = "seen", "unseen", "alike"
"""A scan taught the generator; no part of the build read it; the same, but it is a frame of a sweep that taught."""
SAMPLE = "sample"


class Made(Record):
    """What one draw of the training groups led to: all `scans`, those that `taught`, their `sides`, the samples, and
    the two labels to tell apart."""

    scans: Ref
    taught: Ref
    sides: Ref
    shards: list[Ref]
    curated: Ref
    labels: tuple[str, str]


class Drawn(Record):
    """One draw, what each training of a classifier answered, and its copies."""

    seed: int
    made: Made
    answers: dict[Lesson, list[Ref]]
    copied: Ref


@task(name="take sides", task_run_name="take sides")
def take_sides(store_url: str, scans: Ref, taught: Ref, labels: Sequence[str]) -> Done:
    """Which training lesions taught the generator, and which nothing saw; the Ref is a table: id, group, label, side.

    Groups are merged where frames are of one sweep: `narrow` keeps groups whole, and one sweep may be several.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        everyone = [scan for scan in kept_scans(store, scans) if scan.split == "train"]
        taught_ids = {scan.id for scan in kept_scans(store, taught) if scan.split == "train"}
        groups = _sweeps(everyone)
        of_taught = {group for scan, group in zip(everyone, groups, strict=True) if scan.id in taught_ids}
        rows = [
            {
                "id": scan.id,
                "group": group,
                "label": scan.label,
                "side": SEEN if scan.id in taught_ids else ALIKE if group in of_taught else UNSEEN,
            }
            for scan, group in zip(everyone, groups, strict=True)
            if scan.label in labels
        ]
        if {row["side"] for row in rows} < {SEEN, UNSEEN}:
            raise ValueError(
                f"of {len(everyone)} training scans {len(taught_ids)} taught the generator; there must be lesions "
                f"({', '.join(labels)}) among them and among the others: change the share"
            )
        schema = pa.schema([(name, pa.string()) for name in ("id", "group", "label", "side")])
        return _written(store, SIDES, key, pa.Table.from_pylist(rows, schema), {"taught": len(taught_ids)})

    return reuse(store, SIDES, SIDES_ALGORITHM, {"labels": list(labels)}, [scans.sha256, taught.sha256], make)


@task(name="ask classifier", task_run_name="ask a classifier of {lesson}")
def ask(store_url: str, made: Made, lesson: Lesson, params: ResNetParams, seed: int) -> Done:
    """Train a classifier on what `lesson` names and ask it about both sides; the Ref is a table: id, group, label,
    side, probability (of the label that sorts last). It is blank where not both labels can be learned; its counts are
    the images learned from, by label."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        sides = store.open_table(made.sides.key).to_pandas()
        asked = sides[sides["side"] != ALIKE]
        lessons, learned = _lessons(store, made, lesson, asked, seed)
        counts = {label: list(lessons.labels).count(label) for label in made.labels}
        if not all(counts.values()):
            return _written(store, ASK, key, _answers(asked.iloc[:0], np.zeros(0, np.float32)), counts)
        network = resnet.train(lessons, params, seed)
        # The control's own lessons are no strangers to it.
        asked = asked[(asked["side"] == SEEN) | ~asked["id"].isin(learned)]
        images = _scans(store, made.scans, list(asked["id"])).images
        answers = resnet.probabilities(network, images, params)[:, 1]
        return _written(store, ASK, key, _answers(asked, answers), counts)

    inputs = [made.sides.sha256, made.scans.sha256]
    if lesson in ("kept samples", "all samples"):
        inputs += [shard.sha256 for shard in made.shards]
    if lesson == "kept samples":
        inputs.append(made.curated.sha256)
    described = {"lesson": lesson, "labels": made.labels, "params": params, "seed": seed}
    return reuse(store, ASK, ASK_ALGORITHM, described, inputs, make)


@task(name="find memorised", task_run_name="find memorised")
def find_copied(store_url: str, made: Made) -> Done:
    """Which samples resemble a lesion scan that taught the generator more than unseen scans do; the Ref is a table: id,
    side (sample, unseen), kept, picture and lesion (the similarity each reached), is_copy.

    Limits as of `sonoforge copies`: those its tests found or, where higher, what 95 % of unseen pictures, 99 % of
    unseen lesions stay below.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        sides = store.open_table(made.sides.key).to_pandas()
        strangers = list(sides[sides["side"] == UNSEEN]["id"])
        known = _scans(store, made.scans, list(sides[sides["side"] == SEEN]["id"]))
        ids, kept, samples = _samples(store, made)
        unseen = _scans(store, made.scans, strangers)
        reached = [_likeness(pictures, known) for pictures in (samples, unseen)]
        picture = max(copies.COPY, _quantile(reached[1][0], 0.95))
        lesion = max(copies.LESION_COPY, _quantile(reached[1][1], 0.99))
        columns = [np.concatenate(both) for both in zip(*reached, strict=True)]
        table = pa.table(
            {
                "id": pa.array([*ids, *strangers], pa.string()),
                "side": pa.array([SAMPLE] * len(ids) + [UNSEEN] * len(strangers), pa.string()),
                "kept": pa.array([*kept.tolist(), *[False] * len(strangers)], pa.bool_()),
                "picture": pa.array(columns[0], pa.float32()),
                "lesion": pa.array(columns[1], pa.float32()),
                "is_copy": pa.array((columns[0] >= picture) | (columns[1] >= lesion), pa.bool_()),
            }
        )
        return _written(store, COPIES, key, table, {})

    inputs = [made.sides.sha256, made.scans.sha256, made.curated.sha256, *(shard.sha256 for shard in made.shards)]
    return reuse(store, COPIES, COPIES_ALGORITHM, {"labels": made.labels}, inputs, make)


@task(name="conclude memorisation", task_run_name="conclude memorisation")
def conclude_memorisation(
    store_url: str,
    about: Mapping[str, str],
    share: float,
    draws: Sequence[Drawn],
    params: ResNetParams,
    resamples: int,
    seed: int,
) -> Done:
    """Both AUCs and their gap of every classifier; the Ref is memorisation.json, with .md, .html and answers.parquet
    beside it. `about` is the recipe's name, digest and base."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        answers: dict[Lesson, pd.DataFrame] = {lesson: _trained(store, draws, lesson) for lesson in draws[0].answers}
        labels = draws[0].made.labels
        found = Memorisation(
            recipe=about["recipe"],
            recipe_digest=about["digest"],
            base=about["base"],
            share=share,
            labels=labels,
            network=f"ResNet-18, first stage {params.width} channels, {params.px} px, {params.steps} steps",
            params=params.model_dump(mode="json"),
            draws=[_draw(store, drawn) for drawn in draws],
            copies=_copies(store, draws),
            rows=[
                row_of(lesson, answers[lesson], _learned(draws, lesson), labels[1], resamples, seed)
                for lesson in answers
            ],
        )
        everything = pd.concat([table.assign(lesson=lesson) for lesson, table in answers.items()], ignore_index=True)
        table = pa.Table.from_pandas(everything, preserve_index=False)
        store.put_table(keys.step_file(CONCLUDE, key, "answers.parquet"), table)
        store.put(keys.step_file(CONCLUDE, key, "memorisation.md"), markdown(found).encode())
        store.put(keys.step_file(CONCLUDE, key, "memorisation.html"), memorisation_page.render(found).encode())
        data, where = keys.canonical_json(found), keys.step_file(CONCLUDE, key, "memorisation.json")
        store.put(where, data)
        return Ref(key=where, sha256=hashlib.sha256(data).hexdigest(), rows=len(found.rows))

    described = {"about": dict(about), "share": share, "params": params, "resamples": resamples, "seed": seed,
                 "seeds": [drawn.seed for drawn in draws]}  # fmt: skip
    refs = [ref for drawn in draws for ref in (drawn.made.sides, drawn.made.curated, drawn.copied)]
    refs += [ref for drawn in draws for several in drawn.answers.values() for ref in several]
    return reuse(store, CONCLUDE, CONCLUDE_ALGORITHM, described, [ref.sha256 for ref in refs], make)


def row_of(
    lesson: Lesson, answers: pd.DataFrame, learned: Mapping[str, float], positive: str, resamples: int, seed: int
) -> Row:
    """AUC of `positive` on both sides, and the gap, seen less unseen, among answers (id, group, label, side,
    probability, draw, training) of one and the same training.

    Intervals are over groups and draws or, where there is one draw, its trainings: those of one draw share a generator.
    """
    seen = (answers["side"] == SEEN).to_numpy(np.bool_)
    row = Row(
        lesson=lesson,
        images=dict(learned),
        n_seen=int(answers[seen]["id"].nunique()),
        n_unseen=int(answers[~seen]["id"].nunique()),
        groups_seen=int(answers[seen]["group"].nunique()),
        groups_unseen=int(answers[~seen]["group"].nunique()),
    )
    if not len(answers):
        return row.model_copy(update={"note": "fewer than two labels to learn from"})
    areas = [_area(answers, side, positive) for side in (seen, ~seen)]
    gap = gain.difference(areas[0], areas[1])
    groups, draws = list(answers["group"]), list(answers["draw"].astype(str))
    trainings = list(_training(answers))
    resampled = draws if len(set(draws)) > 1 else trainings

    def interval(statistic: gain.Statistic) -> Interval:
        found = gain.bootstrap(statistic, groups, resamples, np.random.default_rng([seed, 50]), resampled)
        value, low, high = (number if np.isfinite(number) else None for number in found)
        return Interval(value=value, low=low, high=high)

    alone = gain.by_training(gap, trainings)
    found = {"seen": interval(areas[0]), "unseen": interval(areas[1]), "gap": interval(gap)}
    note = "" if np.isfinite(alone).any() else "one label alone on a side"
    return row.model_copy(update={**found, "trainings": len(alone), "above": int((alone > 0).sum()), "note": note})


def _area(answers: pd.DataFrame, side: NDArray[np.bool_], positive: str) -> gain.Statistic:
    """AUC among the rows of one side; NaN where a side has one label alone."""
    rows = answers[side]
    _, model = np.unique(_training(rows), return_inverse=True)
    of_side = gain.area(rows["probability"].to_numpy(np.float64), (rows["label"] == positive).to_numpy(np.bool_), model)
    return lambda weights: of_side(weights[:, side])


def _training(answers: pd.DataFrame) -> NDArray[np.str_]:
    """A name for each training of a classifier, in whatever draw."""
    return (answers["draw"].astype(str) + "-" + answers["training"].astype(str)).to_numpy(np.str_)


def _sweeps(scans: Sequence[KeptScan]) -> list[str]:
    """Group of each scan, groups merged that share frames of one sweep; each named after the first of them."""
    scenes = find_alike([scan.image for scan in scans]).scenes
    sets = DisjointSet(scan.group for scan in scans)
    for scan, scene in zip(scans, scenes, strict=True):
        sets.merge(scan.group, scans[scene].group)
    first: dict[str, str] = {}
    for group in sorted({scan.group for scan in scans}):
        first.setdefault(sets[group], group)
    return [first[sets[scan.group]] for scan in scans]


def _lessons(store: Store, made: Made, lesson: Lesson, sides: pd.DataFrame, seed: int) -> tuple[Pictures, set[str]]:
    """What a classifier learns from, and the ids of it."""
    if lesson in ("kept samples", "all samples"):
        ids, kept, samples = _samples(store, made)
        chosen = kept if lesson == "kept samples" else np.ones(len(ids), np.bool_)
        return samples.select(chosen), {name for name, is_chosen in zip(ids, chosen, strict=True) if is_chosen}
    own, others = sides[sides["side"] == SEEN], sides[sides["side"] == UNSEEN]
    if lesson == "other scans":
        own = others[few(list(others["group"]), list(others["label"]), max(2, len(own)), seed)]
    ids = list(own["id"])
    return _scans(store, made.scans, ids), set(ids)


def _samples(store: Store, made: Made) -> tuple[list[str], NDArray[np.bool_], Pictures]:
    """Id, whether curation kept it, and picture of every sample of the two labels that was made, in order of id."""
    curation = Curation.model_validate_json(store.read(made.curated.key))
    verdicts = store.open_table(curation.table.key, ["id", "verdict"]).to_pylist()
    kept = {row["id"] for row in verdicts if row["verdict"] == "kept"}
    rows = [row for shard in made.shards for row in store.open_table(shard.key).to_pylist()]
    rows = [row for row in rows if row["failure"] is None and row["label"] in made.labels]
    rows.sort(key=lambda row: row["id"])
    ids = [str(row["id"]) for row in rows]
    return ids, np.array([name in kept for name in ids], np.bool_), pictures_of_rows(rows)


def _scans(store: Store, scans: Ref, ids: Sequence[str]) -> Pictures:
    """The training scans of these ids, in their order."""
    by_id = {scan.id: scan for scan in kept_scans(store, scans)}
    return pictures_of([by_id[name] for name in ids], "train")


def _likeness(pictures: Pictures, known: Pictures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of every picture: likeness to the nearest `known` one, whole or in part, and that of its lesion (NaN: none)."""
    index = copies.Index.of(known.images)
    found = [index.search(image) for image in pictures.images]
    whole = np.array([matches[0].similarity if matches else 0.0 for matches in found], np.float32)
    return whole, copies.nearest(pictures, known).similarity


def _quantile(values: NDArray[np.float32], share: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, share)) if len(known) else 0.0


def _trained(store: Store, draws: Sequence[Drawn], lesson: Lesson) -> pd.DataFrame:
    """All answers of the classifiers of one lesson, with the number of the draw and of the training in it."""
    tables = [
        store.open_table(ref.key).to_pandas().assign(draw=number, training=training)
        for number, drawn in enumerate(draws)
        for training, ref in enumerate(drawn.answers[lesson])
    ]
    return pd.concat(tables, ignore_index=True)


def _learned(draws: Sequence[Drawn], lesson: Lesson) -> dict[str, float]:
    """Images learned from by label, on average over trainings."""
    counts = [ref.counts for drawn in draws for ref in drawn.answers[lesson]]
    return {label: round(float(np.mean([count[label] for count in counts])), 1) for label in draws[0].made.labels}


def _draw(store: Store, drawn: Drawn) -> Draw:
    curation = Curation.model_validate_json(store.read(drawn.made.curated.key))
    sides = store.open_table(drawn.made.sides.key).to_pandas()["side"]
    return Draw(
        seed=drawn.seed,
        taught=drawn.made.sides.counts["taught"],
        alike=int((sides == ALIKE).sum()),
        planned=curation.planned,
        kept=curation.kept,
    )


def _copies(store: Store, draws: Sequence[Drawn]) -> Copies:
    """Of all draws together."""
    judged = pd.concat([store.open_table(drawn.copied.key).to_pandas() for drawn in draws])
    samples = judged[judged["side"] == SAMPLE]
    parts = samples, samples[samples["kept"]], judged[judged["side"] == UNSEEN]
    samples, kept, unseen = (_share(int(part["is_copy"].sum()), len(part)) for part in parts)
    return Copies(samples=samples, kept=kept, unseen=unseen)


def _share(found: int, of: int) -> Share:
    low, high = wilson(found, of)
    return Share(found=found, of=of, low=low, high=high)


def _answers(asked: pd.DataFrame, probability: NDArray[np.float32]) -> pa.Table:
    columns = {name: pa.array(list(asked[name]), pa.string()) for name in ("id", "group", "label", "side")}
    return pa.table({**columns, "probability": pa.array(probability, pa.float32())})


def _written(store: Store, step: str, key: str, table: pa.Table, counts: dict[str, int]) -> Ref:
    file = keys.step_file(step, key, "table.parquet")
    return Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows, counts=counts)
