"""Score: numbers for every image, by judges that saw the training split alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.images import decode_grey
from storage.records import Record, Ref
from storage.store import Store
from tasks import track
from tasks.connect import open_store
from tasks.detect import WHOLE_SET, pictures_of_rows
from tasks.imaging import Grey
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import IMAGE_SCORES, Evidence, classifier, detector, extractors
from tasks.quality.extractors import Extractor, ExtractorParams
from tasks.quality.judge import Pictures
from tasks.quality.quotas import ATTRIBUTES
from tasks.reuse import Done, reuse
from tasks.train_judges import pictures_of

ALGORITHM = 3
STEP, REAL = "score", "describe-real"
FEATURES, ANSWERS = "features", "answers"
_IDENTITY = b"sonoforge"  # under which a table's schema keeps its `Origins`


class Origins(Record):
    """What made the columns of a score table: identities of extractors and of the classifier, with its labels in the
    order of `answers`; without a classifier there are no labels and no such column. `spaces` are the extractors of
    further columns."""

    features: str
    spaces: dict[str, str]
    classifier: str
    labels: list[str]


@task(name="score", task_run_name="score")
def score_shard(
    store_url: str,
    shard: Ref,
    scans: Ref,
    judges: Mapping[str, Ref],
    extractor: ExtractorParams,
    names: Sequence[str],
    seed: int,
) -> Done:
    """Score one shard of synthetic samples.

    `judges` are the classifier, the segmenter and the critic; a Ref without rows stands for one that was not trained.
    The Ref is a table: id, label, group, split, failure, attributes that quotas may ask for, what the extractors see,
    the classifier's answers, scores.
    """
    store = open_store(store_url)
    seen_by = _extractors(extractor)

    def make(key: str) -> Ref:
        rows = store.open_table(shard.key).to_pylist()
        kept = kept_scans(store, scans)
        made = [row for row in rows if row["failure"] is None]
        scored = pictures_of_rows(made)
        evidence = _evidence(store, scored, pictures_of(kept, "train"), judges, seed, _backgrounds(made, kept))
        described = _table(made, seen_by, evidence, judges, names)
        failed = [{name: row[name] for name in ("id", "label", "group", "failure")} for row in rows if row["failure"]]
        table = pa.concat_tables([described, pa.Table.from_pylist(failed, schema=described.schema)])
        track.advance(STEP, len(rows))
        return _written(store, STEP, key, "scores.parquet", table.sort_by("id"))

    inputs = [shard.sha256, scans.sha256, *_digests(seen_by), *(judges[name].sha256 for name in sorted(judges))]
    done = reuse(store, STEP, ALGORITHM, {"names": list(names), "seed": seed}, inputs, make)
    if done.reused:
        track.advance(STEP, shard.rows)
    return done


@task(name="describe real scans", task_run_name="describe real scans")
def describe_real(
    store_url: str,
    scans: Ref,
    judges: Mapping[str, Ref],
    extractor: ExtractorParams,
    labels: Sequence[str],
    names: Sequence[str],
    seed: int,
) -> Done:
    """Score the real scans of `labels` in the same way, for floors and quantiles; the Ref is a like table."""
    store = open_store(store_url)
    seen_by = _extractors(extractor)

    def make(key: str) -> Ref:
        kept = [scan for scan in kept_scans(store, scans) if scan.label in labels]
        pictures = pictures_of(kept, "train", "val", "test")
        rows = [{"id": s.id, "label": s.label, "group": s.group, "split": s.split, "failure": None} for s in kept]
        evidence = _evidence(store, pictures, pictures_of(kept, "train"), judges, seed)
        return _written(store, REAL, key, "real.parquet", _table(rows, seen_by, evidence, judges, names))

    inputs = [scans.sha256, *_digests(seen_by), *(judges[name].sha256 for name in sorted(judges))]
    params = {"labels": list(labels), "names": list(names), "seed": seed}
    return reuse(store, REAL, ALGORITHM, params, inputs, make)


def with_origins(table: pa.Table, made_by: Origins) -> pa.Table:
    """A score table that says what made its columns."""
    return table.replace_schema_metadata({_IDENTITY: made_by.model_dump_json()})


def origins(table: pa.Table) -> Origins:
    """What made the columns of a score table."""
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return Origins.model_validate_json(metadata[_IDENTITY])


def _extractors(params: ExtractorParams) -> dict[str, Extractor]:
    """By column: the recipe's own, then the further ones."""
    further = {name: make() for name, make in extractors.SPACES.items()}
    return {FEATURES: extractors.load(params), **further}


def _digests(seen_by: Mapping[str, Extractor]) -> list[str]:
    return [f"{name}={extractor.digest}" for name, extractor in seen_by.items()]


def _evidence(
    store: Store,
    scored: Pictures,
    train: Pictures,
    judges: Mapping[str, Ref],
    seed: int,
    backgrounds: Grey | None = None,
) -> Evidence:
    critic = judges.get("critic")
    return Evidence(
        scored=scored,
        train=train,
        classifier=store.read(judges["classifier"].key) if judges["classifier"].rows else None,
        segmenter=store.read(judges["segmenter"].key),
        detector=detector.Params(),  # never trained here: WHOLE_SET is scored by `detect_synthetic`
        seed=seed,
        critic=store.read(critic.key) if critic is not None and critic.rows else None,
        backgrounds=backgrounds,
    )


def _backgrounds(made: Sequence[Mapping[str, object]], kept: Sequence[KeptScan]) -> Grey | None:
    """What each lesion was drawn into: the sample's own background where it is synthetic, else the scan.

    None where pictures were drawn whole, into nothing.
    """
    if any(row["background_id"] is None for row in made):
        return None
    scans = {scan.id: scan.image for scan in kept}
    found: list[Grey] = []
    for row in made:
        own = row["background"]
        if isinstance(own, dict) and own["bytes"] is not None:
            found.append(decode_grey(own["bytes"]))
        else:
            found.append(scans[str(row["background_id"])])
    return np.stack(found) if found else None


def _table(
    rows: Sequence[Mapping[str, object]],
    seen_by: Mapping[str, Extractor],
    evidence: Evidence,
    judges: Mapping[str, Ref],
    names: Sequence[str],
) -> pa.Table:
    """The rows of the scored pictures, in their order."""
    judge = None if evidence.classifier is None else classifier.load(evidence.classifier)
    scored = evidence.scored
    texts = ("id", "label", "group", "split", "failure", *(name for name in ATTRIBUTES if name != "label"))
    columns: dict[str, pa.Array] = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in texts}
    for name, extractor in seen_by.items():
        columns[name] = _vectors(extractor.features(scored.images, scored.masks))
    if judge is not None:
        columns[ANSWERS] = _vectors(judge.probabilities(scored.images, scored.masks).astype(np.float64))
    scores = {name: IMAGE_SCORES[name](evidence) for name in names if name != WHOLE_SET}
    columns |= {name: pa.array(values, pa.float32()) for name, values in scores.items()}
    made_by = Origins(
        features=seen_by[FEATURES].identity,
        spaces={name: extractor.identity for name, extractor in seen_by.items() if name != FEATURES},
        classifier="none" if judge is None else f"classifier@{judges['classifier'].sha256[:12]}",
        labels=[] if judge is None else list(judge.labels),
    )
    return with_origins(pa.table(columns), made_by)


def _vectors(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(list(values), pa.list_(pa.float64()))


def _written(store: Store, step: str, key: str, name: str, table: pa.Table) -> Ref:
    file = keys.step_file(step, key, name)
    return Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows)
