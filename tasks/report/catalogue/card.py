"""A dataset card as HTML: Markdown of whoever published it, of which nothing can run or fetch anything."""

import re
from collections.abc import Callable, Sequence

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape

LONGEST = 200_000
"""Characters of a card that is shown; a longer one is only linked to."""

_HEADER = re.compile(r"\A---\n.*?\n---\s*\n", re.DOTALL)
_ELSEWHERE = re.compile(r"(https?://|mailto:)", re.IGNORECASE)

Link = Callable[[str], str | None]
"""Where a file of the version is, seen from the page, by its path; None where the page does not lead there."""


def render(text: str, link: Link) -> Markup:
    """The card without its YAML header and its title, its headings below that of its section.

    HTML in it is shown as text, and pictures are left out: they could be fetched from anywhere.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(_HEADER.sub("", text))
    if [token.type for token in tokens[:1]] == ["heading_open"] and tokens[0].tag == "h1":
        tokens = tokens[3:]
    _fit(tokens, link)
    return Markup(_Page().render(tokens, markdown.options, {}))


class _Page(RendererHTML):
    """Tables and code as the pages have them: that scroll by themselves, and have names for readers by ear."""

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        caption = escape(tokens[idx].meta["caption"])
        return (
            f'<div class="wide" role="region" tabindex="0" aria-label="table: {caption}"><table>'
            f'<caption class="unseen">{caption}</caption>\n'
        )

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>\n"

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        kind, text = (tokens[idx].info.split() or ["code"])[0], tokens[idx].content
        return f'<pre tabindex="0" role="region" aria-label="{escape(kind)}"><code>{escape(text)}</code></pre>\n'

    code_block = fence


def _fit(tokens: Sequence[Token], link: Link) -> None:
    """Change tokens so that they fit into the page: its headings, its links, its style."""
    heading = "the card"
    for place, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, max(3, int(token.tag[1:]) + 1))}"
            heading = tokens[place + 1].content if token.type == "heading_open" else heading
        elif token.type == "table_open":
            token.meta["caption"] = heading
        elif token.type in ("th_open", "td_open"):
            style = token.attrs.pop("style", "")  # the page's policy refuses styles in attributes
            token.attrs |= {"class": "num"} if "right" in str(style) else {}
            token.attrs |= {"scope": "col"} if token.type == "th_open" else {}
        for child in token.children or []:
            if child.type == "link_open":
                _aim(child, link)


def _aim(token: Token, link: Link) -> None:
    """Let a link lead where it would from the version's own folder, or nowhere."""
    address = str(token.attrs.pop("href", ""))
    token.attrs.pop("title", None)
    if _ELSEWHERE.match(address):
        token.attrs |= {"href": address, "rel": "noopener noreferrer"}
    elif (found := link(address.removeprefix("./"))) is not None:
        token.attrs["href"] = found
