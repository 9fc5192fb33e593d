import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from storage.images import decode_grey, decode_mask
from storage.records import SetScore
from tasks import report
from tasks.report import charts
from tasks.report.grid import Example, contact_sheet
from tasks.report.pictures import OUTLINE_RGB, picture
from tasks.report.summary import BINS, Limits, spread, summarize
from tests.fakes.samples import SCORES, table

VOID = {"meta", "img", "input", "rect", "line", "circle", "link", "br"}


class _Checker(HTMLParser):
    """Every tag closed in order; nothing fetched from anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"script in {name}"
            assert name not in ("src", "href") or (value or "").startswith("data:image/png;base64,")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def _examples(rows: pa.Table) -> list[Example]:
    return [
        (decode_grey(row["image"]["bytes"]), decode_mask(row["mask"]["bytes"]) if row["mask"] else None, row["label"])
        for row in rows.to_pylist()
    ]


def _facts(rows: pa.Table, **changes: Any) -> report.Facts:
    verdicts = rows.column("verdict").to_pylist()
    by_id = {row["id"]: row for row in rows.to_pylist()}
    fid = SetScore(
        name="fid", value=1.2, low=1.0, high=1.5, floor=0.3, n_real=9, n_synthetic=8, extractor="x@0", note="few"
    )
    thresholds: dict[str, Limits] = {"segmenter_dice": (0.5, None)}
    summary = summarize(rows.to_batches, SCORES, thresholds)
    facts: dict[str, Any] = {
        "title": "demo",
        "description": "A demo.",
        "planned": len(rows),
        "kept": verdicts.count("kept"),
        "rejected": {"segmenter_dice": verdicts.count("rejected")},
        "failed": verdicts.count("failed"),
        "scores": [fid],
        "failures": summary.failures,
        "examples": [by_id[id] for id in report.pick_kept(rows.to_batches)],
        "refused": [by_id[id] for id in report.pick_rejected(rows.to_batches)],
        "histograms": summary.histograms,
        "thresholds": thresholds,
        "real": _examples(table(9, seed=1)),
        "gate": [],
        "sources": ["phantom, Apache-2.0"],
        "recipe_yaml": "name: demo\n",
    }
    return report.Facts(**(facts | changes))


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    checker = _Checker()
    checker.feed(report.render(_facts(table(60))))
    assert checker.open == []
    assert checker.tags["script"] == checker.tags["link"] == checker.tags["iframe"] == 0
    assert checker.tags["img"] > 30


def test_the_page_says_what_was_planned_kept_rejected_and_failed() -> None:
    rows = table(60)
    html = report.render(_facts(rows))
    verdicts = Counter(rows.column("verdict").to_pylist())
    tiles = re.findall(r"<b>(\d+)</b>", html)
    assert tiles == [str(n) for n in (60, verdicts["kept"], verdicts["rejected"], verdicts["failed"])]
    assert "no place in the tissue for the mask" in html
    assert "The set meets its gate." in html


def test_a_missed_gate_stands_at_the_top() -> None:
    html = report.render(_facts(table(12), gate=["fid 1.2 > 1.0"]))
    assert "Not published: the set misses its gate." in html
    assert "<li>fid 1.2 &gt; 1.0</li>" in html


def test_the_same_rows_make_the_same_page_however_they_are_batched() -> None:
    rows = table(60).combine_chunks()
    several = pa.Table.from_batches(rows.to_batches(max_chunksize=7))
    assert several.column(0).num_chunks > 1
    assert report.render(_facts(rows)) == report.render(_facts(rows)) == report.render(_facts(several))


def test_text_from_elsewhere_cannot_become_markup() -> None:
    html = report.render(_facts(table(6), title="<script>alert(1)</script>", recipe_yaml="a: </pre><script>"))
    assert "<script>" not in html


def test_a_shown_row_needs_its_picture() -> None:
    facts = _facts(table(60))
    with pytest.raises(ValueError, match="demo-000001, whose image was left out"):
        report.render(replace(facts, examples=[{**dict(table(2).to_pylist()[1]), "image": None}]))


def test_every_label_and_every_reason_is_shown() -> None:
    rows = table(300)
    by_id = {row["id"]: row for row in rows.select(["id", "label", "verdict", "reasons"]).to_pylist()}
    kept, rejected = report.pick_kept(rows.to_batches), report.pick_rejected(rows.to_batches)
    assert Counter(by_id[id]["label"] for id in kept) == dict.fromkeys(
        ("benign", "malignant", "normal"), report.PER_LABEL
    )
    assert len(rejected) <= report.REJECTED
    assert {by_id[id]["reasons"][0].split()[0] for id in rejected} == {"segmenter_dice", "lesion_contrast"}
    assert {by_id[id]["verdict"] for id in kept} == {"kept"}
    assert {by_id[id]["verdict"] for id in rejected} == {"rejected"}


@pytest.mark.parametrize(("size", "most"), [(0, 3), (1, 3), (3, 3), (10, 3), (11, 10), (1000, 8)])
def test_few_of_many_are_evenly_spaced_and_begin_with_the_first(size: int, most: int) -> None:
    ids = [f"{number:04d}" for number in range(size)]
    chosen = [int(id) for id in spread(lambda: [("only", id) for id in ids], lambda groups: most)]
    assert len(chosen) == min(size, most)
    assert chosen[:1] == [0][:size]
    steps = set(np.diff(chosen).tolist())
    assert not steps or max(steps) - min(steps) <= 1


def test_histograms_count_what_numpy_counts_of_the_whole() -> None:
    rows = table(300)
    limits: dict[str, Limits] = {"segmenter_dice": (0.5, 1.25)}
    summary = summarize(lambda: rows.to_batches(max_chunksize=17), SCORES, limits)
    frame = rows.select([*SCORES, "verdict"]).to_pandas()
    for name, bins in summary.histograms.items():
        judged = frame[frame["verdict"] != "failed"]
        assert bins.low == min(judged[name].min(), limits.get(name, (9, 9))[0] or 9)
        assert bins.high == max(judged[name].max(), limits.get(name, (0, 0))[1] or 0)
        for verdict, found in (("kept", bins.kept), ("rejected", bins.rejected)):
            values = frame.loc[frame["verdict"] == verdict, name].dropna().to_numpy(np.float64)
            assert list(found) == np.histogram(values, BINS, (bins.low, bins.high))[0].tolist()
            assert sum(found) == len(values) > 0
    assert summary.failures == {"no place in the tissue for the mask": int((frame["verdict"] == "failed").sum())}


def test_a_dataset_with_nothing_kept_or_real_still_has_a_report() -> None:
    rows = table(6)
    position = rows.schema.get_field_index("verdict")
    failed = rows.set_column(position, "verdict", pa.array(["failed"] * 6))
    html = report.render(_facts(failed, real=[], scores=[], thresholds={}))
    assert "The recipe asks for none." in html
    assert "no reason given" in html


def test_an_outline_surrounds_the_mask_and_covers_none_of_it() -> None:
    image, mask = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.bool_)
    mask[20:40, 25:35] = True
    shown = picture(image, mask)
    assert shown.outline is not None
    layer = np.asarray(Image.open(io.BytesIO(_bytes(shown.outline))).convert("RGBA"))
    drawn = layer[..., 3] > 0
    assert drawn.any()
    assert not (drawn & mask).any()
    assert {tuple(pixel) for pixel in layer[drawn][:, :3].tolist()} == {OUTLINE_RGB}
    assert picture(image, np.zeros_like(mask)).outline is None
    assert picture(image, None).outline is None


def test_large_pictures_become_thumbnails_with_their_masks() -> None:
    image, mask = np.full((300, 600), 80, np.uint8), np.zeros((300, 600), np.bool_)
    mask[100:200, 200:400] = True
    shown = picture(image, mask)
    assert shown.outline is not None
    assert Image.open(io.BytesIO(_bytes(shown.image))).size == (160, 160)
    assert Image.open(io.BytesIO(_bytes(shown.outline))).size == (160, 160)


@pytest.mark.parametrize(
    ("kept", "rejected", "least"), [([0.1, 0.9], [0.5], 0.3), ([1.0], [], None), ([], [2.0, 2.0], 2.0)]
)
def test_histograms_draw_every_sample(kept: list[float], rejected: list[float], least: float | None) -> None:
    verdicts = ["kept"] * len(kept) + ["rejected"] * len(rejected)
    rows = pa.table({"verdict": verdicts, "reasons": [[] for _ in verdicts], "score": [*kept, *rejected]})
    summary = summarize(rows.to_batches, ["score"], {"score": (least, None)})
    svg = charts.histogram("score", summary.histograms["score"], least, None)
    assert svg.count('class="kept"') == len(set(kept))
    assert svg.count('class="rejected"') == len(set(rejected))
    assert svg.count('class="limit"') == (least is not None)
    assert f"{len(kept)} kept, {len(rejected)} rejected" in svg


def test_a_histogram_of_nothing_says_so() -> None:
    rows = pa.table({"verdict": ["failed"], "reasons": [["why"]], "score": pa.array([None], pa.float32())})
    bins = summarize(rows.to_batches, ["score"], {"score": (0.5, None)}).histograms["score"]
    assert "no sample has this score" in charts.histogram("score", bins, 0.5, None)


def test_a_contact_sheet_shows_real_above_synthetic() -> None:
    examples = _examples(table(8))
    sheet = Image.open(io.BytesIO(contact_sheet(examples[:3], examples, columns=4, px=48)))
    assert sheet.width == 4 * 54 + 6
    colours = set(sheet.get_flattened_data())
    assert OUTLINE_RGB in colours
    plain = Image.open(io.BytesIO(contact_sheet([], examples, columns=4, px=48, outlines=False)))
    assert OUTLINE_RGB not in set(plain.get_flattened_data())
    with pytest.raises(ValueError, match="no examples"):
        contact_sheet([], [])


def _bytes(uri: str) -> bytes:
    import base64

    return base64.b64decode(uri.removeprefix("data:image/png;base64,"))
