"""The page in a real browser: what a reviewer clicks, types and sees. It needs no network and causes no error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tasks import report
from tests.fakes.samples import table
from tests.tasks.report.browsing import PHONE, WIDE, least_contrast, watched
from tests.tasks.report.pages import EACH, full

Scheme = Literal["light", "dark"]
ROWS = table(70, px=32)


class Opened(Protocol):
    def __call__(self, width: int = WIDE, scheme: Scheme = "light") -> Page: ...


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.render(full(ROWS)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One tab for all tests: a process for each would cost more than the tests."""
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture
def opened(tab: Page, file: Path) -> Iterator[Opened]:
    """Opens the page anew; whatever is done with it must cause no error and ask for nothing from elsewhere."""

    def open_page(width: int = WIDE, scheme: Scheme = "light") -> Page:
        tab.set_viewport_size({"width": width, "height": 844})
        tab.emulate_media(color_scheme=scheme, media="screen")
        tab.goto(file.as_uri())
        return tab

    with watched(tab):
        yield open_page


def _shown(page: Page, where: str, key: str = "id") -> list[str]:
    """What the tiles that can be seen are marked with."""
    script = "(tiles, key) => tiles.filter(tile => tile.offsetParent).map(tile => tile.dataset[key])"
    found: list[str] = page.eval_on_selector_all(f"{where} .tile", script, key)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_the_page_fits_and_can_be_read(opened: Opened, width: int, scheme: Scheme) -> None:
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    least, where = least_contrast(page)
    assert least >= 4.5, f"WCAG 2 asks for 4.5 : 1 between text and what is behind it: {where}"
    small = page.eval_on_selector_all(
        "button, select, summary, nav a, .masks label",
        "all => all.filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)",
    )
    assert small == [], "too small for a finger"
    page.locator("#spread-view button.frame").first.click()
    assert page.evaluate("document.querySelector('#viewer').scrollWidth <= innerWidth")


def test_the_verdict_comes_first(opened: Opened) -> None:
    page = opened(PHONE)
    box = page.locator(".verdict").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 844, "on a phone too, without scrolling"
    expect(page.locator(".verdict")).to_contain_text("Pass with warnings")
    expect(page.locator(".verdict")).to_contain_text("kid would be within its limit")
    badges = page.locator(".scores .badge").all_text_contents()
    assert badges == ["pass", "warn"]


def test_masks_are_outlined_filled_or_gone(opened: Opened) -> None:
    page = opened()
    outline, area = page.locator("#spread-view .outline").first, page.locator("#spread-view .area").first
    expect(outline).to_be_visible()
    expect(area).to_be_hidden()
    page.get_by_label("filled").check()
    expect(area).to_be_visible()
    page.get_by_label("none").check()
    expect(outline).to_be_hidden()
    expect(area).to_be_hidden()


@pytest.mark.parametrize(("score", "worst_is_low"), [("segmenter_dice", True), ("lesion_contrast", False)])
def test_worst_and_best_by_a_score_are_those_of_all_kept_samples(
    opened: Opened, score: str, worst_is_low: bool
) -> None:
    frame = ROWS.select(["id", "label", "verdict", score]).to_pandas()
    frame = frame[(frame["verdict"] == "kept") & np.isfinite(frame[score])]
    page = opened()
    for end in ("worst", "best"):
        ascending = (end == "worst") == worst_is_low
        ordered = frame.sort_values([score, "id"], ascending=[ascending, True], kind="stable")
        expected = ordered[ordered.groupby("label").cumcount() < EACH]
        page.get_by_label("show").first.select_option(f"{end} {score}")
        assert _shown(page, "#extreme-view") == list(expected["id"])
        shown = page.locator("#extreme-view figcaption").first
        expect(shown).to_contain_text(f"{float(expected[score].iloc[0]):.3g}")
        assert _shown(page, "#spread-view") == []
    page.locator("#label").select_option("malignant")
    assert _shown(page, "#extreme-view") == list(expected["id"][expected["label"] == "malignant"])
    page.get_by_label("show").first.select_option("")
    assert set(_shown(page, "#spread-view", "label")) == {"malignant"}


