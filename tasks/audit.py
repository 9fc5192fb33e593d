"""Audit: do the adapters give away which scans they were trained on?"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from prefect import task
from pydantic import Field

from storage import keys
from storage.records import Record, Ref, SetScore
from storage.store import Store
from tasks import track
from tasks.connect import open_store
from tasks.ingest import KeptScan, kept_scans
from tasks.quality.membership import Side, membership_auc
from tasks.reuse import Done, reuse
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import lora, membership

ALGORITHM = 1
STEP = "audit"


class AuditParams(Record):
    """How the adapters are attacked. The defaults take half a minute a label with the embedded base on one core."""

    scans: int = Field(
        default=64, ge=8, le=100_000, description="Scans a label that are asked about, learned ones and others each"
    )
    levels: int = Field(default=4, ge=1, le=1000, description="Noise levels at which a scan is denoised")


@task(name="audit membership")
def audit_membership(
    store_url: str, scans: Ref, base: str, adapters: Mapping[str, Ref], params: AuditParams, seed: int
) -> Done:
    """Attack every adapter with its training scans against those of the held-out splits; read it with `audited`."""
    store = open_store(store_url)

    def make(key: str) -> Ref:
        chosen = {label: _chosen(kept_scans(store, scans), label, params.scans, seed) for label in sorted(adapters)}
        total = sum(len(side) for sides in chosen.values() for side in sides)
        sides: list[list[tuple[float, KeptScan]]] = [[], []]
        with track.track(STEP, total):
            for label, parts in chosen.items():
                adapter, model = store.read(adapters[label].key), bases.load(base)
                for side, part in zip(sides, parts, strict=True):
                    examples = [lora.Example(image=scan.image, mask=scan.mask, label=label) for scan in part]
                    organ = part[0].organ if part else ""
                    moved = partial(track.advance, STEP)
                    gains = membership.gains(model, adapter, examples, organ, params.levels, seed, moved)
                    side += zip(gains.tolist(), part, strict=True)
        score = membership_auc(_side(sides[0]), _side(sides[1]), seed)
        file = keys.step_file(STEP, key, "membership.json")
        data = score.model_dump_json().encode()
        store.put(file, data)
        return Ref(key=file, sha256=hashlib.sha256(data).hexdigest(), rows=total)

    described = {"params": params.model_dump(mode="json"), "seed": seed, "labels": sorted(adapters)}
    inputs = [scans.sha256, bases.digest(bases.locate(base)), *(adapters[label].sha256 for label in sorted(adapters))]
    return reuse(store, STEP, ALGORITHM, described, inputs, make)


def audited(store: Store, audit: Ref) -> SetScore:
    """What an audit found."""
    return SetScore.model_validate_json(store.read(audit.key))


def _chosen(kept: Sequence[KeptScan], label: str, count: int, seed: int) -> tuple[list[KeptScan], list[KeptScan]]:
    """Up to `count` lesions of a label that its adapter learned, and as many of the splits it did not learn."""
    lesions = [scan for scan in kept if scan.label == label and scan.mask is not None and scan.mask.any()]
    rng = np.random.default_rng([seed, 15])
    sides: list[list[KeptScan]] = []
    for learned in (True, False):
        side = [scan for scan in lesions if (scan.split == "train") == learned]
        rows = np.sort(rng.permutation(len(side))[:count])
        sides.append([side[row] for row in rows])
    return sides[0], sides[1]


def _side(found: Sequence[tuple[float, KeptScan]]) -> Side:
    gains = np.array([gain for gain, _ in found], np.float32)
    return Side(gains, [scan.group for _, scan in found], [scan.label for _, scan in found])
