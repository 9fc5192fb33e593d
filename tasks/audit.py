"""Audit: do the adapters give away which scans they were trained on?"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
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
from tasks.synthesis import Learned
from tasks.synthesis.attributes import Attribute
from tasks.synthesis.background import HEALTHY
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import membership
from tasks.synthesis.diffusion.lora import Example
from tasks.train import picture_examples

ALGORITHM = 2
STEP = "audit"


class AuditParams(Record):
    """How the adapters are attacked. The defaults take half a minute a label with the embedded base on one core."""

    scans: int = Field(
        default=64, ge=8, le=100_000, description="Scans a label that are asked about, learned ones and others each"
    )
    levels: int = Field(default=4, ge=1, le=1000, description="Noise levels at which a scan is denoised")


@task(name="audit membership", task_run_name="audit membership")
def audit_membership(
    store_url: str,
    scans: Ref,
    base: str,
    adapters: Mapping[str, Ref],
    params: AuditParams,
    seed: int,
    learned: Learned = "lesion",
    words: Sequence[Attribute] = (),
    controlnet: Ref | None = None,
) -> Done:
    """Attack every adapter with its training scans against those of the held-out splits; read it with `audited`.

    It is shown exactly what it has `learned`, by the prompts that it learned it with: `words` are what these say of a
    mask. A `controlnet` is attacked with it; a Ref without rows is none.
    """
    store = open_store(store_url)

    def make(key: str) -> Ref:
        held = store.read(controlnet.key) if controlnet is not None and controlnet.rows else None
        shown = partial(_asked, kept_scans(store, scans), learned=learned, words=words, controlled=held is not None)
        chosen = {label: _chosen(shown, label, params.scans, seed) for label in sorted(adapters)}
        total = sum(len(side) for sides in chosen.values() for side in sides)
        sides: list[list[tuple[float, KeptScan]]] = [[], []]
        with track.track(STEP, total):
            for label, parts in chosen.items():
                adapter, model = store.read(adapters[label].key), bases.load(base)
                for side, part in zip(sides, parts, strict=True):
                    examples, organ = [example for _, example in part], part[0][0].organ if part else ""
                    moved = partial(track.advance, STEP)
                    gains = membership.gains(model, adapter, examples, organ, params.levels, seed, moved, held)
                    side += zip(gains.tolist(), [scan for scan, _ in part], strict=True)
        score = membership_auc(_side(sides[0]), _side(sides[1]), seed)
        file = keys.step_file(STEP, key, "membership.json")
        data = score.model_dump_json().encode()
        store.put(file, data)
        return Ref(key=file, sha256=hashlib.sha256(data).hexdigest(), rows=total)

    described = {
        "params": params.model_dump(mode="json"),
        "seed": seed,
        "labels": sorted(adapters),
        "learned": learned,
        "words": list(words),
    }
    weights = [adapters[label].sha256 for label in sorted(adapters)]
    weights += [controlnet.sha256] if controlnet is not None and controlnet.rows else []
    inputs = [scans.sha256, bases.digest(bases.locate(base)), *weights]
    return reuse(store, STEP, ALGORITHM, described, inputs, make)


def audited(store: Store, audit: Ref) -> SetScore:
    """What an audit found."""
    return SetScore.model_validate_json(store.read(audit.key))


Asked = tuple[KeptScan, Example]
"""A scan, and what of it an adapter that learned it was shown."""


def _chosen(
    shown: Callable[[str, str], list[Asked]], label: str, count: int, seed: int
) -> tuple[list[Asked], list[Asked]]:
    """Up to `count` scans of a label that its adapter learned, and as many of the splits it did not learn."""
    rng = np.random.default_rng([seed, 15])
    sides: list[list[Asked]] = []
    for splits in (["train"], ["val", "test"]):
        side = [asked for split in splits for asked in shown(split, label)]
        rows = np.sort(rng.permutation(len(side))[:count])
        sides.append([side[row] for row in rows])
    return sides[0], sides[1]


def _asked(
    kept: Sequence[KeptScan],
    split: str,
    label: str,
    *,
    learned: Learned,
    words: Sequence[Attribute],
    controlled: bool,
) -> list[Asked]:
    """The scans of a split and label that an adapter of this kind learns from, as it is shown them."""
    if learned != "picture" or (controlled and label != HEALTHY):
        kept = [scan for scan in kept if scan.mask is not None and scan.mask.any()]
    own = [scan for scan in kept if scan.split == split and scan.label == label]
    if learned == "lesion":
        return [(scan, Example(image=scan.image, mask=scan.mask, label=label)) for scan in own]
    joint = learned == "pair"
    return list(
        zip(own, picture_examples(kept, split, [label], words, joint=joint, controlled=controlled), strict=True)
    )


def _side(found: Sequence[tuple[float, KeptScan]]) -> Side:
    gains = np.array([gain for gain, _ in found], np.float32)
    return Side(gains, [scan.group for _, scan in found], [scan.label for _, scan in found])
