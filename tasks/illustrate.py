"""Illustrate: choose what a report shows of a version, and fetch that much and no more."""

import inspect
import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import manifests
from storage.comparing import flattened
from storage.formats.parquet import read_batches
from storage.images import decode_grey, decode_mask
from storage.records import Manifest, Ref
from storage.store import Store
from tasks import report
from tasks.documents import licences
from tasks.documents.licences import Licensed
from tasks.documents.routes import SYNTHETIC, route
from tasks.quality import HIGHER_IS_BETTER, IMAGE_SCORES, LOWER_IS_BETTER, SET_SCORES, copies
from tasks.quality.gate import GateParams
from tasks.quality.judge import Pictures
from tasks.quality.membership import membership_auc
from tasks.report import Earlier, Original
from tasks.report.grid import Example
from tasks.report.summary import cause, extremes, spread, summarize

if TYPE_CHECKING:
    from tasks.curate import Curation, Selection

Row = dict[str, Any]

_ROWS = 10_000
_SCANS = 64
_CLOSEST = 4  # kept samples of each label beside their nearest training images
_VERSIONS = 20
_OWN_SCANS = "scans of folder"  # as `describe.licensed` calls them
_CHANGES = 8  # of a recipe that are named
_SHOWN = ("image", "mask")


@dataclass(frozen=True)
class Known:
    """What the flow knows of a dataset, as far as its page says it; `sources` are one line each."""

    dataset: str
    description: str
    recipe: Mapping[str, object]
    recipe_yaml: str
    made_from: Sequence[Licensed]
    sources: Sequence[str]
    score_names: Sequence[str]


@dataclass(frozen=True)
class Shown:
    """Rejected rows and real scans that the page shows, with their pictures."""

    refused: list[Row]
    real: list[Example]


def page(
    store: Store, folder: Path, known: Known, curation: "Curation", scans: Ref, shown: Shown, made_by: str
) -> report.Facts:
    """Everything that the page of the version in `folder` says.

    Args:
        store: where scans and earlier versions are.
        folder: holds the tables and shards of the version.
        known: of the dataset.
        curation: how its samples ended.
        scans: of the source.
        shown: rejected rows and real scans to show.
        made_by: folder of the step that makes the version.
    """
    names = known.score_names
    thresholds = {threshold.score: (threshold.min, threshold.max) for threshold in curation.thresholds}
    summary = summarize(thin(folder, "ledger.parquet", ["verdict", "reasons", *names]), names, thresholds)
    kept, why = kept_examples(folder, names), withheld(known.made_from)
    near = [row for row in kept.rows if row["id"] in kept.closest] + copied(shown.refused)
    whole = report.copy_score(names) == report.WHOLE_COPY
    versions, changes = history(store, known.dataset, known.recipe, made_by)
    limits = GateParams.model_validate(known.recipe.get("gate", {})).limits
    return report.Facts(
        title=known.dataset,
        description=known.description,
        planned=curation.planned,
        kept=curation.kept,
        rejected=curation.rejected,
        failed=curation.failed,
        gate=report.Gate(
            verdict=curation.gate,
            problems=curation.problems,
            warnings=curation.warnings,
            advice=curation.advice,
            limits={limit.score: limit.asked.removeprefix(f"{limit.score} ") for limit in limits},
        ),
        scores=curation.scores,
        failures=summary.failures,
        examples=kept.rows,
        spread=kept.spread,
        extremes=kept.extremes,
        refused=shown.refused,
        originals=originals(store, scans, near, shown=not why, whole=whole),
        withheld=why,
        histograms=summary.histograms,
        thresholds=thresholds,
        explained=explanations(),
        higher_is_better=HIGHER_IS_BETTER | (IMAGE_SCORES.keys() - LOWER_IS_BETTER),
        real=shown.real,
        selection=_selection(curation.selection),
        quotas=[
            f"{one.quota.name}: {one.kept} of {one.found} kept, at most {one.quota.keep}" for one in curation.quotas
        ],
        history=versions,
        changes=changes,
        sources=known.sources,
        recipe_yaml=known.recipe_yaml,
        synthetic=SYNTHETIC[route(known.recipe)],
    )


def withheld(made_from: Sequence[Licensed]) -> str:
    """Why a page may not show training images; empty where it may.

    Public datasets are shown on the terms that the version inherits; somebody's own scans only where their licence
    is known to let them be passed on.
    """
    scans = made_from[0]
    terms = licences.find(scans.licence).terms
    if terms.no_redistribution or terms.no_derivatives or (scans.name == _OWN_SCANS and not terms.stated):
        return f"Training images are named, not shown: the licence of the scans ({scans.licence}) does not allow it."
    return ""


