"""The catalogue in a real browser: from a folder, and behind a web server below some path."""

import functools
import http.server
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import pytest
from playwright.sync_api import Browser, Page, expect

from storage.store import Store
from tests.tasks.catalogue.stores import LONG
from tests.tasks.report.browsing import PHONE, WIDE, least_contrast, watched

Scheme = Literal["light", "dark"]
INDEX, DEMO = "index.html", "datasets/demo.html"


class Opened(Protocol):
    def __call__(self, page: str, width: int = WIDE, scheme: Scheme = "light") -> Page: ...


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One tab for all tests that may read the clipboard."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    yield context.new_page()
    context.close()


@pytest.fixture
def opened(tab: Page, site: Path) -> Iterator[Opened]:
    """Opens a page from the folder."""

    def open_page(page: str, width: int = WIDE, scheme: Scheme = "light") -> Page:
        tab.set_viewport_size({"width": width, "height": 844})
        tab.emulate_media(color_scheme=scheme, media="screen")
        tab.goto((site / page).as_uri())
        return tab

    with watched(tab):
        yield open_page


@pytest.fixture(scope="module")
def served(store: Store, site: Path) -> Iterator[str]:
    """A web server that knows nothing of sonoforge, with the store below a path; the store's address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = Path(store.url).parent.parent
    answers = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{Path(store.url).relative_to(folder).as_posix()}"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *itertools.product([INDEX, DEMO], [WIDE, PHONE], ["light", "dark"]),
        (f"datasets/{LONG}.html", WIDE, "light"),
        (f"datasets/{LONG}.html", PHONE, "light"),
    ],
)
def test_the_page_fits_and_can_be_read(opened: Opened, name: str, width: int, scheme: Scheme) -> None:
    page = opened(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    least, where = least_contrast(page)
    assert least >= 4.5, f"WCAG 2 asks for 4.5 : 1 between text and what is behind it: {where}"
    small = page.eval_on_selector_all(
        "button, input, nav a, td a, .links a",
        "all => all.filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)",
    )
    assert small == [], "too small for a finger"


def test_links_lead_from_the_index_to_a_report_and_back(opened: Opened) -> None:
    page = opened(INDEX, PHONE)
    page.get_by_role("link", name="demo").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("demo")
    page.get_by_role("link", name="report of version 4").click()
    expect(page.locator("p")).to_have_text("report 4")
    page.go_back()
    page.get_by_label("breadcrumb").get_by_role("link", name="Datasets").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Datasets")


def test_copy_puts_the_code_on_the_clipboard_and_says_so(opened: Opened) -> None:
    page = opened(DEMO)
    page.evaluate("navigator.clipboard.writeText('before')")
    page.get_by_role("button", name="Copy: pandas").click()
    expect(page.get_by_role("status")).to_have_text("Copied: pandas")
    shown = page.get_by_label("pandas: python").text_content()
    assert page.evaluate("navigator.clipboard.readText()") == shown
    assert "import pandas as pd" in str(shown)


def test_behind_a_plain_server_below_any_path_all_is_there_and_copies(tab: Page, served: str) -> None:
    with watched(tab, served):
        tab.goto(f"{served}/catalogue/index.html")
        for image in tab.locator("img").all():
            image.scroll_into_view_if_needed()
        tab.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        tab.get_by_role("link", name="demo").click()
        tab.get_by_role("button", name="Copy: DuckDB").click()
        expect(tab.get_by_role("status")).to_have_text("Copied: DuckDB")
        leads = tab.eval_on_selector_all("main a:not([href^='https:'])", "all => all.map(e => e.href.split('#')[0])")
        for address in set(leads):  # asked for, not opened: of a picture alone, browsers ask for an icon besides
            assert address.startswith(served)
            assert tab.request.get(address).ok, address


def test_without_https_browsers_have_no_clipboard_and_copying_works_too(opened: Opened) -> None:
    page = opened(DEMO)
    page.evaluate("navigator.clipboard.writeText('before')")
    page.evaluate(
        "window.kept = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', { value: undefined }); 0"
    )
    page.get_by_role("button", name="Copy: pandas").click()
    expect(page.get_by_role("status")).to_have_text("Copied: pandas")
    assert page.evaluate("window.kept.readText()") == page.get_by_label("pandas: python").text_content()


def test_where_nothing_copies_the_code_is_selected(opened: Opened) -> None:
    page = opened(DEMO)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    page.get_by_role("button", name="Copy: pandas").click()
    expect(page.get_by_role("status")).to_contain_text("Press Ctrl+C")
    assert page.evaluate("getSelection().toString()") == page.get_by_label("pandas: python").text_content()


def test_without_scripts_the_code_is_there_and_no_dead_button(browser: Browser, site: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto((site / DEMO).as_uri())
    expect(page.get_by_label("pandas: python")).to_contain_text("import pandas as pd")
    expect(page.locator("button").first).to_be_hidden()
    page.goto((site / INDEX).as_uri())
    expect(page.locator("#find")).to_be_hidden()
    expect(page.locator(".card")).to_have_count(3)
    page.close()


def test_the_keyboard_reaches_everything_in_order_and_is_seen(opened: Opened) -> None:
    page = opened(DEMO)
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input, [tabindex=\"0\"]')].filter(e => e.offsetParent).length"
    )
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    tops: list[float] = []
    for _ in range(wanted - 1):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();"
            " return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth), b.top + scrollY]; })()"
        )
        assert seen[0] != "BODY"
        assert seen[1] != "none", f"{seen[0]} has the focus and does not show it"
        assert seen[2] >= 1
        tops.append(seen[3])
    assert len(tops) > 20
    assert max(tops) == tops[-1] or tops[-1] > 0.8 * max(tops)


def test_the_skip_link_leads_past_the_navigation(opened: Opened) -> None:
    page = opened(INDEX)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#find")).to_be_focused()


def test_datasets_are_found_by_what_their_cards_say(opened: Opened) -> None:
    page = opened(INDEX)
    page.get_by_label("find").fill("WARN other")
    expect(page.locator(".card:visible h2")).to_have_text(["other"])
    expect(page.locator("#found")).to_have_text("1 of 3")
    page.get_by_label("find").fill("")
    expect(page.locator(".card:visible")).to_have_count(3)


@pytest.mark.parametrize("name", [INDEX, DEMO])
def test_readers_by_ear_find_landmarks_names_captions_and_an_outline(opened: Opened, name: str) -> None:
    page = opened(name)
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    levels: list[int] = page.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids: list[str] = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    faults = page.evaluate(
        """[
        ...[...document.images].filter(e => !e.alt),
        ...[...document.querySelectorAll('table')].filter(e => !e.caption?.textContent.trim()),
        ...[...document.querySelectorAll('th')].filter(e => !e.scope),
        ...[...document.querySelectorAll('svg')].filter(e =>
            e.getAttribute('role') !== 'img' || !(e.ariaLabel || e.querySelector('title')?.textContent)),
        ...[...document.querySelectorAll('[tabindex="0"], nav, section')].filter(e =>
            !e.getAttribute('aria-label') && !document.getElementById(e.getAttribute('aria-labelledby'))),
        ...[...document.querySelectorAll('nav a[href^="#"]')].filter(e => !document.querySelector(e.hash)),
        ].map(e => e.outerHTML.slice(0, 120))"""
    )
    assert faults == []


def test_a_trend_has_a_title_and_a_description(opened: Opened) -> None:
    page = opened(DEMO)
    charts = page.locator("svg.trend")
    expect(charts).to_have_count(2)
    expect(charts.first.locator("> title")).to_have_text("kid over versions")
    expect(charts.first.locator("> desc")).to_contain_text("5 0.25")
    expect(page.get_by_role("img", name="kid over versions")).to_have_count(1)


def test_a_retracted_version_is_told_from_the_others_by_more_than_colour(opened: Opened) -> None:
    page = opened(DEMO, PHONE)
    row = page.get_by_role("row").filter(has_text="two patients in both splits")
    expect(row).to_contain_text("retracted")
    assert row.locator("th").evaluate("e => getComputedStyle(e).textDecorationLine") == "line-through"
    expect(row.get_by_role("link")).to_have_count(0)
