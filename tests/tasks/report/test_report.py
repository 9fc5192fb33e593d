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

from storage.images import decode_grey
from tasks import report
from tasks.report import Earlier, Gate, charts
from tasks.report.grid import contact_sheet
from tasks.report.pictures import OUTLINE_RGB, picture
from tasks.report.summary import BINS, Limits, extremes, spread, summarize
from tests.fakes.samples import SCORES, table
from tests.tasks.report.pages import examples, facts, full, originals, score

VOID = {"meta", "img", "input", "rect", "line", "circle", "link", "br"}


class _Checker(HTMLParser):
    """Every tag closed in order; nothing fetched from anywhere, no script or style but the page's own."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"script in {name}"
            assert name != "style", "the page's policy refuses styles in attributes"
            assert name not in ("src", "href") or (value or "").startswith(("data:image/png;base64,", "#"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    checker = _Checker()
    checker.feed(report.render(full(table(60))))
    assert checker.open == []
    assert checker.tags["link"] == checker.tags["iframe"] == 0
    assert (checker.tags["script"], checker.tags["style"]) == (2, 1)
    assert checker.tags["img"] > 30


def test_the_page_says_what_was_planned_kept_rejected_and_failed() -> None:
    rows = table(60)
    html = report.render(facts(rows))
    verdicts = Counter(rows.column("verdict").to_pylist())
    tiles = re.findall(r"<b>(\d+)</b>", html)
    assert tiles[:4] == [str(n) for n in (60, verdicts["kept"], verdicts["rejected"], verdicts["failed"])]
    assert "no place in the tissue for the mask" in html
    assert "Pass: the set meets its gate." in html


def test_a_missed_gate_stands_at_the_top_with_what_would_have_to_change() -> None:
    missed = Gate("fail", ["fid 1.2 > 1.0"], [], ["plan about 90 samples"], {"fid": "≤ 1"})
    html = report.render(facts(table(12), gate=missed))
    assert "Not published: the set misses its gate." in html
    places = [html.index(text) for text in ("<li>fid 1.2 &gt; 1.0</li>", "plan about 90 samples", "<h2")]
    assert places == sorted(places)
    assert '<span class="badge fail">fail</span> <small>≤ 1</small>' in html


def test_a_gate_without_limits_is_not_called_more_than_it_is() -> None:
    said = "The recipe limits no score of the set"
    assert said in report.render(facts(table(6)))
    assert said not in report.render(facts(table(6), gate=Gate(limits={"kid": "≤ 1"})))


@pytest.mark.parametrize(
    ("limits", "warnings", "problems", "badge"),
    [
        ({}, [], [], ""),
        ({"kid": "≤ 1"}, [], [], "pass"),
        ({"kid": "≤ 1"}, ["kid 0.9 is within"], [], "warn"),
        ({"kid": "≤ 1"}, ["kid 0.9 is within"], ["kid 1.2 > 1"], "fail"),
        ({}, ["kid went from 0.1 to 0.2 by selection"], [], "warn"),
        ({"kid": "≤ 1"}, ["kid_infinity is in doubt"], ["7 samples kept"], "pass"),
    ],
)
def test_every_set_score_says_how_it_stands_with_the_gate(
    limits: dict[str, str], warnings: list[str], problems: list[str], badge: str
) -> None:
    html = report.render(facts(table(6), scores=[score("kid")], gate=Gate("warn", problems, warnings, [], limits)))
    assert re.findall(r'class="badge (\w+)"', html) == ([badge] if badge else [])


def test_the_same_rows_make_the_same_page_however_they_are_batched() -> None:
    rows = table(60).combine_chunks()
    several = pa.Table.from_batches(rows.to_batches(max_chunksize=7))
    assert several.column(0).num_chunks > 1
    assert report.render(facts(rows)) == report.render(facts(rows)) == report.render(facts(several))


def test_text_from_elsewhere_cannot_become_markup() -> None:
    evil = "</script></pre><script>alert(1)</script><img src=x>"
    rows = table(6)
    at = rows.schema.get_field_index("background_id")
    rows = rows.set_column(at, "background_id", pa.array([evil] * 6))
    html = report.render(facts(rows, title=evil, recipe_yaml=evil, sources=[evil]))
    assert html.count("<script>") == 1
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_a_shown_row_needs_its_picture() -> None:
    known = facts(table(60))
    with pytest.raises(ValueError, match="demo-000001, whose image was left out"):
        report.render(replace(known, examples=[{**dict(table(2).to_pylist()[1]), "image": None}]))


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


def test_extremes_are_those_of_a_sorted_table_however_it_is_batched() -> None:
    rows = table(300)
    found = extremes(lambda: rows.to_batches(max_chunksize=17), SCORES, 4)
    assert found == extremes(rows.to_batches, SCORES, 4)
    frame = rows.select(["id", "label", "verdict", *SCORES]).to_pandas()
    for name, ends in found.items():
        kept = frame[(frame["verdict"] == "kept") & frame[name].notna()]
        for ids, ascending in zip(ends, (True, False), strict=True):
            ordered = kept.sort_values([name, "id"], ascending=[ascending, True])
            assert ids == list(ordered["id"][ordered.groupby("label").cumcount() < 4])


def test_extremes_leave_out_what_no_kept_sample_has() -> None:
    schema = pa.schema([("id", pa.string()), ("label", pa.string()), ("verdict", pa.string()), ("x", pa.float32())])
    rows = [("1", "a", "kept", None), ("2", "a", "rejected", 3.0), ("3", "b", "kept", float("nan"))]
    made = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    assert extremes(made.to_batches, ["x"], 2) == {}
    assert extremes(made.slice(0, 0).to_batches, ["x"], 2) == {}
    equal = made.set_column(3, "x", pa.array([1.0, 1.0, 1.0], pa.float32()))
    assert extremes(equal.to_batches, ["x"], 2) == {"x": (["1", "3"], ["1", "3"])}


def test_copies_are_named_where_they_may_not_be_shown() -> None:
    rows = table(12)
    near = originals(rows.to_pylist()[:2])
    hidden = [replace(original, image=None, mask=None) for original in near]
    shown = report.render(facts(rows, originals=near))
    withheld = report.render(facts(rows, originals=hidden, withheld="Not shown: the licence forbids it."))
    assert shown.count('class="frame empty"') == 0
    assert withheld.count('class="frame empty"') == 2
    assert len(withheld) < len(shown)
    assert "Not shown: the licence forbids it." in withheld
    assert "benign (1).png" in withheld


def test_a_page_of_heads_says_what_is_meant_by_a_lesion() -> None:
    rows = table(6)
    heads = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(["head"] * len(rows)))
    assert "it means what the mask marks" in report.render(facts(heads))
    assert "it means what the mask marks" not in report.render(facts(rows))


def test_a_declared_original_is_called_so() -> None:
    rows = table(6)
    near = [replace(original, declared="background") for original in originals(rows.to_pylist()[:1])]
    assert "benign (0).png, its declared background" in report.render(facts(rows, originals=near))


def test_a_trend_draws_every_version_and_breaks_where_extractors_differ() -> None:
    svg = charts.trend(
        "fid", [("1", score(extractor="y@0")), ("2", score()), ("3", None), ("4", score()), ("this", score())]
    )
    assert svg.count('class="value"') == svg.count('class="floor"') == 4
    assert svg.count('class="path"') == 1
    assert "1 1.2, 2 1.2, 3 –, 4 1.2, this 1.2" in svg


def test_versions_before_are_told_with_what_their_recipes_changed() -> None:
    first = Earlier(1, 40, 20, [score(value=2.0)], [])
    html = report.render(facts(table(6), history=[first], changes=["seed 1 → 2"]))
    assert html.count('class="trend"') == 1
    assert "20 of 40" in html
    assert "seed 1 → 2" in html
    assert "This is the first version." in report.render(facts(table(6)))


def test_a_score_needs_numbers_in_two_versions_for_a_trend() -> None:
    refused = score(value=None, low=None, high=None)
    html = report.render(facts(table(6), scores=[refused], history=[Earlier(1, 4, 2, [refused], [])]))
    assert 'class="trend"' not in html
    html = report.render(facts(table(6), scores=[score()], history=[Earlier(1, 4, 2, [refused], [])]))
    assert 'class="trend"' not in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Distance in multiples of what real images differ by from each other: fid 4 (3 to 5)."),
        ({"name": "coverage"}, "Share of what real images reach against each other: coverage 4 (3 to 5)."),
        ({"value": None}, "No number: fid; the table below says why."),
        (
            {"p": 0.004, "control": 0.9},
            "fid is 1.2 (1 to 1.5), p = 0.004; 0.3 (0.1 to 0.5) between real images; "
            "0.9 with images damaged on purpose.",
        ),
    ],
)
def test_headlines_say_in_words_what_the_table_says(changes: dict[str, Any], said: str) -> None:
    html = report.render(facts(table(6), scores=[score(**changes)], higher_is_better=frozenset({"coverage"})))
    assert f"<li>{said}</li>" in html


def test_the_page_stays_small_however_large_the_dataset() -> None:
    def shown(size: int) -> int:
        rows = table(size, px=8)
        return report.render(facts(rows)).count("<img")

    assert shown(800) <= shown(400) * 1.1


def test_a_dataset_with_nothing_kept_or_real_still_has_a_report() -> None:
    rows = table(6)
    position = rows.schema.get_field_index("verdict")
    failed = rows.set_column(position, "verdict", pa.array(["failed"] * 6))
    html = report.render(facts(failed, real=[], scores=[], thresholds={}))
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


def test_large_pictures_are_made_smaller_with_their_masks() -> None:
    image, mask = np.full((300, 600), 80, np.uint8), np.zeros((300, 600), np.bool_)
    mask[100:200, 200:400] = True
    shown = picture(image, mask)
    assert shown.outline is not None
    assert Image.open(io.BytesIO(_bytes(shown.image))).size == (256, 256)
    assert Image.open(io.BytesIO(_bytes(shown.outline))).size == (256, 256)


def test_small_pictures_stay_as_they_are_pixel_for_pixel() -> None:
    image = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    mask = image > 200
    shown = picture(image, mask)
    assert shown.area is not None
    assert np.array_equal(decode_grey(_bytes(shown.image)), image)
    area = np.asarray(Image.open(io.BytesIO(_bytes(shown.area))).convert("RGBA"))
    assert np.array_equal(area[..., 3] > 0, mask)


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
    shown = examples(table(8))
    sheet = Image.open(io.BytesIO(contact_sheet(shown[:3], shown, columns=4, px=48)))
    assert sheet.width == 4 * 54 + 6
    colours = set(sheet.get_flattened_data())
    assert OUTLINE_RGB in colours
    plain = Image.open(io.BytesIO(contact_sheet([], shown, columns=4, px=48, outlines=False)))
    assert OUTLINE_RGB not in set(plain.get_flattened_data())
    with pytest.raises(ValueError, match="no examples"):
        contact_sheet([], [])


def _bytes(uri: str) -> bytes:
    import base64

    return base64.b64decode(uri.removeprefix("data:image/png;base64,"))
