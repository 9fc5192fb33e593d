"""Curate: keep or reject every sample with its reasons, score what is kept, and gate the set."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task
from pydantic import Field

from storage import keys
from storage.records import LEDGER_FIELDS, Outcome, Record, Ref, SetScore
from storage.store import Store
from tasks.connect import open_store
from tasks.detect import WHOLE_SET, with_detection
from tasks.gather import MOST, Scored, score_set
from tasks.quality import LOWER_IS_BETTER, SET_SCORES, gate, quotas, selection, thresholds
from tasks.quality.gate import Decision, GateParams
from tasks.quality.quotas import ATTRIBUTES, Filled, Quotas
from tasks.quality.resampling import bounded_rows
from tasks.quality.selection import SelectParams
from tasks.quality.thresholds import Threshold
from tasks.reuse import Done, reuse

ALGORITHM = 3
STEP = "curate"
_KEPT, _REJECTED, _FAILED = "kept", "rejected", "failed"
_VARIETY = "coverage"


class CurateParams(Record):
    """What stays, and what the set that stays must reach."""

    thresholds: list[Threshold] = Field(default=[])
    quotas: Quotas | None = None
    select: SelectParams | None = None
    gate: GateParams = GateParams()
    set_scores: list[str]
    image_scores: list[str]


class Change(Record):
    """One score of the set before and after samples were left out, against images that the choice never saw."""

    name: str
    before: SetScore
    after: SetScore


class Selection(Record):
    """What a greedy selection did.

    `before` and `after` are the distance `by` to the `against` training images that it was chosen against; `held_out`
    says the same, and coverage, against held-out images. `labels` are how many samples it chose from and how many
    stayed.
    """

    by: str
    candidates: int
    kept: int
    labels: dict[str, tuple[int, int]]
    against: int
    before: float
    after: float
    held_out: list[Change]

    @property
    def acceptance(self) -> float:
        """Share of the candidates that stayed."""
        return self.kept / self.candidates


class Curation(Outcome):
    """What curation decided. `table` has one row a planned sample: id, image scores, verdict, reasons.

    `thresholds` are values: quantiles of real scans are worked out. `problems` says what keeps the set from
    publication.
    """

    table: Ref
    thresholds: list[Threshold]
    problems: list[str]
    quotas: list[Filled] = Field(default=[])
    selection: Selection | None = None


@task(name="curate", task_run_name="curate")
def curate_set(
    store_url: str,
    scores: Sequence[Ref],
    detection: Ref,
    real: Ref,
    params: CurateParams,
    seed: int,
    audits: Sequence[Ref] = (),
) -> Done:
    """Decide on every sample, then on the set; the Ref is a `Curation`.

    `audits` are set scores that others found, about the adapters say, each a JSON of its own. In memory are the scores
    of every planned sample, and the features of a bounded number.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        audited = [SetScore.model_validate_json(store.read(audit.key)) for audit in audits]
        curation = _curation(store, key, Scored(store, scores, real, detection, seed), params, audited)
        data = keys.canonical_json(curation)
        where = keys.step_file(STEP, key, "curation.json")
        store.put(where, data)
        counts = {_KEPT: curation.kept}
        return Ref(key=where, sha256=hashlib.sha256(data).hexdigest(), rows=curation.planned, counts=counts)

    inputs = [real.sha256, detection.sha256, *(ref.sha256 for ref in (*scores, *audits))]
    return reuse(store, STEP, ALGORITHM, {"params": params.model_dump(mode="json"), "seed": seed}, inputs, make)


def _curation(store: Store, key: str, scored: Scored, params: CurateParams, audited: Sequence[SetScore]) -> Curation:
    names = params.image_scores
    tabled = [name for name in names if name != WHOLE_SET]
    samples = with_detection(scored.samples(["group", "failure", *ATTRIBUTES, *tabled]), scored.judged, "synthetic")
    reals = with_detection(scored.reals(["group", "label", "split", *tabled]), scored.judged, "real")
    values = {name: samples[name].to_numpy(np.float32) for name in names}
    attributes = {name: _texts(samples[name]) for name in ATTRIBUTES}
    failed = samples["failure"].notna().to_numpy(np.bool_)

    limits = _resolved(reals, params.thresholds, names)
    thresholds.refuse_unscored(limits, {name: own[~failed] for name, own in values.items()})
    limited = thresholds.judge(values, limits)
    reasons = [[failure] if failure else own for failure, own in zip(_texts(samples["failure"]), limited, strict=True)]
    passed = _empty(reasons)
    if params.quotas is not None:
        best = params.quotas.best
        full = quotas.overfull(params.quotas, attributes, values[best], best in LOWER_IS_BETTER, passed)
        reasons = [[reason] if reason else own for reason, own in zip(full, reasons, strict=True)]
    chosen, known = None, Decision()
    if params.select is not None:
        chosen, known = _select(scored, samples, reals, reasons, params.select)
    kept = _empty(reasons)

    held_out, train = reals[reals["split"] != "train"], reals[reals["split"] == "train"]
    scores = [*score_set(scored, params.set_scores, samples[kept], held_out, train), *audited]
    filled = quotas.filled(params.quotas, attributes, passed, kept) if params.quotas is not None else []
    decision = gate.gate(scores, params.gate, len(samples), int(kept.sum()), filled, known)
    missing = params.gate.min_kept - int(kept.sum())
    relaxed = thresholds.relaxed(values, limits, limited, missing) if missing > 0 else []

    verdicts = np.where(failed, _FAILED, np.where(kept, _KEPT, _REJECTED))
    rejected = Counter(thresholds.cause(reasons[row][0]) for row in np.flatnonzero(verdicts == _REJECTED))
    file, table = keys.step_file(STEP, key, "verdicts.parquet"), _table(samples, names, verdicts, reasons)
    return Curation(
        table=Ref(key=file, sha256=store.put_table(file, table), rows=table.num_rows),
        planned=len(samples),
        kept=int(kept.sum()),
        rejected=dict(sorted(rejected.items())),
        failed=int(failed.sum()),
        scores=scores,
        gate=decision.verdict,
        warnings=decision.warnings,
        advice=[*decision.advice, *relaxed],
        thresholds=limits,
        problems=decision.problems,
        quotas=filled,
        selection=chosen,
    )


