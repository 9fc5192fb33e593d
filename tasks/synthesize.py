"""Synthesize: one shard of planned samples through all stages."""

import threading
import time
from collections import Counter
from contextlib import suppress

import numpy as np
import pyarrow as pa
from prefect import task

from storage import keys
from storage.images import encode_grey, encode_mask, pixels_sha256
from storage.records import LINEAGE_FIELDS, SYNTHETIC_SCHEMA, Record, Ref
from storage.store import Store
from tasks import plan as planning
from tasks import synthesis, track
from tasks.connect import open_store
from tasks.imaging.ellipse import circumference_mm
from tasks.ingest import KeptScan, kept_scans
from tasks.quality import critic as critics
from tasks.reuse import Done, reuse
from tasks.synthesis import Critic, Donor, Draft, StageParams, Tools, posterior
from tasks.synthesis import background as backgrounds
from tasks.synthesis.attributes import HEAD
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import decoder
from tasks.synthesis.draft import Advance
from tasks.synthesis.tissue import outside_picture

ALGORITHM = 5
STEP = "synthesize"
MILLISECONDS = "milliseconds"  # among a shard's counts: how long its stages took

_drawing = threading.Lock()


class Generator(Record):
    """All that decides what is drawn, beside a plan and a seed: weights by reference, stages by value.

    A Ref without rows stands for what the recipe does not train. `healthy` is the adapter of healthy tissue, which
    draws the backgrounds that `background` describes. Labels whose pictures are drawn whole share one adapter.
    """

    base: str
    decoder: Ref
    adapters: dict[str, Ref]
    harmonizer: Ref
    stages: list[StageParams]
    background: backgrounds.Params | None = None
    healthy: Ref | None = None
    critic: Ref | None = None
    controlnet: Ref | None = None

    def described(self) -> dict[str, object]:
        """The part of a step's key that is no digest."""
        return self.model_dump(mode="json", include={"stages", "background"})

    def digests(self) -> list[str]:
        """Of the base and of all weights."""
        others = {
            "decoder": self.decoder,
            "harmonizer": self.harmonizer,
            "healthy": self.healthy,
            "critic": self.critic,
            "controlnet": self.controlnet,
        }
        named = {**others, **{f"adapter {label}": ref for label, ref in sorted(self.adapters.items())}}
        weights = [f"{name}={ref.sha256}" for name, ref in named.items() if ref is not None]
        return [bases.digest(bases.locate(self.base)), *weights]


def tools_of(store: Store, generator: Generator, kept: list[KeptScan], advance: Advance) -> Tools:
    """What the stages work with: the base with its tuned decoder, every adapter, the training lesions."""
    base = bases.load(generator.base)
    if generator.decoder.rows:
        base = decoder.apply(base, store.read(generator.decoder.key))
    adapters = dict(generator.adapters)
    if generator.healthy is not None:
        adapters[backgrounds.HEALTHY] = generator.healthy
    return Tools(
        base=base,
        adapters={label: store.read(ref.key) for label, ref in adapters.items()},
        donors=donors_of(kept),
        critic=critic_of(store, generator.critic),
        harmonizer=store.read(generator.harmonizer.key) if generator.harmonizer.rows else None,
        controlnet=store.read(generator.controlnet.key)
        if generator.controlnet is not None and generator.controlnet.rows
        else None,
        advance=advance,
    )


@task(name="synthesize", task_run_name="synthesize {first}-{last}")
def synthesize_shard(
    store_url: str, scans: Ref, generator: Generator, plan: planning.Plan, seed: int, first: int, last: int
) -> Done:
    """Make samples `first` to `last` of the plan; the Ref is a Parquet shard, a row for each, made or failed."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        kept = kept_scans(store, scans)
        samples = planning.planned(plan, seed, range(first, last))
        stages = len(generator.stages)
        tools = tools_of(store, generator, kept, lambda count: track.advance(STEP, count / stages))
        with one_draws():
            start = time.perf_counter()
            made = apply_stages(drafts_of(kept, samples, generator, tools), generator.stages, tools)
            seconds = time.perf_counter() - start
        rows = [row_of(draft, kept[0].dataset, generator) for draft in made]
        file = keys.step_file(STEP, key, "shard.parquet")
        sha256 = store.put_table(file, pa.Table.from_pylist(rows, schema=SYNTHETIC_SCHEMA))
        counts = Counter("failed" if draft.failure else draft.label for draft in made)
        counts[MILLISECONDS] = round(1000 * seconds)
        return Ref(key=file, sha256=sha256, rows=len(rows), counts=dict(counts))

    params = {**generator.described(), "labels": plan.labels, "seed": seed, "indices": [first, last]}
    done = reuse(store, STEP, ALGORITHM, params, [scans.sha256, *generator.digests()], make)
    if done.reused:
        track.advance(STEP, last - first)
    return done


def drafts_of(kept: list[KeptScan], samples: list[planning.Planned], generator: Generator, tools: Tools) -> list[Draft]:
    """A draft for each planned sample: without a picture where the stages draw all of it, else with its background.

    Raises:
        ValueError: the training split holds no healthy scan to put lesions into.
    """
    if not synthesis.needs_background(generator.stages):
        return [_blank(kept[0], sample) for sample in samples]
    healthy = [scan for scan in kept if scan.label == backgrounds.HEALTHY and scan.split == "train"]
    if not healthy:
        found = dict(Counter(f"{scan.label}/{scan.split}" for scan in kept))
        raise ValueError(
            f"no {backgrounds.HEALTHY} scan in the training split to put lesions into; found {found}. "
            "Add healthy scans, lower screen.val and screen.test, or draw pictures whole (stages segmentation, picture)"
        )
    drafts = [_into(healthy, sample) for sample in samples]
    return drafts if generator.background is None else backgrounds.draw(generator.background, drafts, tools)


def _into(healthy: list[KeptScan], sample: planning.Planned) -> Draft:
    """A draft on a healthy scan, picked by the sample's own seed."""
    scan = healthy[int(np.random.default_rng([sample.seed, 0]).integers(len(healthy)))]
    return Draft(
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
        point=sample.point,
    )


