import hashlib
import json
import re
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from typer.testing import CliRunner, Result

from flows.commands import versions
from flows.commands.catalogue import app
from storage import channels, keys, retractions
from storage.errors import StoreFullError, StoreUnavailableError
from storage.garbage import collect
from storage.manifests import datasets
from storage.records import Manifest
from storage.sealed import seal
from storage.store import Store
from storage.verifying import verify
from storage.versions import list_versions, open_manifest, publish
from tasks import catalogue
from tasks.catalogue import rebuild, write
from tests.servers.supervisor import Server
from tests.storage import small
from tests.tasks.catalogue.stores import CARD, LONG, damage, version
from tests.tasks.report.pages import score

EVIL = "</script></style><img src=x onerror=alert(1)><script>alert(1)</script>\"'"
OLD = datetime.now(UTC) + timedelta(days=9)
VOID = {"meta", "img", "input", "line", "rect", "circle", "link", "br", "hr"}


class _Read(HTMLParser):
    """Tags in order, none left open; where the page leads, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on") or name == "style"]
        self.scripts += tag == "script"
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if found.get("src"):
            self.loaded.append(str(found["src"]))
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert tag != "link" or str(found["href"]).startswith("data:image/svg+xml,")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def _read(path: Path) -> _Read:
    found = _Read()
    found.feed(path.read_text(encoding="utf-8"))
    assert found.open == []
    return found


def _page(store: Store, name: str = "demo") -> str:
    return store.read(f"catalogue/datasets/{name}.html").decode()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_store_gives_the_same_bytes(store: Store, site: Path) -> None:
    before = _bytes(site)
    assert set(before) == {"index.html", "files.json", *(f"datasets/{name}.html" for name in ("demo", "other", LONG))}
    rebuild(store)
    assert _bytes(site) == before


def test_pages_are_whole_and_every_link_leads_to_a_file_by_a_relative_path(store: Store, site: Path) -> None:
    root = Path(store.url)
    for page in sorted(site.rglob("*.html")):
        read = _read(page)
        assert read.scripts == 1
        for address in [*read.links, *read.loaded]:
            if address.startswith(("#", "https://example.org/")):
                continue  # of the card: somewhere else, and only if clicked
            assert not re.match(r"\w+:|/", address), "a page must work below any path"
            target = (page.parent / address).resolve()
            assert target.is_relative_to(root)
            assert target.is_file(), address


def test_the_index_says_what_there_is_of_each_dataset(store: Store, site: Path) -> None:
    html = (site / "index.html").read_text()
    assert "3 datasets, 7 versions" in html
    assert "version 5," in html
    manifest = open_manifest(store, "demo")
    assert f"{manifest.kept} of {manifest.planned} planned samples" in html
    assert "5 versions, 1 retracted, 1 unreadable" in html
    assert "Apache-2.0" in html
    assert "gate: warn" in html
    assert f"../{next(file.key for file in manifest.files if file.path == 'samples.png')}" in html


def test_a_page_tells_scores_intervals_floors_digests_and_channels(store: Store, site: Path) -> None:
    html = (site / "datasets" / "demo.html").read_text()
    assert open_manifest(store, "demo@5").digest in html
    assert open_manifest(store, "demo@1").digest[:12] in html
    assert "0.25 <small>0.1 to 0.7</small>" in html
    assert "floor 0.3 (0.1 to 0.5)" in html
    assert html.count('<span class="badge channel">production</span>') == 1
    assert "higher is better" in html


def test_a_retracted_version_is_marked_with_its_reason_and_leads_nowhere(store: Store, site: Path) -> None:
    html = (site / "datasets" / "demo.html").read_text()
    row = re.search(r'<tr class="gone"><th scope="row">2</th>.*?</tr>', html, re.DOTALL)
    assert row is not None
    assert "two patients in both splits" in row[0]
    assert '<span class="badge channel">staging</span>' in row[0]
    assert "href" not in row[0]
    for file in open_manifest(store, "demo@2").files:
        if file.path in ("report.html", "samples.png"):
            assert file.key not in html


def test_a_version_that_cannot_be_read_is_listed_and_stops_nothing(store: Store, site: Path) -> None:
    html = (site / "datasets" / "demo.html").read_text()
    assert "3</th>" in html
    assert "unreadable</span>" in html
    assert "is damaged: its content differs from its own seal" in html


def test_a_newest_version_that_cannot_be_read_is_said_where_the_latest_is_shown(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = [version(store, tmp_path, number) for number in (1, 2)]
    damage(store, made[1])
    rebuild(store)
    assert "demo@latest fails: a version after 1 cannot be read" in _page(store)
    assert "<span>latest version</span><b>1</b>" in _page(store)


def test_scores_of_other_extractors_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for number, extractor in ((1, "old@0"), (2, "new@1")):
        more = [score("fid")] if number == 1 else []
        version(store, tmp_path, number, scores=[score("kid", extractor=extractor), *more])
    rebuild(store)
    html = _page(store)
    assert html.count("other extractor</small>") == 1
    assert "<td>–</td>" in html


def test_trends_leave_gaps_where_a_version_is_not_to_be_used(site: Path) -> None:
    html = (site / "datasets" / "demo.html").read_text()
    svgs = re.findall(r'<svg class="trend".*?</svg>', html)
    assert len(svgs) == 2
    assert "<title>kid over versions</title><desc>1 0.45, 2 –, 3 –, 4 0.3, 5 0.25</desc>" in svgs[0]
    assert svgs[0].count('class="value"') == svgs[0].count('class="span"') == 3
    assert svgs[0].count('class="path"') == 1
    assert "<title>5: 0.25 (0.1 to 0.7), floor 0.3</title>" in svgs[0]


def test_a_store_without_versions_says_how_to_make_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "a store")
    index = Path(rebuild(store))
    assert f"sonoforge build demo --store &#39;{store.url}&#39;" in index.read_text()
    assert _read(index).links == ["#content"]


def test_without_a_live_version_the_page_says_so_and_offers_no_code(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    retractions.retract(store, version(store, tmp_path, 1), "wrong")
    damage(store, version(store, tmp_path, 2))
    index = Path(rebuild(store)).read_text()
    assert "No version is to be used." in index
    assert "There is no version to use" in _page(store)
    assert "copy scripted" not in _page(store)


def test_text_from_elsewhere_cannot_become_markup(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    card = f"{EVIL}\n\n[a](javascript:alert(1)) ![p](https://example.org/p.png)\n\n## {EVIL}\n\n|a|\n|-|\n|{EVIL}|\n"
    scores = [score(EVIL, extractor=EVIL, note=EVIL)]
    about = {"recipe": {"description": EVIL}, "licences": [EVIL], "warnings": [EVIL], "scores": scores}
    for number in (1, 2, 3):
        made = version(store, tmp_path, number, card=card, **about)
    retractions.retract(store, made, EVIL)
    rebuild(store)
    for page in (tmp_path / "store" / "catalogue").rglob("*.html"):
        html = page.read_text()
        assert _read(page).scripts == html.count("<script>") == 1
        assert not re.search(r"<img[^>]*(onerror|src=x|example\.org)|href=.javascript|<script>alert", html)
    assert "&lt;script&gt;alert(1)" in _page(store)


def test_names_that_no_dataset_may_have_are_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version(store, tmp_path, 1)
    for name in ("Not a <name>", "builds", "catalogue", "leases"):
        store.put(f"{name}/versions/1/manifest.json", b"{}")
    assert "1 dataset, 1 version," in Path(rebuild(store)).read_text()


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put("half/versions/1/other.json", b"{}")
    assert "Nothing is published" in Path(rebuild(store)).read_text()


def test_damage_beside_the_manifests_is_told_where_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for number in (1, 2):
        version(store, tmp_path, number)
    channels.move(store, "demo", "production", 1)
    store.put(keys.channel_key("demo", "production", 1), b"{}")
    store.put(keys.tombstone_key("demo", 1), b"{}")
    rebuild(store)
    html = _page(store)
    assert "channel production:" in html
    assert re.search(r'1</th><td colspan="5" class="wrap"><span class="badge fail">unreadable', html)


@pytest.mark.parametrize("harm", [b"other", None])
def test_a_card_that_is_not_the_published_one_is_not_shown(tmp_path: Path, harm: bytes | None) -> None:
    store = Store(tmp_path / "store")
    key = next(file.key for file in version(store, tmp_path, 1).files if file.path == "README.md")
    if harm is None:
        store.delete(key)
    else:
        store.put(key, harm)
    rebuild(store)
    assert "There is no card to show." in _page(store)


def test_a_dataset_that_was_removed_by_hand_leaves_the_catalogue(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("demo", "gone"):
        version(store, tmp_path, 1, name)
    rebuild(store)
    store.put("catalogue/robots.txt", b"User-agent: *")
    store.delete_many(store.list("gone"))
    rebuild(store)
    kept = ["catalogue/datasets/demo.html", "catalogue/files.json", "catalogue/index.html", "catalogue/robots.txt"]
    assert store.list("catalogue") == kept


def test_a_list_of_files_that_names_others_deletes_none_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version(store, tmp_path, 1)
    store.put("catalogue/datasets/other.html", b"mine")
    named = ["../demo/versions/1/manifest.json", "datasets/../../x", "robots.txt", "datasets/other.html"]
    store.put("catalogue/robots.txt", b"x")
    store.put("catalogue/files.json", json.dumps({"files": named}).encode())
    rebuild(store)
    assert store.exists("demo/versions/1/manifest.json")
    assert store.exists("catalogue/robots.txt")
    assert not store.exists("catalogue/datasets/other.html")


def test_a_version_published_meanwhile_is_in_the_catalogue_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    version(store, tmp_path, 1)
    written: Callable[..., object] = catalogue._turn  # pyright: ignore[reportPrivateUsage]
    waiting = [2]

    def slow(*arguments: object) -> object:
        found = written(*arguments)
        if waiting:
            version(store, tmp_path, waiting.pop())
        return found

    monkeypatch.setattr(catalogue, "_turn", slow)
    assert "version 2," in Path(rebuild(store)).read_text()


def test_collection_and_verification_leave_the_catalogue_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version(store, tmp_path, 1)
    rebuild(store)
    before = store.list()
    assert datasets(store) == ["demo"]
    found = collect(store, older_than=timedelta(0), builds=True, delete=True, now=OLD)
    assert (found.found, found.kept_back) == ({}, {})
    assert store.list() == before
    assert verify(store, open_manifest(store, "demo"), deep=True) == []
    assert [manifest.dataset for manifest in list_versions(store)] == ["demo"]


def test_no_dataset_may_be_called_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'catalogue' cannot name a dataset"):
        publish(Store(tmp_path / "store"), "catalogue", small.folder(tmp_path / "x", "x"), small.ABOUT)


def test_elsewhere_it_holds_copies_and_needs_nothing_of_the_store(store: Store, tmp_path: Path) -> None:
    written = write(store, str(tmp_path / "site"))
    assert (written.datasets, written.versions, written.unreadable) == (3, 7, 1)
    site = tmp_path / "site"
    for page in sorted(site.rglob("datasets/*.html")):
        for address in [*_read(page).links, *_read(page).loaded]:
            if not address.startswith(("#", "https:")):
                assert (page.parent / address).resolve().is_relative_to(site.resolve())
                assert (page.parent / address).is_file()
    copied = list(site.rglob("files/*"))
    assert len(copied) == 2 * 3, "report and samples of what is live, each content once"
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in copied)
    before = {path: path.stat().st_mtime_ns for path in copied}
    write(store, str(site))
    assert {path: path.stat().st_mtime_ns for path in copied} == before, "what is there is not copied again"


def test_copies_of_what_was_retracted_since_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = [version(store, tmp_path, number) for number in (1, 2)]
    write(store, str(tmp_path / "site"))
    assert len([*tmp_path.glob("site/files/*")]) == 4
    retractions.retract(store, made[1], "patients can be recognised")
    write(store, str(tmp_path / "site"))
    left = {path.stem for path in tmp_path.glob("site/files/*")}
    assert left == {file.sha256 for file in made[0].files if file.path in ("report.html", "samples.png")}


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_report_that_is_lost_or_damaged_is_not_copied(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path / "store")
    key = next(file.key for file in version(store, tmp_path, 1).files if file.path == "report.html")
    store.delete(key) if harm == "lost" else store.put(key, b"other")
    write(store, str(tmp_path / "site"))
    assert [path.suffix for path in tmp_path.glob("site/files/*")] == [".png"]
    assert ".html" not in " ".join(_read(tmp_path / "site" / "datasets" / "demo.html").loaded)


def test_it_is_written_neither_among_the_versions_nor_over_other_peoples_pages(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for where in ("store", "store/demo", "store/catalogue/x"):
        with pytest.raises(ValueError, match=r"lies in the store, among the versions: write to .*catalogue"):
            write(store, str(tmp_path / where))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"holds an index\.html that is no catalogue's"):
        write(store, str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"
    assert write(store, str(tmp_path / "store" / "catalogue")).uri == rebuild(store)


def test_a_store_that_does_not_answer_is_an_error_and_no_empty_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    version(store, tmp_path, 1)
    before = Path(rebuild(store)).read_bytes()

    def away(key: str) -> bytes:
        raise StoreUnavailableError(f"cannot read {key}")

    monkeypatch.setattr(store, "read_small", away)
    with pytest.raises(StoreUnavailableError):
        rebuild(store)
    assert (tmp_path / "store" / "catalogue" / "index.html").read_bytes() == before


def test_the_command_says_where_the_pages_are_and_what_they_could_not_read(store: Store, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, [str(tmp_path / "site"), "--store", store.url])
    assert said.exit_code == 0, said.output
    assert said.stdout == f"{tmp_path}/site/index.html: 7 versions of 3 datasets\n"
    assert "1 of them cannot be read" in said.stderr
    told = CliRunner().invoke(app, [str(tmp_path / "site"), "--store", store.url, "--json"])
    assert json.loads(told.stdout)["unreadable"] == 1


def test_a_promotion_and_a_retraction_are_in_the_catalogue_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for number in (1, 2):
        version(store, tmp_path, number)

    def run(*words: str) -> Result:
        done = CliRunner().invoke(versions.app, [*words, "--store", store.url])
        assert done.exit_code == 0, (done.output, done.exception)
        return done

    run("promote", "demo@2", "early")
    assert not store.exists("catalogue/index.html"), "who has no catalogue gets none"
    rebuild(store)
    run("promote", "demo@1", "production")
    assert '<span class="badge channel">production</span>' in _page(store)
    run("retract", "demo@2", "--reason", "two patients in both splits")
    assert "two patients in both splits" in _page(store)
    assert "<span>latest version</span><b>1</b>" in _page(store)


def test_a_retraction_stands_where_the_catalogue_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    rebuild(store)
    made = version(store, tmp_path, 1)

    def full(*arguments: object) -> None:
        raise StoreFullError("no space left")

    monkeypatch.setattr("tasks.catalogue.rebuild", full)
    done = CliRunner().invoke(versions.app, ["retract", "demo@1", "--reason", "bad", "--store", store.url])
    assert done.exit_code == 0
    assert f"(no space left): run `sonoforge catalogue {store.url}/catalogue --store {store.url}`" in done.stderr
    assert retractions.find(store, made.dataset, made.version) is not None


def test_a_hundred_versions_are_drawn_with_the_last_sixty_in_the_trend(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = version(store, tmp_path, 1)
    for number in range(2, 101):
        content = first.model_dump() | {"version": number, "digest": f"{number:064x}"}
        store.put(keys.manifest_key("demo", number), seal(Manifest.model_validate(content)))
    rebuild(store)
    svg = re.findall(r'<svg class="trend dense".*?</svg>', _page(store))[0]
    assert svg.count('class="value"') == 60
    labels = re.findall(r'text-anchor="middle">(\d+)<', svg)
    assert labels[-1] == "100"
    assert len(labels) <= 11
    assert _page(store).count('<tr><th scope="row">') >= 100


def test_behind_a_bucket_pages_are_shown_and_lead_on(
    moto_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    store = Store(f"s3://{moto_server.bucket}/{tmp_path.name}", s3_additional_kwargs={"ACL": "public-read"})
    version(store, tmp_path, 1)
    index = rebuild(store)
    assert index == f"{store.url}/catalogue/index.html"
    base = index.replace("s3://", f"{moto_server.endpoint}/")
    kinds: dict[str, str] = {}

    def fetch(address: str) -> str:
        with urllib.request.urlopen(address, timeout=30) as answer:
            kinds[address.rsplit(".", 1)[-1]] = answer.headers["Content-Type"]
            return answer.read().decode("utf-8", "replace")

    page = _Read()
    page.feed(fetch(base))
    address = urljoin(base, next(link for link in page.links if link.startswith("datasets/")))
    dataset = _Read()
    html = fetch(address)
    dataset.feed(html)
    for link in {urldefrag(link).url for link in [*dataset.links, *dataset.loaded]} - {""}:
        if not link.startswith("https:"):
            fetch(urljoin(address, link))
    assert kinds == {
        "html": "text/html; charset=utf-8",
        "png": "image/png",
        "md": "text/markdown; charset=utf-8",
        "json": "application/json",
    }
    assert f"--store {store.url}" in html
    assert CARD.splitlines()[-1].split("|")[1].strip() in html
