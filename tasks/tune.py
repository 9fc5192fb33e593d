"""Tune: the base's decoder to the texture of the training scans."""

import hashlib
import json
from functools import partial

import numpy as np
from numpy.typing import NDArray
from prefect import task

from storage import keys
from storage.records import Ref
from tasks import track
from tasks.connect import open_store
from tasks.ingest import KeptScan, kept_scans
from tasks.reuse import Done, reuse
from tasks.synthesis import Learned
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import decoder, latents, window
from tasks.synthesis.diffusion.decoder import DecoderParams
from tasks.train import StoredCheckpoints

ALGORITHM = 1
STEP = "tune-decoder"


@task(name="tune decoder", task_run_name="tune decoder")
def tune_decoder(
    store_url: str, scans: Ref, base: str, params: DecoderParams | None, seed: int, learned: Learned = "lesion"
) -> Done:
    """Tune the decoder to all training scans, healthy ones too; the Ref is its safetensors file.

    They are seen as adapters that have learned lesions, whole pictures or pairs see them. The Ref has no rows where
    the recipe tunes none.
    """
    store = open_store(store_url)
    digest = bases.digest(bases.locate(base))

    def make(key: str) -> Ref:
        if params is None:
            return Ref(key=keys.step_file(STEP, key, "none"), sha256=hashlib.sha256(b"").hexdigest())
        loaded = bases.load(base)
        images = _pictures([scan for scan in kept_scans(store, scans) if scan.split == "train"], learned, loaded.px)
        if not images:
            kind = "training scan with a mask" if learned == "pair" else "training scan"
            raise ValueError(f"no {kind} to tune the decoder to; lower screen.val and screen.test, or add scans")
        checkpoints = StoredCheckpoints(store, STEP, key)
        with track.track(STEP, params.steps, "steps"):
            moved = partial(track.advance, STEP)
            tuned = decoder.tune(loaded, np.stack(images), params, seed, checkpoints, moved)
        file = keys.step_file(STEP, key, "decoder.safetensors")
        store.put(file, tuned.weights)
        store.put(keys.step_file(STEP, key, "curve.json"), json.dumps(tuned.curve).encode())
        checkpoints.clear()
        return Ref(key=file, sha256=hashlib.sha256(tuned.weights).hexdigest(), rows=len(images))

    described: dict[str, object] = {"decoder": None if params is None else params.model_dump(mode="json"), "seed": seed}
    if learned != "lesion":
        described["learned"] = learned
    return reuse(store, STEP, ALGORITHM, described, [scans.sha256, digest], make)


def _pictures(training: list[KeptScan], learned: Learned, px: int) -> list[NDArray[np.uint8]]:
    """Scans as a base of `px` pixels draws them: (H, W), or for pairs those with a mask, with it, (H, W, 3)."""
    pictures: list[NDArray[np.uint8]] = []
    for scan in training:
        side = scan.image.shape[0]
        # Lesions are drawn in windows of larger images, at their own scale; all else is resized.
        view = window.Window(0, 0, side, px if learned != "lesion" or side < px else side)
        image = window.cut(scan.image, view)
        if learned != "pair":
            pictures.append(image)
        elif scan.mask is not None and scan.mask.any():
            pictures.append(latents.joint(image, window.cut_mask(scan.mask, view)))
    return pictures