def _selection(found: "Selection | None") -> report.Selection | None:
    if found is None:
        return None
    labels = ", ".join(f"{kept} of {count} {label}" for label, (count, kept) in found.labels.items())
    return report.Selection(
        summary=f"Of {found.candidates} samples {found.kept} ({found.acceptance:.0%}) stay by {found.by}: {labels}. "
        f"Against the {found.against} training images that guided the choice it went from {found.before:.3g} to "
        f"{found.after:.3g}.",
        changes=[(change.name, change.before, change.after) for change in found.held_out],
    )


def explanations() -> dict[str, str]:
    """What every score is, by its name: the first paragraph of its function's docstring."""
    judges: dict[str, Callable[..., object]] = {**IMAGE_SCORES, **SET_SCORES, "membership_auc": membership_auc}
    first = {name: (inspect.getdoc(judge) or "").split("\n\n")[0] for name, judge in judges.items()}
    return {name: " ".join(text.replace("`", "").split()) for name, text in first.items()}


class Watched:
    """Rows that pass by; those wanted are kept, pictures and all, in the order wanted."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self._found: dict[str, Row] = {}

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches as they are."""
        for batch in batches:
            for row in _rows_of(batch, self._wanted):
                self._found[row["id"]] = row
            yield batch

    @property
    def rows(self) -> list[Row]:
        """What was found."""
        return [self._found[id] for id in self._wanted]


def thin(folder: Path, name: str, columns: list[str] | None = None) -> Callable[[], Iterator[pa.RecordBatch]]:
    """The rows of "ledger.parquet" or another thin table in a folder, a few thousand in memory at a time."""

    def rows() -> Iterator[pa.RecordBatch]:
        yield from read_batches(folder / name, columns, _ROWS)

    return rows


@dataclass(frozen=True)
class Kept:
    """Kept samples that a report shows, with image and mask: those of `spread`, `extremes` and `closest`."""

    rows: list[Row]
    spread: list[str]
    extremes: dict[str, tuple[list[str], list[str]]]
    closest: list[str]


def kept_examples(folder: Path, score_names: Sequence[str]) -> Kept:
    """The kept samples to show, from the files of a version."""
    chosen = report.pick_kept(thin(folder, "metadata.parquet", ["id", "label", "verdict"]))
    scored = thin(folder, "metadata.parquet", ["id", "label", "verdict", *score_names])
    labels = {label for batch in scored() for label in batch.column("label").unique().to_pylist()}
    each = max(2, report.EXTREMES // max(1, 2 * len(labels) * len(score_names)))
    ends = extremes(scored, score_names, each)
    measured = [name] if (name := report.copy_score(score_names)) else []
    closest = [id for _, highest in extremes(scored, measured, _CLOSEST).values() for id in highest]
    wanted = list(dict.fromkeys([*chosen, *(id for sides in ends.values() for side in sides for id in side), *closest]))
    rows = {row["id"]: row for row in _picked(thin(folder, "metadata.parquet"), wanted)}
    for place in _picked(thin(folder, "index.parquet"), wanted):
        with (folder / place["file"]).open("rb") as file:
            rows[place["id"]] |= {name: _picture(file, place, name) for name in _SHOWN}
    return Kept([rows[id] for id in wanted], chosen, ends, closest)


def copied(refused: Sequence[Row]) -> list[Row]:
    """The rejected samples that are too near to a training image."""
    return [
        row
        for row in refused
        if any(cause([reason]) in (report.WHOLE_COPY, report.LESION_COPY) for reason in row["reasons"])
    ]


def originals(store: Store, scans: Ref, rows: Sequence[Row], *, shown: bool, whole: bool = False) -> list[Original]:
    """The training image nearest to each row's lesion, the nearest first; rows without a lesion are left out.

    Args:
        store: where the scans are.
        scans: of the source.
        rows: samples with their pictures.
        shown: whether the training images come with their pictures.
        whole: compare whole pictures instead of lesions.
    """
    asked = _pictures(rows, whole)
    best: list[tuple[float, Row | None]] = [(-np.inf, None)] * len(rows)
    for batch in store.batches(scans.key, rows=_SCANS) if rows else ():
        train = [row for row in batch.to_pylist() if row["verdict"] == "kept" and row["split"] == "train"]
        if not train:
            continue
        found = copies.nearest(asked, _pictures(train, whole))
        for index, (similarity, row) in enumerate(zip(found.similarity.tolist(), found.row.tolist(), strict=True)):
            if row >= 0 and similarity > best[index][0]:
                best[index] = similarity, train[row]
    pairs = [_original(row, *nearest, shown=shown) for row, nearest in zip(rows, best, strict=True) if nearest[1]]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.id))


def _original(row: Row, similarity: float, scan: Row | None, *, shown: bool) -> Original:
    assert scan is not None
    image, mask, _ = example(scan) if shown else (None, None, "")
    declared = {"background": "background_id", "mask": "mask_id", "grey levels": "levels_id"}
    return Original(
        id=row["id"],
        similarity=similarity,
        scan_id=scan["id"],
        file=scan["file"],
        declared=", ".join(name for name, column in declared.items() if row[column] == scan["id"]),
        image=image,
        mask=mask,
    )


