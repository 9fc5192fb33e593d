"""What every page must keep in a browser: it causes no error, asks for nothing from elsewhere, and can be read."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import ConsoleMessage, Error, Page, Request

WIDE, PHONE = 1280, 390


@contextmanager
def watched(tab: Page, *origins: str) -> Iterator[None]:
    """Whatever is done with the tab causes no error and asks for nothing but files of this machine, or of `origins`."""
    wrong, asked = list[str](), list[str]()

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def failed(error: Error) -> None:
        wrong.append(str(error))

    def requested(request: Request) -> None:
        asked.append(request.url)

    tab.on("console", said)
    tab.on("pageerror", failed)
    tab.on("request", requested)
    yield
    tab.remove_listener("console", said)
    tab.remove_listener("pageerror", failed)
    tab.remove_listener("request", requested)
    assert wrong == [], f"the console says {wrong}"
    assert asked, "the test looked at no page"
    strange = [url[:60] for url in asked if not url.startswith(("data:", "file:", *origins))]
    assert strange == [], f"asked for {strange}"


def least_contrast(page: Page) -> tuple[float, str]:
    """The lowest contrast between text and what is behind it, after WCAG 2, and where."""
    least, where = page.evaluate(_CONTRAST)
    return float(least), str(where)


_CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = rgb => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(rgb[i] / 255), 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  let least = [99, ""];
  for (const e of document.querySelectorAll("main *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent || e.closest("svg")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`];
  }
  return least;
}"""
