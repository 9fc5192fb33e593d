import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.records import Ref
from storage.store import Store
from tasks import audit
from tasks.audit import AuditParams, audit_membership, audited
from tasks.ingest import ingest, kept_scans
from tasks.screening import ScreenParams
from tasks.sources import busi
from tasks.synthesis import Learned
from tasks.synthesis.diffusion import adapter_files, base, trainable
from tasks.synthesis.diffusion.lora import LoraParams
from tests.fakes.base import make_base
from tests.fakes.busi import busi as fake_busi


@pytest.mark.slow
def test_an_adapter_that_changes_nothing_gives_nobody_away_and_is_asked_once(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    folder = str(make_base(tmp_path / "base", channels=9))
    fresh = trainable.with_lora(base.load(folder), LoraParams(rank=2, alpha=2), 0)
    adapter = adapter_files.write(fresh.weights, fresh.scales)
    store.put("adapter.safetensors", adapter)
    adapters = {"benign": Ref(key="adapter.safetensors", sha256=hashlib.sha256(adapter).hexdigest(), rows=1)}
    source = busi.Params(root=fake_busi(tmp_path / "busi", n=18, shape=(60, 70)))
    scans = ingest.fn(store.url, source, ScreenParams(px=32, val=0.25, test=0.25), 0).ref

    params = AuditParams(scans=8, levels=1)
    done = audit_membership.fn(store.url, scans, folder, adapters, params, 0)
    score = audited(store, done.ref)
    assert (score.name, score.n_synthetic, score.n_real) == ("membership_auc", 8, 8)
    assert score.value == pytest.approx(0.5, abs=0.25)
    assert audit_membership.fn(store.url, scans, folder, adapters, params, 0).reused
    assert not audit_membership.fn(store.url, scans, folder, adapters, params, 1).reused


@pytest.mark.parametrize(
    ("learned", "joint", "cut"), [("lesion", False, True), ("picture", False, False), ("pair", True, True)]
)
def test_an_adapter_is_shown_what_it_learned_by_the_prompts_that_it_learned_it_with(
    learned: Learned, joint: bool, cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown: list[Any] = []

    def asked(model: object, adapter: bytes, examples: Sequence[Any], organ: str, *_: Any) -> NDArray[np.float32]:
        shown.extend((organ, example) for example in examples)
        return np.zeros(len(examples), np.float32)

    monkeypatch.setattr(audit.membership, "gains", asked)
    store = Store(str(tmp_path / "store"))
    folder = str(make_base(tmp_path / "base", channels=9))
    store.put("adapter.safetensors", b"weights")
    adapters = {"benign": Ref(key="adapter.safetensors", sha256=hashlib.sha256(b"weights").hexdigest(), rows=1)}
    source = busi.Params(root=fake_busi(tmp_path / "busi", n=12, shape=(60, 70)))
    scans = ingest.fn(store.url, source, ScreenParams(px=32, val=0.25, test=0.25), 0).ref

    words = () if learned == "lesion" else ("orientation",)
    audit_membership.fn(store.url, scans, folder, adapters, AuditParams(scans=100), 0, learned, words)
    benign = [scan for scan in kept_scans(store, scans) if scan.label == "benign"]
    assert len(shown) == len(benign)
    assert {organ for organ, _ in shown} == {"breast"}
    for _, example in shown:
        assert (example.joint, example.mask is not None) == (joint, cut)
        assert [word in ("parallel", "taller than wide") for word in example.attributes] == [True] * len(words)
