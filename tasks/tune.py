"""Tune: the base's decoder to the texture of the training scans."""

import hashlib
import json
from functools import partial

import numpy as np
from prefect import task

from storage import keys
from storage.records import Ref
from tasks import track
from tasks.connect import open_store
from tasks.ingest import kept_scans
from tasks.reuse import Done, reuse
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import decoder
from tasks.synthesis.diffusion.decoder import DecoderParams
from tasks.train import StoredCheckpoints

ALGORITHM = 1
STEP = "tune-decoder"


@task(name="tune decoder")
def tune_decoder(store_url: str, scans: Ref, base: str, params: DecoderParams | None, seed: int) -> Done:
    """Tune the decoder to all training scans, healthy ones too; the Ref is its safetensors file.

    The Ref has no rows where the recipe tunes none.
    """
    store = open_store(store_url)
    digest = bases.digest(bases.locate(base))

    def make(key: str) -> Ref:
        if params is None:
            return Ref(key=keys.step_file(STEP, key, "none"), sha256=hashlib.sha256(b"").hexdigest())
        images = [scan.image for scan in kept_scans(store, scans) if scan.split == "train"]
        if not images:
            raise ValueError("no training scan to tune the decoder to; lower screen.val and screen.test, or add scans")
        checkpoints = StoredCheckpoints(store, STEP, key)
        with track.track(STEP, params.steps, "steps"):
            moved = partial(track.advance, STEP)
            tuned = decoder.tune(bases.load(base), np.stack(images), params, seed, checkpoints, moved)
        file = keys.step_file(STEP, key, "decoder.safetensors")
        store.put(file, tuned.weights)
        store.put(keys.step_file(STEP, key, "curve.json"), json.dumps(tuned.curve).encode())
        checkpoints.clear()
        return Ref(key=file, sha256=hashlib.sha256(tuned.weights).hexdigest(), rows=len(images))

    described = {"decoder": None if params is None else params.model_dump(mode="json"), "seed": seed}
    return reuse(store, STEP, ALGORITHM, described, [scans.sha256, digest], make)
