"""Train: what draws. LoRA adapters of lesions, of whole pictures and of seams, and the ControlNet of masks."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from prefect import task

from storage import keys, weights
from storage.images import encode_grey
from storage.records import Ref
from storage.store import Store
from tasks import track
from tasks.connect import open_store
from tasks.ingest import KeptScan, kept_scans
from tasks.reuse import Done, reuse
from tasks.synthesis import attributes, seams
from tasks.synthesis import background as backgrounds
from tasks.synthesis.attributes import Attribute
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet, controlnet_training, lora
from tasks.synthesis.diffusion.controlnet_params import ControlNetParams
from tasks.synthesis.diffusion.lora_params import LoraParams

ADAPTER_ALGORITHM = 2
HARMONIZER_ALGORITHM = 1
CONTROLNET_ALGORITHM = 1
ADAPTER, HARMONIZER, CONTROLNET = "train-adapter", "train-harmonizer", "train-controlnet"


class StoredCheckpoints:
    """Checkpoints of a training run in the store, so that another machine can go on where this one died."""

    def __init__(self, store: Store, step: str, key: str) -> None:
        self._store, self._prefix = store, keys.step_file(step, key, "checkpoints")

    def save(self, step: int, data: bytes) -> None:
        """Keep `data` after training step `step`, and forget what was kept before it."""
        previous = [key for key in self._store.list(self._prefix) if key < f"{self._prefix}/{step:08d}"]
        self._store.put(f"{self._prefix}/{step:08d}.safetensors", data)
        for key in previous:
            self._store.delete(key)

    def latest(self) -> tuple[int, bytes] | None:
        """The last step saved and its state, None where there is none."""
        found = self._store.list(self._prefix)
        if not found:
            return None
        last = found[-1]
        return int(last.rsplit("/", 1)[1].split(".")[0]), self._store.read(last)

    def clear(self) -> None:
        """Forget them all: training has finished."""
        for key in self._store.list(self._prefix):
            self._store.delete(key)


class StoredLatents:
    """Latents and prompt embeddings in the store: a second adapter on the same scans encodes nothing again."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> bytes | None:
        """What was kept under this key, None where nothing was."""
        file = keys.step_file("latents", key, "latents.safetensors")
        return self._store.read(file) if self._store.exists(file) else None

    def put(self, key: str, data: bytes) -> None:
        """Keep it."""
        self._store.put(keys.step_file("latents", key, "latents.safetensors"), data)


class StoredSamples:
    """Samples drawn during training, one PNG a step with the images side by side."""

    def __init__(self, store: Store, step: str, key: str) -> None:
        self._store, self._step, self._key = store, step, key

    def __call__(self, step: int, images: NDArray[np.uint8]) -> None:
        """Keep samples (N, H, W) drawn after training step `step`."""
        file = keys.step_file(self._step, self._key, f"samples/{step:08d}.png")
        self._store.put(file, encode_grey(np.concatenate(list(images), axis=1)))


@task(name="train adapter", task_run_name="train adapter {label}")
def train_adapter(store_url: str, scans: Ref, base: str, params: LoraParams, label: str, seed: int) -> Done:
    """Fine-tune a LoRA adapter on the training scans of `label`; the Ref is its safetensors file."""
    store = open_store(store_url)
    step = f"train adapter {label}"
    digest = bases.digest(bases.locate(base))

    def make(key: str) -> Ref:
        kept = [scan for scan in kept_scans(store, scans) if scan.label == label]
        examples, held_out = _examples(kept, "train"), _examples(kept, "val")
        if not examples:
            raise ValueError(
                f"no training scan of label {label!r} with a mask, but the recipe plans samples of it; "
                "take the label out of plan.labels, or add scans of it"
            )
        return _trained(store, ADAPTER, key, step, base, examples, held_out, kept[0].organ, params, seed)

    described = {"lora": params.model_dump(mode="json"), "label": label, "seed": seed}
    return reuse(store, ADAPTER, ADAPTER_ALGORITHM, described, [scans.sha256, digest], make)


