"""The page and the tables of a utility study."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tasks.report import study_page
from tasks.report.curves import Curve, Point, draw
from tasks.report.study import CLAIMS, Estimate, FoldFacts, Study, findings, grid, leakage, markdown, rows

ARMS = ("real", "real + synthetic", "synthetic, then real")
REGIMES = ((10.0, 10.0), (20.0, 20.0), (0.5, 127.0), (1.0, 254.0))


def _estimate(arm: str, regime: float, images: float, value: float, **more: object) -> Estimate:
    about = {"measure": "segmentation, mean Dice", "fold": None, "low": value - 0.03, "high": value + 0.03, "n": 305}
    return Estimate.model_validate(
        {**about, "arm": arm, "regime": regime, "real_images": images, "value": value, "trainings": 5, **more}
    )


def _study(**more: object) -> Study:
    estimates = [
        _estimate(arm, regime, images, 0.45 + 0.05 * step + 0.04 * (2 - step / 2) * place, tested=tested)
        for tested in ("held out", "external")
        for place, arm in enumerate(ARMS)
        for step, (regime, images) in enumerate(REGIMES)
    ]
    estimates += [
        _estimate(arm, regime, images, 0.06 - 0.02 * step, over="real", better=5 - step)
        for arm in ARMS[1:]
        for step, (regime, images) in enumerate(REGIMES)
    ]
    estimates.append(_estimate("synthetic only", 0, 0, 0.6))
    estimates.append(
        Estimate(measure="classification, AUC", arm="real", fold=None, value=None, n=0, regime=1.0, note="one <label>")
    )
    estimates.append(Estimate(measure="KID", arm="kept", fold=None, value=0.1, low=0.0, high=0.2, n=40))
    facts = FoldFacts(
        fold=0, dataset="d", planned=8, kept=6, rejected={"fid": 2}, failed=0, problems=[], published="d@1", critic={}
    )
    content = {"recipe": "breast", "recipe_digest": "0" * 64, "params": {}, "folds": 5, "seeds": 1}
    return Study.model_validate({**content, "facts": [facts], "estimates": estimates, **more})


class _Checker(HTMLParser):
    """Every tag closed in order; nothing fetched from anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in ("meta", "line", "polygon", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    html = study_page.render(_study())
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    assert html.count("<svg") == 3  # Dice held out with gains, external without; no number of the classifier
    assert "one &lt;label&gt;" in html


def test_a_curve_passes_through_its_numbers() -> None:
    points = [Point(10, 0.4, 0.35, 0.45), Point(100, 0.5, None, None), Point(1000, 0.6, 0.58, 0.62)]
    svg = str(draw("Dice", "Dice", [Curve("real", 0, points)]))
    line = re.search(r'polyline class="line c0" points="([^"]+)"', svg)
    assert line is not None
    spots = [tuple(map(float, pair.split(","))) for pair in line[1].split()]
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[2][0] - spots[1][0])  # x is logarithmic
    assert spots[0][1] - spots[1][1] == pytest.approx(spots[1][1] - spots[2][1])
    assert spots[0][1] > spots[2][1]  # more is higher
    band = re.search(r'polygon class="band c0" points="([^"]+)"', svg)
    assert band is not None
    assert len(band[1].split()) == 4  # two points have an interval
    assert "10 real images: 0.400 (0.350 to 0.450)" in svg


def test_an_arm_without_real_images_is_a_level_line_across() -> None:
    curves = [
        Curve("real", 0, [Point(10, 0.4, 0.3, 0.5), Point(254, 0.6, 0.5, 0.7)]),
        Curve("synthetic only", 1, [Point(0, 0.55, 0.5, 0.6)], level=True),
    ]
    level = re.search(r'polyline class="line c1 level" points="([^ ]+) ([^"]+)"', str(draw("t", "u", curves)))
    assert level is not None
    left, right = (tuple(map(float, level[k].split(","))) for k in (1, 2))
    assert left[1] == right[1]
    assert right[0] - left[0] > 300
    with pytest.raises(ValueError, match="no number to draw in 'empty'"):
        draw("empty", "u", [Curve("real", 0, [])])