def test_a_picture_opens_large_and_the_keyboard_leads_on(opened: Opened) -> None:
    page = opened()
    viewer, samples = page.locator("#viewer"), page.locator("#spread-view .tile[data-id] button.frame")
    first = samples.nth(2)
    small = first.bounding_box()
    first.focus()
    page.keyboard.press("Enter")
    expect(viewer).to_be_visible()
    large = viewer.locator(".window img").first.bounding_box()
    assert small is not None
    assert large is not None
    assert large["width"] > 3 * small["width"]
    title = page.locator("#viewer-title")
    own, following = (samples.nth(place).get_attribute("data-caption") for place in (2, 3))
    expect(title).to_have_text(str(own))
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(str(following))
    page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(str(own))
    page.keyboard.press("m")
    expect(viewer.locator(".area").first).to_be_visible()
    page.keyboard.press("+")
    expect(page.locator("#zoom")).to_have_text("2×")
    grown = viewer.locator(".window img").first.bounding_box()
    assert grown is not None
    assert grown["width"] == pytest.approx(2 * large["width"], rel=0.05)
    inner = viewer.locator(".window").first
    x, y = (float(str(samples.nth(2).get_attribute(f"data-{axis}"))) for axis in "xy")
    middle = inner.evaluate("w => [w.scrollLeft + w.clientWidth / 2, w.scrollTop + w.clientHeight / 2]")
    sides = inner.evaluate("w => [w.scrollWidth, w.scrollHeight]")
    assert middle == pytest.approx([x * sides[0], y * sides[1]], abs=2), "the lesion is in the middle"
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(samples.nth(3)).to_be_focused()


def test_the_viewer_tells_scores_limits_and_lineage(opened: Opened) -> None:
    page = opened()
    synthetic = page.locator("#spread-view .tile[data-id]").first
    row = next(row for row in ROWS.to_pylist() if row["id"] == synthetic.get_attribute("data-id"))
    synthetic.locator("button").click()
    told = page.locator("#viewer .facts").text_content() or ""
    assert f"segmenter_dice{row['segmenter_dice']:.3g} (at least 0.500)" in told
    assert f"background_id{row['background_id']}" in told
    assert f"seed{row['seed']}" in told


def test_copies_stand_beside_their_originals_in_the_viewer_too(opened: Opened) -> None:
    page = opened(PHONE)
    captions = page.locator(".pair figcaption").all_text_contents()
    assert [caption.startswith("too near") for caption in captions] == [True, False, False]
    page.locator(".pair button.frame").nth(1).click()
    left, right = (page.locator("#viewer .window").nth(side).bounding_box() for side in (0, 1))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] < right["x"]
    expect(page.locator("#viewer .frames")).to_contain_text("training image benign (0).png")


def test_rejected_samples_are_found_by_their_reason(opened: Opened) -> None:
    page = opened()
    everything = _shown(page, "#refused")
    page.locator("#cause").select_option("lesion_contrast")
    some = _shown(page, "#refused")
    assert 0 < len(some) < len(everything)
    reasons = {row["id"]: row["reasons"][0] for row in ROWS.to_pylist() if row["reasons"]}
    assert {reasons[id].split()[0] for id in some} == {"lesion_contrast"}


def test_without_scripts_everything_is_there_and_masks_still_switch(browser: Browser, file: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    expect(page.locator("#others .tile").first).to_be_visible()
    expect(page.locator("#show")).to_be_hidden()
    page.get_by_label("none").check()
    expect(page.locator("#spread-view .outline").first).to_be_hidden()
    page.close()


def test_it_prints_without_controls(opened: Opened) -> None:
    page = opened()
    page.emulate_media(media="print")
    expect(page.locator(".masks")).to_be_hidden()
    expect(page.locator(".verdict")).to_be_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator("#recipe ~ details pre")).to_be_visible()


def test_every_control_has_a_name_and_every_id_is_one_element(opened: Opened) -> None:
    page = opened()
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.locator("#spread-view button.frame").first.click()
    nameless = page.eval_on_selector_all(
        "button, select, input",
        "all => all.filter(e => !(e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent.trim() "
        "|| e.querySelector('img')?.alt)).map(e => e.outerHTML)",
    )
    assert nameless == []
    missing = page.eval_on_selector_all("nav a", "all => all.filter(a => !document.querySelector(a.hash)).length")
    assert missing == 0
