import pytest

from tasks.report.catalogue import card


def _link(path: str) -> str | None:
    return {"report.html": "../files/ab.html"}.get(path)


def _rendered(text: str) -> str:
    return str(card.render(text, _link))


def test_header_and_title_are_left_to_the_page() -> None:
    assert _rendered("---\nlicense: mit\n---\n\n# demo\n\ntext\n") == "<p>text</p>\n"


def test_headings_stand_below_those_of_the_page() -> None:
    html = _rendered("# demo\n\n## Use\n\n# Again\n\n###### deep\n")
    assert html == "<h3>Use</h3>\n<h3>Again</h3>\n<h6>deep</h6>\n"


def test_a_table_has_a_caption_scopes_and_no_style() -> None:
    html = _rendered("## Files & <more>\n\n| a | n |\n| --- | ---: |\n| x | 1 |\n")
    assert '<caption class="unseen">Files &amp; &lt;more&gt;</caption>' in html
    assert '<th scope="col">a</th>\n<th class="num" scope="col">n</th>' in html
    assert '<td class="num">1</td>' in html
    assert "style=" not in html


@pytest.mark.parametrize(
    ("address", "leads"),
    [
        ("report.html", 'href="../files/ab.html"'),
        ("./report.html", 'href="../files/ab.html"'),
        ("data/train.parquet", None),
        ("../../secret", None),
        ("#top", None),
        ("//example.org/x", None),
        ("https://example.org/x", 'href="https://example.org/x" rel="noopener noreferrer"'),
    ],
)
def test_links_lead_to_what_the_page_knows_or_elsewhere_or_nowhere(address: str, leads: str | None) -> None:
    assert _rendered(f"[it]({address})") == f"<p><a{f' {leads}' if leads else ''}>it</a></p>\n"


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "JAVASCRIPT:x", "data:text/html,x", "vbscript:x", "file:///x"]
)
def test_no_link_runs_anything(address: str) -> None:
    assert "href" not in _rendered(f"[it]({address})")


def test_markup_is_shown_as_text_and_pictures_are_not_fetched() -> None:
    html = _rendered('<script>x</script>\n\n![a](https://example.org/a.png)\n\n```py"><b>\n<i>\n```\n')
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>" not in html
    assert "&lt;i&gt;" in html