def _blank(like: KeptScan, sample: planning.Planned) -> Draft:
    """A draft of nothing yet: black, as large as the scans, and of no patient."""
    black = np.zeros_like(like.image)
    return Draft(
        id=sample.id,
        seed=sample.seed,
        label=sample.label,
        organ=like.organ,
        background=black,
        background_id=None,
        background_kind=None,
        pixel_mm=None,
        group=f"{like.dataset}/synthetic/{sample.id}",
        image=black,
        point=sample.point,
    )


def donors_of(kept: list[KeptScan]) -> list[Donor]:
    """The lesion masks of the training split, with their scans."""
    return [
        Donor(
            id=scan.id,
            mask=scan.mask,
            label=scan.label,
            group=scan.group,
            pixel_mm=scan.pixel_mm,
            behind=posterior.behind(scan.image, scan.mask, ~outside_picture(scan.image)),
            image=scan.image,
        )
        for scan in kept
        if scan.split == "train" and scan.mask is not None and scan.mask.any()
    ]


def critic_of(store: Store, critic: Ref | None) -> Critic | None:
    """The trained critic as a function; None where the recipe trains none."""
    if critic is None or not critic.rows:
        return None
    judge = critics.load(store.read(critic.key))
    return lambda images, masks, labels: judge.realism(images, masks)


def one_draws() -> threading.Lock:
    """What lets one shard of a process draw at a time, on all cores or the GPU; others read, encode, upload meanwhile.

    A function, because a task is pickled with all it names when it goes to another process, and a lock cannot be.
    """
    return _drawing


def apply_stages(drafts: list[Draft], stages: list[StageParams], tools: Tools) -> list[Draft]:
    """Run `drafts` through `stages` in order."""
    for stage in stages:
        drafts = synthesis.apply(stage, drafts, tools)
    return drafts


def row_of(draft: Draft, dataset: str, generator: Generator) -> dict[str, object]:
    """The row of a finished or failed draft."""
    lineage = {name: draft.lineage.get(name) for name, _ in LINEAGE_FIELDS}
    lineage |= {
        "background_id": draft.background_id,
        "background_kind": draft.background_kind,
        "base_digest": bases.digest(bases.locate(generator.base)),
        "decoder_digest": generator.decoder.sha256 if generator.decoder.rows else None,
        "adapter_digest": generator.adapters[draft.label].sha256,
        "controlnet_digest": generator.controlnet.sha256
        if generator.controlnet is not None and generator.controlnet.rows
        else None,
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
        "background": {"bytes": encode_grey(draft.background), "path": f"{draft.id}.background.png"}
        if made and draft.background_kind == backgrounds.KIND
        else None,
        "label": draft.label,
        "organ": draft.organ,
        "dataset": dataset,
        "group": draft.group,
        "split": "train",  # descends from adapters that saw the training groups only
        "pixel_mm": draft.pixel_mm,
        "head_circumference_mm": _head_circumference_mm(draft) if made else None,
        "sha256": pixels_sha256(draft.image) if made else None,
        **lineage,
        "failure": draft.failure,
    }


def _head_circumference_mm(draft: Draft) -> float | None:
    """Of the final mask, where it is a head's, its pixel size is known, and it has an ellipse at all."""
    if draft.label != HEAD or draft.mask is None or draft.pixel_mm is None:
        return None
    with suppress(ValueError):
        return circumference_mm(draft.mask, draft.pixel_mm)
    return None
