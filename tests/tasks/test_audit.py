import hashlib
from pathlib import Path

import pytest

from storage.records import Ref
from storage.store import Store
from tasks.audit import AuditParams, audit_membership, audited
from tasks.ingest import ingest
from tasks.screening import ScreenParams
from tasks.sources import busi
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