def test_what_an_arm_gains_is_one_sentence_a_measure_and_what_is_sure_comes_first() -> None:
    worse = _estimate("unlike", 20.0, 20, -0.06, over="real", better=0)
    study = _study()
    told = findings(study.model_copy(update={"estimates": [worse, *study.estimates]}))
    same = "segmentation, mean Dice, held out, {}, over real: "
    assert told == [
        *(
            same.format(arm)
            + "better with 10 real images (+ 0.060, 0.030 to 0.090, good in 5 of 5 trainings), "
            + "with 20 real images (+ 0.040, 0.010 to 0.070, good in 4 of 5 trainings); "
            + "not told apart with 127 real images (+ 0.020, -0.010 to 0.050, good in 3 of 5 trainings), "
            + "with 254 real images (+ 0.000, -0.030 to 0.030, good in 2 of 5 trainings)"
            for arm in ARMS[1:]
        ),
        same.format("unlike") + "worse with 20 real images (- 0.060, -0.090 to -0.030, good in 0 of 5 trainings)",
    ]


def test_a_table_has_a_row_a_regime_and_a_column_an_arm() -> None:
    columns, lines = grid(_study().curves()["segmentation, mean Dice", "held out"])
    assert columns == ["real images", *ARMS, *(f"{arm}, gain" for arm in ARMS[1:]), "synthetic only"]
    assert [line[0] for line in lines] == ["10", "20", "127", "254", "0"]
    assert lines[0][4] == "+ 0.060 (0.030 to 0.090)"
    assert lines[4][1:] == ["", "", "", "", "", "0.600 (0.570 to 0.630)"]


def test_published_gains_stand_beside_those_on_all_real_images() -> None:
    beaten = [row for row in rows(_study()) if row[7]]
    assert [(row[0], row[1], row[2], row[7]) for row in beaten] == [
        ("segmentation, mean Dice", "real + synthetic, gain", "254", "0.026")
    ]
    assert "| 10 | 0.450 (0.420 to 0.480) |" in markdown(_study())


def _of_heads() -> Study:
    sam = "SAM (random weights, boxes from the ground truth)"
    estimates = [
        _estimate(arm, 5.0, 5, value, measure=f"{sam}, mean Dice")
        for arm, value in zip(ARMS, (0.8, 0.84, 0.83), strict=True)
    ]
    error = {"measure": "segmentation, head circumference error, mm", "less_is_better": True}
    estimates += [_estimate(arm, 5.0, 5, value, **error) for arm, value in zip(ARMS, (21.0, 16.5, 18.0), strict=True)]
    estimates.append(_estimate(ARMS[1], 5.0, 5, -4.5, low=-6.0, high=-3.0, over="real", better=4, **error))
    facts = {"dataset": "d", "planned": 8, "kept": 6, "rejected": {}, "failed": 2, "problems": [], "published": "d@1"}
    about = {"critic": {}, "learned_from": 60, "tested": 80, "looked_at": 150}
    return _study(
        estimates=estimates,
        facts=[FoldFacts.model_validate({"fold": fold, **facts, **about}) for fold in (0, 1)],
        subject="head",
        networks=[f"{sam}: a small model"],
        to_beat=CLAIMS["head"],
    )


def test_a_study_of_heads_speaks_of_heads_and_says_what_its_sam_is() -> None:
    study = _of_heads()
    for page in (markdown(study), study_page.render(study)):
        assert "lesion" not in page
        assert "critic" not in page
        assert "SAM (random weights, boxes from the ground truth): a small model." in page
        assert "0.9466" in page
        assert "+0.9466" not in page
        assert "Leakage: among 150 and 150 pictures" in page
    named = [line for line in markdown(study).splitlines() if "SAM" in line and "Wang" not in line]
    assert named
    assert all("random weights, boxes from the ground truth" in line for line in named)


def test_an_error_that_falls_is_better_and_no_gain() -> None:
    study = _of_heads()
    assert findings(study) == [
        "segmentation, head circumference error, mm, held out, real + synthetic, over real: better with 5 real images "
        "(- 4.500, -6.000 to -3.000, good in 4 of 5 trainings)"
    ]
    columns, lines = grid(study.curves()["segmentation, head circumference error, mm", "held out"])
    assert columns[-1] == "real + synthetic, difference"
    assert lines[0][1].startswith("21.0 ")


def test_leaks_are_told_and_the_numbers_called_untrustworthy() -> None:
    study = _of_heads()
    leaking = study.facts[1].model_copy(update={"leaks": {"duplicate": 2}})
    said = leakage(study.model_copy(update={"facts": [study.facts[0], leaking]}))
    assert "found fold 1: duplicate 2. The numbers above are not to be trusted." in said
    assert leakage(_study()) == ""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_error_and_within_its_width(browser: Browser, tmp_path: Path, width: int) -> None:
    (tmp_path / "study.html").write_text(study_page.render(_study()))
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(f"file://{tmp_path}/study.html")
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("svg.curves")
    assert charts.count() == 3
    assert all((box := charts.nth(k).bounding_box()) is not None and box["width"] > 280 for k in range(3))
    page.close()