@task(name="train picture adapter", task_run_name="train picture adapter")
def train_picture_adapter(
    store_url: str,
    scans: Ref,
    base: str,
    params: LoraParams,
    labels: Sequence[str],
    joint: bool,
    words: Sequence[Attribute],
    seed: int,
) -> Done:
    """Fine-tune one LoRA adapter on whole training pictures of all `labels`; the Ref is its safetensors file.

    Args:
        joint: pictures are learned with their masks, as one image (`latents.joint`).
        words: what captions say of a mask, beside organ and label.
    """
    store = open_store(store_url)
    digest = bases.digest(bases.locate(base))

    def make(key: str) -> Ref:
        kept = kept_scans(store, scans)
        examples = picture_examples(kept, "train", labels, words, joint=joint)
        held_out = picture_examples(kept, "val", labels, words, joint=joint)
        if not examples:
            raise ValueError(
                f"no training scan of {', '.join(labels)}{' with a mask' if joint else ''}; add scans, or lower "
                "screen.val and screen.test"
            )
        return _trained(store, ADAPTER, key, ADAPTER, base, examples, held_out, _organ(kept, labels), params, seed)

    described = {
        "lora": params.model_dump(mode="json"),
        "labels": sorted(labels),
        "learned": "pair" if joint else "picture",
        "words": list(words),
        "seed": seed,
    }
    return reuse(store, ADAPTER, ADAPTER_ALGORITHM, described, [scans.sha256, digest], make)


@task(name="train controlnet", task_run_name="train controlnet")
def train_controlnet(
    store_url: str,
    scans: Ref,
    base: str,
    adapter: Ref | None,
    params: ControlNetParams | None,
    labels: Sequence[str],
    words: Sequence[Attribute],
    seed: int,
) -> Done:
    """Train the ControlNet that holds whole pictures to their masks, beside the base with `adapter` merged in.

    The Ref is its safetensors file, in a folder that diffusers loads; it has no rows where the recipe trains none.
    """
    store = open_store(store_url)
    start = None if params is None or params.start is None else weights.locate(params.start, controlnet.LAYOUT)
    described = {
        "controlnet": None if params is None else params.model_dump(mode="json", exclude={"start"}),
        "labels": sorted(labels),
        "words": list(words),
        "seed": seed,
    }
    digests = [
        bases.digest(bases.locate(base)),
        "no adapter" if adapter is None else adapter.sha256,
        "no start" if start is None else weights.digest(start, controlnet.LAYOUT),
    ]

    def make(key: str) -> Ref:
        if params is None:
            return Ref(key=keys.step_file(CONTROLNET, key, "none"), sha256=_sha256(b""))
        kept = kept_scans(store, scans)
        examples = picture_examples(kept, "train", labels, words, controlled=True)
        held_out = picture_examples(kept, "val", labels, words, controlled=True)
        if not examples:
            raise ValueError(
                f"no training scan of {', '.join(labels)} with a mask; set controlnet to null, or add scans"
            )
        loaded = bases.load(base)
        checkpoints = StoredCheckpoints(store, CONTROLNET, key)
        with track.track(CONTROLNET, params.steps * params.batch):
            trained = controlnet_training.train(
                loaded,
                None if adapter is None else store.read(adapter.key),
                None if start is None else controlnet.read(start, loaded, str(params.start)),
                examples,
                held_out,
                _organ(kept, labels),
                params,
                seed,
                checkpoints,
                partial(track.advance, CONTROLNET),
                StoredLatents(store),
                StoredSamples(store, CONTROLNET, key),
            )
        store.put(keys.step_file(CONTROLNET, key, "config.json"), controlnet.config(trained.weights).encode())
        return _stored(store, CONTROLNET, key, controlnet.FILE, trained, len(examples), len(held_out), checkpoints)

    return reuse(store, CONTROLNET, CONTROLNET_ALGORITHM, described, [scans.sha256, *digests], make)


def picture_examples(
    kept: Sequence[KeptScan],
    split: str,
    labels: Sequence[str],
    words: Sequence[Attribute],
    *,
    joint: bool = False,
    controlled: bool = False,
) -> list[lora.Example]:
    """What is learned of the scans of a split where pictures are drawn whole; the healthy among them have blank masks.

    Args:
        words: what captions say of a mask; their thresholds are those of all training masks.
        joint: with their masks, as one image; only scans that have one.
        controlled: with their masks as a ControlNet is shown them; only healthy scans, and those that have one.
    """
    lesions = [(scan.label, scan.mask) for scan in kept if scan.split == "train" and _has_lesion(scan)]
    margins = attributes.margins_of([(label, mask) for label, mask in lesions if mask is not None] if words else [])
    examples: list[lora.Example] = []
    for scan in kept:
        if scan.split != split or scan.label not in labels:
            continue
        healthy = scan.label == backgrounds.HEALTHY
        if not _has_lesion(scan) and (joint or (controlled and not healthy)):
            continue
        blank = np.zeros(scan.image.shape, np.bool_)
        examples.append(
            lora.Example(
                image=scan.image,
                mask=scan.mask if joint else None,
                label=scan.label,
                attributes=attributes.words(words, scan.mask, scan.pixel_mm, margins),
                joint=joint,
                control=(blank if scan.mask is None else scan.mask) if controlled else None,
            )
        )
    return examples


