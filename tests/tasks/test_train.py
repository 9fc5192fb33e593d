"""Training of what draws whole pictures: what is learned, what is kept where, and what a key depends on."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from storage.records import Ref
from storage.store import Store
from tasks.ingest import KeptScan, ingest, kept_scans
from tasks.screening import ScreenParams
from tasks.sources import busi
from tasks.synthesis.diffusion import base as bases
from tasks.synthesis.diffusion import controlnet, sample
from tasks.train import (
    ControlNetParams,
    LoraParams,
    picture_examples,
    train_controlnet,
    train_picture_adapter,
)
from tests.fakes.base import make_base
from tests.fakes.busi import busi as fake_busi
from tests.fakes.drafts import ellipse

LORA = LoraParams(rank=2, alpha=2, steps=2, batch=2, warmup=0, validate_every=2)
CONTROLNET = ControlNetParams(steps=2, batch=2, warmup=0, validate_every=2, learning_rate=1e-2)
LABELS = ["benign", "malignant"]


class Made:
    """Scans and a base in a store."""

    def __init__(self, folder: Path) -> None:
        self.store = str(folder / "store")
        self.base = str(make_base(folder / "base", channels=9))
        source = busi.Params(root=fake_busi(folder / "busi", n=18, shape=(60, 70)))
        self.scans = ingest.fn(self.store, source, ScreenParams(px=64, val=0.25, test=0.25), 0).ref

    def adapter(self, **given: Any) -> Any:
        asked = {"params": LORA, "labels": LABELS, "joint": False, "words": [], "seed": 0} | given
        return train_picture_adapter.fn(self.store, self.scans, self.base, **asked)

    def controlnet(self, adapter: Ref | None, **given: Any) -> Any:
        asked = {"params": CONTROLNET, "labels": LABELS, "words": [], "seed": 0} | given
        return train_controlnet.fn(self.store, self.scans, self.base, adapter, **asked)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def scan(number: int, label: str, mask: Any, split: str = "train") -> KeptScan:
    image = np.full((64, 64), 100, np.uint8)
    return KeptScan(f"s{number}", image, mask, label, "breast", "busi", f"g{number}", split, None)


def test_pictures_are_learned_whole_with_captions_measured_on_their_masks() -> None:
    blank = np.zeros((64, 64), np.bool_)
    lesion = ellipse(64, 32, 32, 20, 10)
    scans = [
        scan(0, "benign", lesion),
        scan(1, "malignant", None),
        scan(2, "normal", blank),
        scan(3, "benign", lesion, "val"),
        scan(4, "other", lesion),
    ]
    labels = ["benign", "malignant", "normal"]
    learned = picture_examples(scans, "train", labels, ["orientation"])
    assert [example.label for example in learned] == labels
    assert [example.attributes for example in learned] == [("taller than wide",), (), ()]
    assert all(example.mask is None and example.control is None for example in learned)
    assert [example.attributes for example in picture_examples(scans, "val", labels, [])] == [()]

    joint = picture_examples(scans, "train", labels, [], joint=True)
    assert [(example.label, example.joint) for example in joint] == [("benign", True)]
    assert joint[0].mask is lesion

    held = picture_examples(scans, "train", labels, [], controlled=True)
    assert [example.label for example in held] == ["benign", "normal"]  # of the malignant one no mask is known
    assert held[0].control is lesion
    assert held[1].control is not None
    assert not held[1].control.any()


def test_the_folder_of_a_trained_controlnet_is_one_of_diffusers_and_draws(made: Made) -> None:
    adapter = made.adapter().ref
    done = made.controlnet(adapter)
    assert done.ref.rows == done.ref.counts["examples"] > 0
    folder = Path(made.store) / done.ref.key.rsplit("/", 1)[0]
    assert {"config.json", "curve.json", controlnet.FILE} <= {file.name for file in folder.iterdir()}
    assert not (folder / "checkpoints").exists() or not any((folder / "checkpoints").iterdir())
    diffusers.ControlNetModel.from_pretrained(folder)
    store, base = Store(made.store), bases.load(made.base)
    control = sample.Control(store.read(done.ref.key), np.ones((1, base.px, base.px), np.bool_))
    held, free = (
        sample.pictures(base, ["a"], [1], steps=3, guidance=1, adapter=store.read(adapter.key), control=given)
        for given in (control, None)
    )
    assert (held != free).any()


def test_a_controlnet_goes_on_from_one_by_folder(made: Made) -> None:
    first = made.controlnet(None)
    folder = str(Path(made.store) / first.ref.key.rsplit("/", 1)[0])
    further = made.controlnet(None, params=CONTROLNET.model_copy(update={"start": folder}))
    assert further.ref.sha256 != first.ref.sha256
    assert not further.reused
    elsewhere = folder + "-copy"
    Path(folder).rename(elsewhere)
    moved = made.controlnet(None, params=CONTROLNET.model_copy(update={"start": elsewhere}))
    Path(elsewhere).rename(folder)
    assert moved.reused  # where it lies decides nothing


@pytest.mark.parametrize(
    "changed", [{"labels": ["benign"]}, {"words": ["orientation"]}, {"seed": 1}, {"joint": True}], ids=str
)
def test_what_is_asked_for_decides_the_key_of_an_adapter(made: Made, changed: dict[str, Any]) -> None:
    assert made.adapter().ref.sha256 != made.adapter(**changed).ref.sha256
    assert made.adapter(**changed).reused


def test_a_recipe_without_a_controlnet_gets_a_ref_without_rows(made: Made) -> None:
    assert made.controlnet(None, params=None).ref.rows == 0


def test_labels_without_scans_are_refused(made: Made) -> None:
    with pytest.raises(ValueError, match="no training scan of head; add scans"):
        made.adapter(labels=["head"])
    with pytest.raises(ValueError, match="no training scan of head with a mask; set controlnet to null"):
        made.controlnet(None, labels=["head"])


def test_scans_are_there(made: Made) -> None:
    """The fixture holds what the tests above rely on: training and validation scans of both labels."""
    kept = kept_scans(Store(made.store), made.scans)
    assert {(each.label, each.split) for each in kept} >= {
        (label, split) for label in LABELS for split in ("train", "val")
    }
