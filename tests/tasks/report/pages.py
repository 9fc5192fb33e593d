"""Made-up facts of a report, whole in every section."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage.images import decode_grey, decode_mask
from storage.records import SetScore
from tasks import report
from tasks.report import Earlier, Gate, Original
from tasks.report.grid import Example
from tasks.report.summary import Limits, extremes, summarize
from tests.fakes.samples import SCORES, table

THRESHOLDS: dict[str, Limits] = {"segmenter_dice": (0.5, None)}
EACH = 3
"""Extremes of each label."""


def score(name: str = "fid", **changes: Any) -> SetScore:
    """A set score, above its floor."""
    known: dict[str, Any] = {"value": 1.2, "low": 1.0, "high": 1.5, "floor": 0.3, "floor_low": 0.1, "floor_high": 0.5}
    known |= {"over_floor": 4.0, "over_floor_low": 3.0, "over_floor_high": 5.0}
    known |= {"n_real": 9, "n_synthetic": 8, "extractor": "x@0", "note": "few"}
    return SetScore.model_validate({"name": name} | known | changes)


def examples(rows: pa.Table) -> list[Example]:
    """Pictures, masks and labels of rows."""
    return [
        (decode_grey(row["image"]["bytes"]), decode_mask(row["mask"]["bytes"]) if row["mask"] else None, row["label"])
        for row in rows.to_pylist()
    ]


def originals(rows: Sequence[dict[str, Any]], similarity: float = 0.9) -> list[Original]:
    """A nearest training image for each row, less and less alike."""
    real = examples(table(len(rows), seed=2))
    return [
        Original(row["id"], similarity - 0.1 * place, f"scan-{place}", f"benign ({place}).png", "", image, mask)
        for place, (row, (image, mask, _)) in enumerate(zip(rows, real, strict=True))
    ]


def facts(rows: pa.Table, **changes: Any) -> report.Facts:
    """What a report may say of `rows`."""
    verdicts = rows.column("verdict").to_pylist()
    by_id = {row["id"]: row for row in rows.to_pylist()}
    summary = summarize(rows.to_batches, SCORES, THRESHOLDS)
    chosen, ends = report.pick_kept(rows.to_batches), extremes(rows.to_batches, SCORES, EACH)
    shown = dict.fromkeys([*chosen, *(id for sides in ends.values() for side in sides for id in side)])
    refused = [by_id[id] for id in report.pick_rejected(rows.to_batches)]
    known: dict[str, Any] = {
        "title": "demo",
        "description": "A demo.",
        "planned": len(rows),
        "kept": verdicts.count("kept"),
        "rejected": {"segmenter_dice": verdicts.count("rejected")},
        "failed": verdicts.count("failed"),
        "gate": Gate(),
        "scores": [score()],
        "failures": summary.failures,
        "examples": [by_id[id] for id in shown],
        "spread": chosen,
        "extremes": ends,
        "refused": refused,
        "originals": [],
        "withheld": "",
        "histograms": summary.histograms,
        "thresholds": THRESHOLDS,
        "explained": {"segmenter_dice": "Dice coefficient, 0..1.", "fid": "Fréchet distance."},
        "higher_is_better": frozenset({"segmenter_dice"}),
        "real": examples(table(9, seed=1)),
        "selection": None,
        "quotas": [],
        "history": [],
        "changes": [],
        "sources": ["phantom, Apache-2.0"],
        "recipe_yaml": "name: demo\n",
        "synthetic": "Every lesion here is synthetic.",
    }
    return report.Facts(**(known | changes))


def full(rows: pa.Table) -> report.Facts:
    """A report with something in every section."""
    kept = [row for row in rows.to_pylist() if row["verdict"] == "kept" and row["mask"] is not None][:3]
    changes = report.Selection("Of 50 samples 40 stay by kid.", [("kid", score("kid", value=0.2), score("kid"))])
    return facts(
        rows,
        gate=Gate(
            verdict="warn",
            warnings=["kid 0.20 is within its limit of 0.3, but its interval (0.10 to 0.40) is not"],
            advice=["kid would be within its limit for sure with about 3 × as many images"],
            limits={"kid": "≤ 0.3", "fid": "≤ 9 × its floor"},
        ),
        scores=[
            score("fid"),
            score("kid", value=0.2, low=0.1, high=0.4, floor=-0.01, note=""),
            score("coverage", value=None, low=None, high=None, over_floor=None, note="refused: too few"),
            score("detector_auc", value=0.7, over_floor=None, p=0.001, control=0.99),
        ],
        originals=originals(kept),
        thresholds={**THRESHOLDS, report.LESION_COPY: (None, 0.85)},
        selection=changes,
        quotas=["label=benign: 20 of 31 kept, at most 20"],
        history=[
            Earlier(1, 40, 20, [score("fid", value=2.0, high=2.5), score("kid", value=0.3, high=0.5)], []),
            Earlier(2, 40, 25, [score("fid", value=1.6, high=1.9, extractor="y@0")], ["lora.steps 100 → 300"]),
        ],
        changes=["seed 1 → 2"],
    )