def history(store: Store, dataset: str, recipe: Mapping[str, object], made_by: str) -> tuple[list[Earlier], list[str]]:
    """The last versions of a dataset, oldest first, and what `recipe` changes from the last of them.

    Only those before the version that the step in the folder `made_by` made, where it did, and retracted ones too: so
    the page is the same whenever it is made again.
    """
    found: list[Manifest] = []
    for number in range(manifests.top(store, dataset), 0, -1):
        if len(found) == _VERSIONS:
            break
        try:
            manifest = manifests.read(store, dataset, number)
        except FileNotFoundError:
            continue  # removed by hand
        found = [] if made_by in manifest.inputs else [manifest, *found]
    recipes = [manifest.recipe for manifest in found]
    changes = [[], *(recipe_changes(old, new) for old, new in itertools.pairwise([*recipes, recipe]))]
    earlier = [
        Earlier(manifest.version, manifest.planned, manifest.kept, manifest.scores, changed)
        for manifest, changed in zip(found, changes, strict=False)
    ]
    return earlier, changes[-1]


def recipe_changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What differs between two recipes, such as "lora.steps 100 → 300"; the first few, and how many more.

    >>> recipe_changes({"seed": 1, "plan": {"samples": 8}}, {"seed": 1, "plan": {"samples": 16}})
    ['plan.samples 8 → 16']
    """
    old, new = flattened(before), flattened(after)
    fields = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    shown = [f"{name} {old.get(name, 'nothing')} → {new.get(name, 'nothing')}"[:120] for name in fields[:_CHANGES]]
    return shown + ([f"and {len(fields) - _CHANGES} more"] if len(fields) > _CHANGES else [])


@dataclass(frozen=True)
class RealExamples:
    """Lesion scans of held-out groups, so that no picture beside the synthetic ones was trained on.

    `by_label` are evenly spaced over each label, `first` the first in order of id.
    """

    by_label: list[Example]
    first: list[Example]


def real_examples(store: Store, scans: Ref, count: int) -> RealExamples:
    """Real scans to show; `count` of them are `first`."""
    held_out: list[tuple[str, str]] = []
    for batch in store.batches(scans.key, ["id", "label", "split", "verdict", "mask"], _SCANS):
        for row in batch.to_pylist():
            shown = row["verdict"] == "kept" and row["split"] != "train" and row["mask"] is not None
            if shown and decode_mask(row["mask"]["bytes"]).any():
                held_out.append((row["id"], row["label"]))
    held_out.sort()
    first = [id for id, _ in held_out[:count]]
    by_label = spread(lambda: [(label, id) for id, label in held_out], lambda labels: report.PER_LABEL)
    wanted = {*first, *by_label}
    rows = {row["id"]: row for batch in store.batches(scans.key, rows=_SCANS) for row in _rows_of(batch, wanted)}
    return RealExamples([example(rows[id]) for id in by_label], [example(rows[id]) for id in first])


def example(row: Mapping[str, Any]) -> Example:
    """Image, mask and label of a row with pictures."""
    mask = row["mask"]
    drawn = None if mask is None or mask["bytes"] is None else decode_mask(mask["bytes"])
    return decode_grey(row["image"]["bytes"]), drawn, row["label"]


def _pictures(rows: Sequence[Row], whole: bool) -> Pictures:
    """Rows as the judges take them; a blank mask where there is none, a full one of `whole` pictures."""
    examples = [example(row) for row in rows]
    masks = [np.full(image.shape, whole, np.bool_) if mask is None or whole else mask for image, mask, _ in examples]
    return Pictures(
        images=np.stack([image for image, _, _ in examples]) if rows else np.zeros((0, 8, 8), np.uint8),
        masks=np.stack(masks) if rows else np.zeros((0, 8, 8), np.bool_),
        labels=[row["label"] for row in rows],
        groups=[row["group"] for row in rows],
    )


def _picked(rows: Callable[[], Iterator[pa.RecordBatch]], wanted: Collection[str]) -> Iterator[Row]:
    for batch in rows():
        yield from _rows_of(batch, wanted)


def _rows_of(batch: pa.RecordBatch, wanted: Collection[str]) -> list[Row]:
    """The rows of a batch whose ids are wanted."""
    found: Any = pc.call_function(
        "is_in", [batch.column("id")], pc.SetLookupOptions(value_set=pa.array(list(wanted), pa.string()))
    )
    return batch.filter(found).to_pylist() if found.true_count else []


def _picture(file: io.BufferedReader, place: Row, name: str) -> Row | None:
    if place[f"{name}_at"] is None:
        return None
    file.seek(place[f"{name}_at"])
    return {"bytes": file.read(place[f"{name}_bytes"]), "path": None}
