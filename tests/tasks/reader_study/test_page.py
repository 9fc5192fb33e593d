"""The page in a real browser, from the first key to the score. It needs no network and causes no error."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect
from sklearn.metrics import roc_auc_score

from tasks.blind import BlindParams, blind
from tasks.reader_study import Key
from tasks.score_readers import score
from tests.tasks.reader_study.studies import store_with_version
from tests.tasks.report.browsing import PHONE, WIDE, least_contrast, watched

SHOWINGS = 14
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


class Study:
    """A page, its key, and which picture is which."""

    def __init__(self, folder: Path) -> None:
        store = store_with_version(folder)
        self.page = folder / "study.html"
        self.key_file = folder / "study.key.json"
        blind("demo@1", store.url, [], self.page, BlindParams(images=6, repeats=2, seed=1))
        self.key = Key.model_validate_json(self.key_file.read_text())
        data = re.search(r'id="page">(.*?)</script>', self.page.read_text(), re.DOTALL)
        assert data is not None
        self.held = json.loads(data[1])
        self.ids = {text: id for id, text in self.held["pictures"].items()}
        self.truth = {one.id: one.truth for one in self.key.pictures}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


Opened = Callable[..., "Reader"]


class Reader:
    """Somebody in front of the page."""

    def __init__(self, page: Page, study: Study) -> None:
        self.page, self.study = page, study

    def start(self, name: str = "Ann") -> None:
        self.page.get_by_label("Name or initials").fill(name)
        self.page.locator("#start").press("Enter")
        self.ready(1)

    def ready(self, number: int) -> None:
        """Wait until picture `number` may be answered."""
        expect(self.page.locator("#said")).to_have_text(
            re.compile(rf"^Picture {number} of {SHOWINGS}(, answered \d)?$")
        )

    def in_view(self) -> str:
        """Id of the picture."""
        source = self.page.locator("#picture").get_attribute("src")
        assert source is not None
        return self.study.ids[source.removeprefix("data:image/png;base64,")]

    def read(self, say: Callable[[str], int], first: int = 1, last: int = SHOWINGS, by: str = "keys") -> list[Any]:
        """Answer pictures `first` to `last`; what was in view and what was said."""
        said: list[Any] = []
        for number in range(first, last + 1):
            self.ready(number)
            id = self.in_view()
            said.append((id, say(id)))
            if by == "keys":
                self.page.keyboard.press(str(say(id)))
            else:
                self.page.locator(".answer").nth(say(id) - 1).click()
        return said

    def save(self, folder: Path, where: str = "#end") -> Path:
        with self.page.expect_download() as download:
            self.page.locator(f"{where} .save").click()
        file = folder / download.value.suggested_filename
        download.value.save_as(file)
        return file


@pytest.fixture
def opened(browser: Browser, study: Study) -> Iterator[Opened]:
    """Opens the page in a browser that knows nothing of it; whatever is done must cause no error and no request."""
    with ExitStack() as closing:

        def open_page(width: int = WIDE, script: str = "") -> Reader:
            context = browser.new_context(viewport={"width": width, "height": 844})
            closing.callback(context.close)
            if script:
                context.add_init_script(script)
            page = context.new_page()
            closing.enter_context(watched(page, "blob:"))
            page.goto(study.page.as_uri())
            return Reader(page, study)

        yield open_page


def test_random_answers_with_a_closed_tab_between_score_as_scikit_learn_says_and_are_no_better_than_chance(
    opened: Opened, study: Study, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    opinion = {id: int(rng.integers(1, 6)) for id in sorted(study.truth)}
    reader = opened()
    reader.start("Ann Ä.")
    said = reader.read(opinion.__getitem__, last=6)
    reader.ready(7)
    upcoming = reader.in_view()
    context = reader.page.context
    reader.page.close()
    reader.page = context.new_page()
    reader.page.goto(study.page.as_uri())
    expect(reader.page.locator("#kept")).to_have_text(f"6 of {SHOWINGS} are answered by Ann Ä..")
    reader.page.locator("#start").press("Enter")
    reader.ready(7)
    assert reader.in_view() == upcoming
    said += reader.read(opinion.__getitem__, first=7)
    expect(reader.page.get_by_role("heading", name=f"All {SHOWINGS} answered")).to_be_focused()
    file = reader.save(tmp_path)
    assert file.name == f"reader-study-{study.key.study()}-Ann-A.json"
    found = json.loads(file.read_text())
    assert [(one["id"], one["answer"]) for one in found["answers"]] == said
    found = score([file], study.key_file)
    expected = roc_auc_score(
        [study.truth[id] == "synthetic" for id in sorted(opinion)], [opinion[id] for id in sorted(opinion)]
    )
    assert found.auc.value == pytest.approx(expected, abs=1e-12)
    assert (found.auc.low or 1) <= 0.5 <= (found.auc.high or 0)
    assert found.readers[0].reader == "Ann Ä."
    assert found.readers[0].same is not None
    assert found.readers[0].same.found == 2


def test_who_knows_scores_one_by_mouse_and_needs_no_name(opened: Opened, study: Study, tmp_path: Path) -> None:
    reader = opened()
    reader.start("")
    reader.read(lambda id: 5 if study.truth[id] == "synthetic" else 1, by="mouse")
    found = score([reader.save(tmp_path)], study.key_file)
    assert found.auc.value == 1
    assert found.readers[0].reader.startswith("reader ")
    assert (found.readers[0].accuracy.found, found.readers[0].accuracy.of) == (12, 12)
    assert 0.1 < found.readers[0].median_s < 30


def test_every_reader_has_an_order_of_their_own_and_second_showings_come_late(opened: Opened, study: Study) -> None:
    orders: list[list[str]] = []
    for _ in range(3):
        reader = opened()
        reader.start()
        kept = f"localStorage.getItem('sonoforge-reader-study-{study.key.study()}')"
        orders.append(json.loads(reader.page.evaluate(kept))["order"])
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order) == sorted([*study.truth, *study.key.again])
        for id in study.key.again:
            assert len(order) - 1 - order[::-1].index(id) - order.index(id) > len(study.truth) // 2


def test_a_slip_is_mended_by_going_back_and_the_arrows_lead_no_further_than_one_was(
    opened: Opened, tmp_path: Path
) -> None:
    reader = opened()
    reader.start()
    expect(reader.page.locator("#back")).to_be_disabled()
    reader.page.keyboard.press("ArrowRight")
    reader.ready(1)
    reader.read(lambda _: 2, last=2)
    reader.ready(3)
    third = reader.in_view()
    reader.page.keyboard.press("ArrowLeft")
    reader.ready(2)
    expect(reader.page.locator(".answer[aria-pressed=true]")).to_have_text(re.compile("2 probably real"))
    reader.page.keyboard.press("4")
    reader.ready(3)
    assert reader.in_view() == third
    expect(reader.page.locator(".answer[aria-pressed=true]")).to_have_count(0)
    reader.page.locator("#back").click()
    reader.ready(2)
    reader.page.locator("#forth").click()
    reader.ready(3)
    answers = json.loads(reader.save(tmp_path, "#reading").read_text())["answers"]
    assert [(one["answer"], one["changes"]) for one in answers] == [(2, 0), (4, 1)]


def test_a_key_struck_twice_answers_once(opened: Opened) -> None:
    reader = opened()
    reader.start()
    reader.page.keyboard.press("1")
    reader.page.keyboard.press("1")
    reader.ready(2)
    expect(reader.page.locator("#progress")).to_have_attribute("max", str(SHOWINGS))
    assert reader.page.locator("#progress").evaluate("bar => bar.value") == 1


def test_the_clock_stops_while_nobody_can_see_the_page(opened: Opened, tmp_path: Path) -> None:
    reader = opened()
    reader.start()
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); document.dispatchEvent(new Event('visibilitychange')); }"  # noqa: E501
    reader.page.evaluate(hide, True)
    reader.page.wait_for_timeout(2000)
    reader.page.evaluate(hide, False)
    reader.page.wait_for_timeout(200)
    reader.page.keyboard.press("3")
    reader.ready(2)
    (answer,) = json.loads(reader.save(tmp_path, "#reading").read_text())["answers"]
    assert 200 <= answer["ms"] < 2000


def test_an_unfinished_file_goes_on_elsewhere_and_is_not_scored(opened: Opened, study: Study, tmp_path: Path) -> None:
    first = opened()
    first.start("Bob")
    first.read(lambda _: 3, last=3)
    first.ready(4)
    file, upcoming = first.save(tmp_path, "#reading"), first.in_view()
    assert file.name.endswith("-unfinished.json")
    with pytest.raises(ValueError, match=f"is unfinished: 3 of {SHOWINGS} answered"):
        score([file], study.key_file)
    second = opened()
    (tmp_path / "other.json").write_text('{"format": "something"}')
    content = json.loads(file.read_text())
    (tmp_path / "foreign.json").write_text(json.dumps(content | {"study": "0" * 16}))
    (tmp_path / "broken.json").write_text(json.dumps(content | {"answers": [None]}))
    content["answers"][0]["answer"] = 5
    (tmp_path / "edited.json").write_text(json.dumps(content))
    trouble = second.page.get_by_role("alert")
    for name, words in (
        ("other.json", "holds no answers that this page saved"),
        ("foreign.json", "holds answers to another study (0000000000000000)"),
        ("broken.json", "is damaged: it does not hold what this page saves"),
        ("edited.json", "was changed or cut off after it was saved"),
    ):
        second.page.get_by_label("Go on from a saved file").set_input_files(tmp_path / name)
        expect(trouble).to_contain_text(words)
    second.page.get_by_label("Go on from a saved file").set_input_files(file)
    expect(second.page.locator("#kept")).to_have_text(f"3 of {SHOWINGS} are answered by Bob.")
    expect(trouble).to_be_hidden()
    second.page.locator("#start").click()
    second.ready(4)
    assert second.in_view() == upcoming


def test_another_reader_starts_over_and_unsaved_answers_are_not_lost_unasked(opened: Opened) -> None:
    reader = opened()
    reader.start("Ann")
    reader.read(lambda _: 1, last=2)
    reader.ready(3)
    reader.page.reload()
    asked: list[str] = []

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    reader.page.once("dialog", refuse)
    reader.page.get_by_role("button", name="Start over as another reader").click()
    assert asked == ["The answers in this browser were not saved to a file. Discard them?"]
    expect(reader.page.locator("#kept")).to_contain_text("2 of")
    reader.page.once("dialog", lambda dialog: dialog.accept())
    reader.page.get_by_role("button", name="Start over as another reader").click()
    expect(reader.page.locator("#kept")).to_be_hidden()
    expect(reader.page.get_by_label("Name or initials")).to_have_value("")


def test_where_the_browser_keeps_nothing_the_page_says_so_and_works(opened: Opened, tmp_path: Path) -> None:
    reader = opened(script="Storage.prototype.setItem = () => { throw new DOMException('full'); };")
    reader.start()
    expect(reader.page.get_by_role("alert")).to_contain_text("save the answers before you close the page")
    reader.read(lambda _: 1, last=2)
    reader.ready(3)
    assert len(json.loads(reader.save(tmp_path, "#reading").read_text())["answers"]) == 2


def test_zoom_brightness_and_contrast_change_what_is_seen_and_answer_nothing(opened: Opened) -> None:
    reader = opened()
    reader.start()
    picture = reader.page.locator("#picture")
    small = picture.bounding_box()
    reader.page.keyboard.press("+")
    expect(reader.page.locator("#zoom")).to_have_text("2×")
    large = picture.bounding_box()
    assert small is not None
    assert large is not None
    assert large["width"] == pytest.approx(2 * small["width"], rel=0.06)
    reader.page.get_by_label("brightness").press("ArrowRight")
    reader.page.get_by_label("contrast").press("ArrowLeft")
    assert picture.evaluate("image => getComputedStyle(image).filter") == "brightness(1.01) contrast(0.99)"
    reader.page.locator(".window").press("ArrowLeft")
    reader.ready(1)
    assert reader.page.locator("#progress").evaluate("bar => bar.value") == 0
    reader.page.keyboard.press("5")
    reader.ready(2)
    expect(reader.page.locator("#zoom")).to_have_text("1×")


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_view_fits_can_be_read_and_names_its_controls(opened: Opened, width: int) -> None:
    reader = opened(width)
    page = reader.page

    def looks_right() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            least, where = least_contrast(page)
            assert least >= 4.5, where
        controls = page.locator("button:visible, input:visible")
        names = controls.evaluate_all(
            "all => all.map(e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent.trim())"
        )
        assert all(names)
        small = page.locator("button:visible").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
        assert min(small) >= 40, "for a finger"

    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    expect(page.get_by_text("Not to be passed on.").first).to_be_visible()
    looks_right()
    reader.start()
    expect(page.get_by_role("heading", name="Picture 1 of 14")).to_be_focused()
    expect(page.get_by_role("img", name="picture 1 of 14")).to_be_visible()
    looks_right()
    box = page.locator(".scale").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 844, "picture and answers at once, without scrolling"
    if width == WIDE:
        return
    reader.read(lambda _: 1)
    expect(page.get_by_text("Not to be passed on.").last).to_be_visible()
    looks_right()


def test_without_scripts_the_page_says_what_it_needs(browser: Browser, study: Study) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(study.page.as_uri())
    expect(page.get_by_text("This page needs JavaScript")).to_be_visible()
    context.close()
