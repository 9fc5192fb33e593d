"""The decoder is tuned to scans as a route draws them: at the base's size, and for pairs with their masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.store import Store
from tasks.ingest import ingest, kept_scans
from tasks.screening import ScreenParams
from tasks.sources import hc18
from tasks.synthesis import Learned
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import decoder, latents
from tasks.synthesis.diffusion.decoder import DecoderParams
from tasks.tune import tune_decoder
from tests.fakes import hc18 as fake_hc18
from tests.fakes.base import make_base

QUICK = DecoderParams(steps=1, batch=1, crop=32, warmup=1)


class Tuning:
    """Tunes the decoder of a base of 32 px to scans of 64 px."""

    def __init__(self, folder: Path) -> None:
        self.store, self.base = Store(str(folder / "store")), str(make_base(folder / "base", px=32))
        source = hc18.Params(root=fake_hc18(folder / "hc18", n=6))
        self.scans = ingest.fn(self.store.url, source, ScreenParams(px=64, val=0.2, test=0.2), 0).ref

    def __call__(self, learned: Learned, params: DecoderParams | None = QUICK) -> Any:
        return tune_decoder.fn(self.store.url, self.scans, self.base, params, 0, learned)


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return Tuning(tmp_path_factory.mktemp("tuning"))


def test_each_route_sees_the_scans_as_it_draws_them(tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}

    def seen(base: Any, images: Any, *_: Any) -> Any:
        shown["images"] = images
        return decoder.Tuned(b"weights", [])

    monkeypatch.setattr(decoder, "tune", seen)
    training = [scan for scan in kept_scans(tuning.store, tuning.scans) if scan.split == "train"]
    other = QUICK.model_copy(update={"steps": 2})
    sides = {"lesion": 64, "picture": 32, "pair": 32}
    for learned, side in sides.items():
        tuning(learned, other)
        assert shown["images"].shape[:3] == (len(training), side, side)
    image, mask = shown["images"][..., 0], shown["images"][..., 2]
    np.testing.assert_array_equal(shown["images"], latents.joint(image, mask == 255))
    for fraction, scan in zip((mask == 255).mean(axis=(1, 2)), training, strict=True):
        assert scan.mask is not None
        assert fraction == pytest.approx(scan.mask.mean(), abs=0.02)


def test_a_decoder_tuned_to_pairs_is_kept_apart_and_asked_once(tuning: Tuning) -> None:
    pairs, pictures = tuning("pair"), tuning("picture")
    assert pairs.ref.key != pictures.ref.key
    assert pairs.ref.sha256 != pictures.ref.sha256
    assert tuning("pair").reused
    decoder.apply(bases.load(tuning.base), tuning.store.read(pairs.ref.key))


def test_without_parameters_nothing_is_tuned(tuning: Tuning) -> None:
    assert tuning("pair", None).ref.rows == 0
