"""Synthesize: one shard of planned samples through all stages."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from prefect import task

from storage import keys
from storage.images import encode_grey, encode_mask, pixels_sha256
from storage.records import LINEAGE_FIELDS, SYNTHETIC_SCHEMA, Ref
from storage.store import Store
from tasks import plan as planning
from tasks import synthesis, track
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import critic as critics
from tasks.reuse import Done, reuse
from tasks.synthesis import Critic, Donor, Draft, StageParams, Tools
from tasks.synthesis.diffusion import base as bases

ALGORITHM = 2
BACKGROUND_LABEL = "normal"
STEP = "synthesize"


@task(name="synthesize", task_run_name="synthesize {first}-{last}")
def synthesize_shard(
    store_url: str,
    scans: Ref,
    base: str,
    adapters: Mapping[str, Ref],
    critic: Ref,
    stages: list[StageParams],
    plan: planning.Plan,
    seed: int,
    first: int,
    last: int,
) -> Done:
    """Make samples `first` to `last` of the plan; the Ref is a Parquet shard, a row for each, made or failed."""
    store = Store(store_url)
    digest = bases.digest(bases.locate(base))

    def make(key: str) -> Ref:
        kept = kept_scans(store, scans)
        samples = planning.planned(plan, seed, range(first, last))
        made = apply_stages(
            drafts_of(kept, samples),
            stages,
            Tools(
                base=bases.load(base),
                adapters={label: store.read(ref.key) for label, ref in adapters.items()},
                donors=donors_of(kept),
                critic=critic_of(store, critic),
                advance=lambda count: track.advance(STEP, count / len(stages)),
            ),
        )
        rows = [row_of(draft, kept[0].dataset, digest, adapters[draft.label].sha256) for draft in made]
        file = keys.step_file(STEP, key, "shard.parquet")
        sha256 = store.put_table(file, pa.Table.from_pylist(rows, schema=SYNTHETIC_SCHEMA))
        counts = Counter("failed" if draft.failure else draft.label for draft in made)
        return Ref(key=file, sha256=sha256, rows=len(rows), counts=dict(counts))

    params: dict[str, object] = {
        "stages": [stage.model_dump(mode="json") for stage in stages],
        "labels": plan.labels,
        "seed": seed,
        "indices": [first, last],
    }
    inputs = [
        scans.sha256,
        digest,
        critic.sha256,
        *(f"{label}={adapters[label].sha256}" for label in sorted(adapters)),
    ]
    done = reuse(store, STEP, ALGORITHM, params, inputs, make)
    if done.reused:
        track.advance(STEP, last - first)
    return done


def drafts_of(kept: list[KeptScan], samples: list[planning.Planned]) -> list[Draft]:
    """A draft for each planned sample: a healthy scan of the training split, drawn by the sample's own seed.

    Raises:
        ValueError: the training split holds no healthy scan.
    """
    healthy = [scan for scan in kept if scan.label == BACKGROUND_LABEL and scan.split == "train"]
    if not healthy:
        found = dict(Counter(f"{scan.label}/{scan.split}" for scan in kept))
        raise ValueError(
            f"no {BACKGROUND_LABEL} scan in the training split to put lesions into; found {found}. "
            "Add healthy scans, or lower screen.val and screen.test"
        )
    drafts: list[Draft] = []
    for sample in samples:
        scan = healthy[int(np.random.default_rng([sample.seed, 0]).integers(len(healthy)))]
        drafts.append(
            Draft(
                id=sample.id,
                seed=sample.seed,
                label=sample.label,
                organ=scan.organ,
                background=scan.image,
                background_id=scan.id,
                background_kind="simulated" if scan.dataset == "phantom" else "real",
                pixel_mm=scan.pixel_mm,
                group=scan.group,
                image=scan.image,
            )
        )
    return drafts


def donors_of(kept: list[KeptScan]) -> list[Donor]:
    """The lesion masks of the training split."""
    return [
        Donor(id=scan.id, mask=scan.mask, label=scan.label, group=scan.group, pixel_mm=scan.pixel_mm)
        for scan in kept
        if scan.split == "train" and scan.mask is not None and scan.mask.any()
    ]


def critic_of(store: Store, critic: Ref) -> Critic | None:
    """The trained critic as a function; None where the recipe trains none."""
    if not critic.rows:
        return None
    judge = critics.load(store.read(critic.key))
    return lambda images, masks, labels: judge.realism(images, masks)


def apply_stages(drafts: list[Draft], stages: list[StageParams], tools: Tools) -> list[Draft]:
    """Run `drafts` through `stages` in order."""
    for stage in stages:
        drafts = synthesis.apply(stage, drafts, tools)
    return drafts


def row_of(draft: Draft, dataset: str, base_digest: str, adapter_digest: str) -> dict[str, object]:
    """The row of a finished or failed draft."""
    lineage = {name: draft.lineage.get(name) for name, _ in LINEAGE_FIELDS}
    lineage |= {
        "background_id": draft.background_id,
        "background_kind": draft.background_kind,
        "base_digest": base_digest,
        "adapter_digest": adapter_digest,
        "seed": draft.seed,
    }
    made = draft.failure is None
    return {
        "id": draft.id,
        "image": {"bytes": encode_grey(draft.image), "path": f"{draft.id}.png"} if made else None,
        "mask": {"bytes": encode_mask(draft.mask), "path": f"{draft.id}.mask.png"}
        if made and draft.mask is not None
        else None,
        "region": {"bytes": encode_mask(draft.region), "path": f"{draft.id}.region.png"}
        if made and draft.region is not None
        else None,
        "label": draft.label,
        "organ": draft.organ,
        "dataset": dataset,
        "group": draft.group,
        "split": "train",  # descends from adapters that saw the training groups only
        "pixel_mm": draft.pixel_mm,
        "sha256": pixels_sha256(draft.image) if made else None,
        **lineage,
        "failure": draft.failure,
    }