@task(name="train harmonizer", task_run_name="train harmonizer")
def train_harmonizer(
    store_url: str, scans: Ref, base: str, params: seams.Params | None, labels: Sequence[str], seed: int
) -> Done:
    """Fine-tune the LoRA adapter that repairs seams, one for all `labels`; the Ref is its safetensors file.

    It learns from training scans with spoiled lesion borders. The Ref has no rows where the recipe trains none.
    """
    store = open_store(store_url)
    digest = bases.digest(bases.locate(base))

    def make(key: str) -> Ref:
        if params is None:
            return Ref(key=keys.step_file(HARMONIZER, key, "none"), sha256=_sha256(b""))
        kept = [scan for scan in kept_scans(store, scans) if scan.label in labels]
        examples = seams.pairs(_examples(kept, "train"), params.flaws_per_scan, seed)
        held_out = seams.pairs(_examples(kept, "val"), 1, seed + 1)
        if not examples:
            raise ValueError(
                f"no training scan of {', '.join(labels)} with a mask to spoil; set harmonizer to null, or add scans"
            )
        return _trained(store, HARMONIZER, key, HARMONIZER, base, examples, held_out, kept[0].organ, params, seed)

    described = {
        "harmonizer": None if params is None else params.model_dump(mode="json"),
        "labels": sorted(labels),
        "seed": seed,
    }
    return reuse(store, HARMONIZER, HARMONIZER_ALGORITHM, described, [scans.sha256, digest], make)


def _examples(kept: Sequence[KeptScan], split: str) -> list[lora.Example]:
    """Scans with a lesion, that is what is learned of them; and healthy ones, of which all is."""
    return [
        lora.Example(image=scan.image, mask=scan.mask if _has_lesion(scan) else None, label=scan.label)
        for scan in kept
        if scan.split == split and (_has_lesion(scan) or scan.label == backgrounds.HEALTHY)
    ]


def _has_lesion(scan: KeptScan) -> bool:
    return scan.mask is not None and bool(scan.mask.any())


def _organ(kept: Sequence[KeptScan], labels: Sequence[str]) -> str:
    return next(scan.organ for scan in kept if scan.label in labels)


def _trained(
    store: Store,
    step: str,
    key: str,
    bar: str,
    base: str,
    examples: Sequence[lora.Example],
    held_out: Sequence[lora.Example],
    organ: str,
    params: LoraParams,
    seed: int,
) -> Ref:
    """Train an adapter and keep it with its curve; `bar` names its progress."""
    checkpoints = StoredCheckpoints(store, step, key)
    with track.track(bar, params.steps * params.batch):
        adapter = lora.train(
            bases.load(base),
            examples,
            held_out,
            organ,
            params,
            seed,
            checkpoints,
            partial(track.advance, bar),
            StoredLatents(store),
            StoredSamples(store, step, key),
        )
    return _stored(
        store, step, key, "pytorch_lora_weights.safetensors", adapter, len(examples), len(held_out), checkpoints
    )


def _stored(
    store: Store,
    step: str,
    key: str,
    name: str,
    trained: lora.Adapter | controlnet_training.ControlNet,
    examples: int,
    held_out: int,
    checkpoints: StoredCheckpoints,
) -> Ref:
    """Keep the weights as `name` and their curve; the checkpoints are then needed no more."""
    file = keys.step_file(step, key, name)
    store.put(file, trained.weights)
    store.put(keys.step_file(step, key, "curve.json"), json.dumps(trained.curve).encode())
    checkpoints.clear()
    counts = {"examples": examples, "held out": held_out, "best step": trained.best_step}
    return Ref(key=file, sha256=_sha256(trained.weights), rows=examples, counts=counts)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