def _resolved(reals: pd.DataFrame, asked: list[Threshold], names: Sequence[str]) -> list[Threshold]:
    """The thresholds with quantiles of held-out real scans turned into values."""
    held_out = reals[reals["split"] != "train"]
    values = {name: held_out[name].to_numpy(np.float32) for name in names if name != WHOLE_SET}
    if WHOLE_SET in names:  # the detector's numbers on real images exist for the training split alone
        values[WHOLE_SET] = reals[WHOLE_SET].to_numpy(np.float32)
    return thresholds.resolve(asked, values)


def _select(
    scored: Scored, samples: pd.DataFrame, reals: pd.DataFrame, reasons: list[list[str]], params: SelectParams
) -> tuple[Selection | None, Decision]:
    """Leave samples out of those without reasons, and give them one; what was done, and what is wrong with it.

    Chosen against training images and measured on held-out ones. More than `selection.BLOCK` candidates are chosen
    from block by block, in order of id.
    """
    candidates = np.flatnonzero(_empty(reasons))
    train = reals[reals["split"] == "train"]
    train = train.iloc[bounded_rows(list(train["group"]), MOST, scored.seed)]
    against = scored.features([scored.real], list(train["id"]))
    blocks = np.array_split(candidates, max(1, -(-len(candidates) // selection.BLOCK)))
    try:
        selection.refuse_few(params, len(blocks[-1]), len(against), against.shape[1])
    except ValueError as error:
        return None, Decision(problems=[str(error)])
    label, groups = samples["label"].to_numpy(str), [str(group) for group in train["group"]]
    found: list[selection.Chosen] = []
    for block in blocks:
        features = scored.features(scored.holding(block), list(samples["id"].iloc[block]))
        found.append(selection.select(features, against, label[block].tolist(), groups, params, scored.seed))
    stays = np.concatenate([part.kept for part in found])
    for row in candidates[~stays].tolist():
        reasons[row].append(f"not selected: {params.by} is lower without it")
    sizes = [len(block) for block in blocks]
    chosen = Selection(
        by=params.by,
        candidates=len(candidates),
        kept=int(stays.sum()),
        labels={
            str(name): (int((label[candidates] == name).sum()), int((label[candidates[stays]] == name).sum()))
            for name in np.unique(label[candidates])
        },
        against=len(against),
        before=float(np.average([part.before for part in found], weights=sizes)),
        after=float(np.average([part.after for part in found], weights=sizes)),
        held_out=_changes(scored, samples.iloc[candidates], stays, reals, params),
    )
    return chosen, Decision(warnings=[doubt for change in chosen.held_out for doubt in _doubts(change)])


def _changes(
    scored: Scored, candidates: pd.DataFrame, stays: NDArray[np.bool_], reals: pd.DataFrame, params: SelectParams
) -> list[Change]:
    """The distance and the coverage before and after, against held-out images."""
    held_out = reals[reals["split"] != "train"]
    names = [name for name in (params.by, _VARIETY) if name in SET_SCORES]
    sides = [score_set(scored, names, rows, held_out, held_out) for rows in (candidates, candidates[stays])]
    return [Change(name=a.name, before=a, after=b) for a, b in zip(*sides, strict=True)]


def _doubts(change: Change) -> list[str]:
    """What is wrong with leaving samples out: variety that is lost, a distance that is no lower to unseen images."""
    before, after = change.before, change.after
    if before.value is None or after.value is None:
        return []
    moved = f"{change.name} against held-out images went from {before.value:.3g} to {after.value:.3g} by selection"
    if change.name == _VARIETY:
        lost = before.low is not None and after.high is not None and after.high < before.low
        return [f"{moved}: variety is lost, raise select.least"] if lost else []
    return [f"{moved}: it fits the training images alone"] if after.value >= before.value else []


def _empty(reasons: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    return np.array([not own for own in reasons], np.bool_)


def _texts(column: "pd.Series[str]") -> list[str | None]:
    return [str(value) if there else None for value, there in zip(column, column.notna(), strict=True)]


def _table(
    samples: pd.DataFrame, names: Sequence[str], verdicts: NDArray[np.str_], reasons: Sequence[Sequence[str]]
) -> pa.Table:
    decided: Mapping[str, Sequence[object]] = {"verdict": verdicts.tolist(), "reasons": reasons}
    columns: dict[str, pa.Array] = {"id": pa.array(list(samples["id"]), pa.string())}
    columns |= {name: pa.array(samples[name].to_numpy(np.float32), pa.float32(), from_pandas=True) for name in names}
    columns |= {name: pa.array(decided[name], kind) for name, kind in LEDGER_FIELDS}
    return pa.table(columns)
