"""Curation on made-up score tables: what stays, what is left out and why, and what the gate says of the rest."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.store import Store
from tasks import gather
from tasks.curate import CurateParams, Curation, curate_set
from tasks.quality import selection
from tasks.quality.gate import GateParams, Limit
from tasks.quality.quotas import Quota, Quotas
from tasks.quality.selection import SelectParams
from tasks.quality.thresholds import Threshold
from tests.fakes import scored

HALF = Threshold(score="segmenter_dice", min=0.5)


def curated(store: Store, tables: scored.Tables, **changes: Any) -> tuple[Curation, list[dict[str, Any]]]:
    params = CurateParams(**{"set_scores": ["kid"], "image_scores": scored.IMAGE_SCORES} | changes)
    done = curate_set.fn(store.url, tables.shards, tables.detection, tables.real, params, 0)
    curation = Curation.model_validate_json(store.read(done.ref.key))
    return curation, store.open_table(curation.table.key).to_pylist()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_every_sample_is_a_row_in_order_of_id_and_counts_add_up(store: Store) -> None:
    found, rows = curated(store, scored.write(store, 120), thresholds=[HALF])
    verdicts = Counter(row["verdict"] for row in rows)
    assert [row["id"] for row in rows] == [f"syn-{n:06d}" for n in range(120)]
    assert (
        (found.planned, found.kept, found.failed)
        == (120, verdicts["kept"], verdicts["failed"])
        == (120, found.kept, 12)
    )
    assert found.rejected == {"segmenter_dice": verdicts["rejected"]}
    assert all((row["verdict"] == "kept") == (not row["reasons"]) for row in rows)
    assert all(row["segmenter_dice"] >= 0.5 for row in rows if row["verdict"] == "kept")
    assert {row["reasons"][0] for row in rows if row["verdict"] == "failed"} == {"no place for the mask"}


def test_quotas_keep_the_best_of_each_kind_after_the_thresholds(store: Store) -> None:
    each = [
        Quota(where={"label": "benign", "margin": "spiculated"}, keep=3),
        Quota(where={"label": "malignant"}, keep=90, least=2),
    ]
    found, rows = curated(
        store, scored.write(store, 120), thresholds=[HALF], quotas=Quotas(best="segmenter_dice", each=each)
    )
    left_out = [row for row in rows if row["reasons"] and row["reasons"][0].startswith("quota")]
    assert {row["reasons"][0] for row in left_out} == {
        "quota label=benign, margin=spiculated: 3 better by segmenter_dice"
    }
    members = [row for row in rows if int(row["id"][4:]) % 2 == 0 and int(row["id"][4:]) // 3 % 3 == 2]
    kept = [row["segmenter_dice"] for row in members if row["verdict"] == "kept"]
    assert len(kept) == 3
    assert min(kept) >= max(row["segmenter_dice"] for row in left_out)
    assert found.rejected["quota label=benign, margin=spiculated"] == len(left_out)
    assert (found.quotas[0].kept, found.quotas[0].found) == (3, 3 + len(left_out))
    assert (found.gate, len(found.warnings)) == ("warn", 1)  # the other quota is not full


def test_selection_leaves_outliers_out_and_says_what_it_bought_on_images_it_never_saw(store: Store) -> None:
    tables = scored.write(store, 200, outliers=0.3)
    whole, _ = curated(store, tables)
    found, rows = curated(store, tables, select=SelectParams())
    assert found.selection is not None
    left_out = [row for row in rows if row["verdict"] == "rejected"]
    assert {row["reasons"][0] for row in left_out} == {"not selected: kid is lower without it"}
    assert found.rejected == {"not selected": len(left_out)}
    assert (found.selection.candidates, found.selection.kept) == (whole.kept, found.kept)
    assert found.selection.acceptance == pytest.approx(found.kept / whole.kept)
    assert sum(before for before, _ in found.selection.labels.values()) == whole.kept
    assert found.selection.against == 60  # the training half
    kid = found.selection.held_out[0]
    assert (kid.name, kid.before, kid.after) == ("kid", whole.scores[0], found.scores[0])
    assert kid.after.value is not None
    assert kid.before.value is not None
    assert kid.after.value < 0.3 * kid.before.value


def test_a_large_set_is_chosen_from_block_by_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = scored.write(store, 200, outliers=0.3)
    one, _ = curated(store, tables, select=SelectParams())
    monkeypatch.setattr(selection, "BLOCK", 64)
    other = Store(f"{store.url}-blocks")
    blocks, _ = curated(other, scored.write(other, 200, outliers=0.3), select=SelectParams())
    assert one.selection is not None
    assert blocks.selection is not None
    assert blocks.selection.candidates == one.selection.candidates
    assert abs(blocks.kept - one.kept) <= 10


def test_a_selection_that_cannot_be_made_fails_the_gate_and_drops_nothing(store: Store) -> None:
    tables = scored.write(store, 120, real=20)  # 10 for training, fewer than twice 6 dimensions
    found, rows = curated(store, tables, select=SelectParams(by="fid"))
    assert found.gate == "fail"
    assert "select by kid" in found.problems[0]
    assert found.selection is None
    assert {row["verdict"] for row in rows} == {"kept", "failed"}


def test_a_set_that_misses_its_gate_says_what_would_have_to_change(store: Store) -> None:
    gate = GateParams(min_kept=80, limits=[Limit(score="kid", max=-1)])
    found, _ = curated(store, scored.write(store, 120), thresholds=[HALF], gate=gate)
    assert found.gate == "fail"
    assert [problem.split(" ")[0] for problem in found.problems] == [str(found.kept), "kid"]
    assert any(advice.startswith("plan about ") for advice in found.advice)
    assert any(advice.startswith("kid must fall by ") for advice in found.advice)
    (threshold,) = (advice for advice in found.advice if advice.startswith("segmenter_dice alone rejects"))
    limit = float(threshold.split("min ")[1].split(" ")[0])
    loosened = [Threshold(score="segmenter_dice", min=limit - 0.005)]  # it was rounded
    again, _ = curated(store, scored.write(store, 120), thresholds=loosened, gate=GateParams(min_kept=80))
    assert again.kept in (80, 81)


def test_a_sample_of_whole_groups_stands_for_a_large_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MOST", 40)
    found, _ = curated(store, scored.write(store, 300))
    (kid,) = found.scores
    assert 38 <= min(kid.n_real, kid.n_synthetic) <= max(kid.n_real, kid.n_synthetic) <= 40
    assert "whole groups drawn from 270 kept and 60 real" in kid.note


def test_a_set_of_one_refuses_its_scores(store: Store) -> None:
    tables = scored.write(store, 20)
    found, rows = curated(
        store, tables, thresholds=[Threshold(score="segmenter_dice", min=2)], set_scores=["kid", "detector_auc"]
    )
    assert found.kept == 0
    assert [score.value for score in found.scores] == [None, None]
    assert "at least 2 of each" in found.scores[0].note
    assert np.isnan([row["synthetic_probability"] or np.nan for row in rows if row["verdict"] == "failed"]).all()
