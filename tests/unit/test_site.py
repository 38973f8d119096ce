"""The static site: every notebook a page, nothing missing, nothing from elsewhere."""

import base64
import functools
import re
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser import Browser, find_browser
from bs4 import BeautifulSoup

from utils import course
from utils.course import site

NOTEBOOKS = course.find_notebooks()
NAMES = [path.stem for path in NOTEBOOKS]
# MyST's reader of links still uses a name that Sphinx 11 will take away.
pytestmark = pytest.mark.filterwarnings("ignore:.*MystReferenceResolver.app")
# What a browser fetches by itself, as against a link that the reader follows.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site.build(folder)
    return folder


@pytest.fixture(scope="module")
def pages(built):
    """Each page of the site, parsed: its path within the site -> its elements."""
    return {
        path.relative_to(built).as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in sorted(built.rglob("*.html"))
    }


def page_of(pages, path):
    return pages[f"notebooks/{path.stem}.html"]


def squeezed(text):
    return re.sub(r"\s+", "", text)


def test_every_notebook_has_a_page_and_the_sidebar_lists_them_in_order(pages):
    links = pages["index.html"].select(".sidebar-tree a")
    first = [a["href"] for a in links][: len(NAMES)]
    assert first == [f"notebooks/{name}.html" for name in NAMES]
    assert [a.get_text()[:2] for a in links][: len(NAMES)] == [n[:2] for n in NAMES]
    for before, after in pairwise(NAMES):
        following = pages[f"notebooks/{before}.html"].select_one("a.next-page")
        assert following["href"] == f"{after}.html"


def test_the_front_page_is_the_readme_and_its_table_leads_to_the_pages(pages):
    front = pages["index.html"]
    assert front.h1.get_text().startswith("Beneath the API")
    table = {a.get_text(): a["href"] for a in front.select("article table a")}
    for name in NAMES:
        assert table[name] == f"notebooks/{name}.html"
    prose = {a.get_text(): a["href"] for a in front.select("article a[href]")}
    assert prose["utils/tidewater.py"] == "utils/tidewater.py.html"
    assert "def grade" in pages["utils/tidewater.py.html"].get_text()
    assert front.select_one('article img[src="_images/ladder.png"]')["alt"]


def test_no_link_leads_to_nothing_and_nothing_comes_from_another_host(built, pages):
    anchors = {
        name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()
    }
    seen, missing, foreign = 0, [], []
    for name, page in pages.items():
        for tag in page.select("[href], [src]"):
            key = "href" if tag.has_attr("href") else "src"
            url = urlsplit(tag[key])
            if url.scheme or url.netloc:
                if FETCHED.get(tag.name) == key and url.scheme != "data":
                    foreign.append((name, tag[key]))
                continue
            seen += 1
            target = built / name
            if url.path:
                target = (target.parent / unquote(url.path)).resolve()
            if not target.is_file() or not target.is_relative_to(built):
                missing.append((name, tag[key]))
            elif url.fragment and target.suffix == ".html":
                within = anchors[target.relative_to(built).as_posix()]
                if unquote(url.fragment) not in within:
                    missing.append((name, tag[key]))
    assert missing == [] and foreign == []
    assert seen > 20 * len(pages)
    for style in built.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?\s*(https?:)?//", text), style


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_page_shows_all_code_all_outputs_and_every_figure(path, built, pages):
    page = page_of(pages, path)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [squeezed(c.get_text()) for c in page.select("div.cell_input")]
    assert shown == [squeezed(cell.source) for cell in code]
    printed = squeezed("".join(o.get_text() for o in page.select("div.cell_output")))
    pictures = []
    for output in (output for cell in code for output in cell.outputs):
        data = output.get("data", {})
        if "image/png" in data:
            pictures.append(base64.b64decode(data["image/png"]))
        elif "text/html" in data:
            table = BeautifulSoup(data["text/html"], "html.parser")
            for cell in table.select("th, td"):
                assert squeezed(cell.get_text()) in printed
        else:
            assert squeezed(output.get("text") or data["text/plain"]) in printed
    images = page.select("div.cell_output img")
    files = [(built / "notebooks" / image["src"]).read_bytes() for image in images]
    assert pictures and files == pictures
    questions = [image["alt"] for image in images]
    assert all(re.fullmatch(r"Figure: .+\?", one) for one in questions), questions
    headings = re.findall(
        r"^## (.+)$", "\n".join(c.source for c in notebook.cells), re.M
    )
    told = {h.get_text().removesuffix("¶").removesuffix("#") for h in page.select("h2")}
    assert {heading.replace("`", "") for heading in headings} <= told


def test_a_second_build_is_the_same_to_the_byte(built, tmp_path):
    again = tmp_path / "again"
    site.build(again)
    first, second = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (built, again)
    )
    assert first.keys() == second.keys()
    assert [str(name) for name in first if first[name] != second[name]] == []


# --- what goes wrong -----------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A course of one notebook, whose cell would leave a file if it ran."""
    root = tmp_path / "course"
    (root / "notebooks").mkdir(parents=True)
    (root / "README.md").write_text("# A course\n[first](notebooks/00_a.ipynb)\n")
    monkeypatch.setattr(site, "ROOT", root)
    monkeypatch.setattr(site, "find_notebooks", lambda: [root / "notebooks/00_a.ipynb"])

    def write(prose="", count=1):
        v4 = nbformat.v4
        ran = str(tmp_path / "ran")
        cells = [
            v4.new_markdown_cell(f"# Do it\n\n{prose}"),
            v4.new_code_cell(f"open({ran!r}, 'w')", execution_count=count),
        ]
        language = {"name": "python", "pygments_lexer": "ipython3"}
        notebook = v4.new_notebook(cells=cells, metadata={"language_info": language})
        nbformat.write(notebook, root / "notebooks" / "00_a.ipynb")
        return root

    return write


def test_nothing_is_executed(small, tmp_path):
    root = small()
    before = (root / "notebooks" / "00_a.ipynb").read_bytes()
    pages = site.build(tmp_path / "site")
    assert tmp_path / "site" / "notebooks" / "00_a.html" in pages
    assert not (tmp_path / "ran").exists()
    assert (root / "notebooks" / "00_a.ipynb").read_bytes() == before


def test_without_saved_outputs_the_notebook_is_named(small, tmp_path):
    small(count=None)
    with pytest.raises(ValueError, match=r"00_a\.ipynb .* --save --only 00"):
        site.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "prose",
    [
        "[gone](gone.ipynb)",
        "[gone](../gone.py)",
        "[gone](../README.md#gone)",
        "![gone](gone.png)",
    ],
)
def test_a_link_to_nothing_fails_and_leaves_the_old_site(small, tmp_path, prose):
    target = tmp_path / "site"
    small()
    site.build(target)
    before = (target / "notebooks" / "00_a.html").read_text()
    small(prose)
    with pytest.raises(ValueError, match=r"notebooks/00_a\.ipynb: cell 1,.*gone"):
        site.build(target)
    assert (target / "notebooks" / "00_a.html").read_text() == before


def test_links_lead_to_pages_folders_lose_theirs(small, tmp_path):
    root = small(
        "[tool](../tool.py) [all](../notebooks) [front](../README.md#A-course) "
        "[data](../data.bin) [web](https://example.org/a)"
    )
    (root / "tool.py").write_text('"""Fences: ````."""\n')
    (root / "data.bin").write_bytes(b"\0")
    site.build(tmp_path / "site")
    page = (tmp_path / "site" / "notebooks" / "00_a.html").read_text()
    article = BeautifulSoup(page, "html.parser").select_one("article")
    links = {a.get_text(): a["href"] for a in article.select("p a")}
    assert links == {
        "tool": "../tool.py.html",
        "front": "../index.html#a-course",
        "web": "https://example.org/a",
    }
    assert "all" in article.p.get_text() and "data" in article.p.get_text()
    assert "Fences: ````." in (tmp_path / "site" / "tool.py.html").read_text()


def test_a_folder_with_other_things_is_left_alone(small, tmp_path, capsys):
    small()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert site.main([str(tmp_path / "mine")]) == 1
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert site.main([str(tmp_path / "new")]) == 0
    assert "http.server -d" in capsys.readouterr().out


# --- in a browser --------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome on this machine")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(built):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(built))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    poll = {"poll_interval": 0.02}
    threading.Thread(target=server.serve_forever, kwargs=poll, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "fault",
    [
        "<script>console.error('no')</script>",
        "<script>undefined.x</script>",
        "<script>Promise.reject(Error('no'))</script>",
        "<img src='gone.png'>",
        "<script src='http://127.0.0.1:9/x.js'></script>",
        "",
    ],
)
def test_the_browser_tells_faults(fault, browser, tmp_path):
    page = tmp_path / "page.html"
    wide = "<p style='width: 2000px'>Wide</p>"
    page.write_text(f"<!doctype html><title>t</title>{wide}{fault}")
    seen = browser.open(page.as_uri(), 390)
    assert bool(browser.faults) == bool(fault)
    assert seen["width"] > 390
    assert [p[1] for p in seen["pictures"]] == [0] * fault.count("<img")
    assert any("x.js" in url for url in browser.requests) == ("x.js" in fault)


@pytest.mark.parametrize("width", [1250, 390])
@pytest.mark.parametrize("way", ["folder", "server"])
def test_every_page_in_a_browser(way, width, browser, server, built, pages):
    base = built.as_uri() if way == "folder" else server
    for name, page in pages.items():
        seen = browser.open(f"{base}/{name}", width)
        assert browser.faults == [], name
        hosts = {urlsplit(u).netloc for u in browser.requests if u[:5] != "data:"}
        assert hosts == {urlsplit(base).netloc}, name
        assert seen["width"] <= width, f"{name} sticks out"
        assert page.h1 is None or seen["text"].count(page.h1.get_text()[:-1]), name
        assert len(seen["pictures"]) == len(page.select("img"))
        for source, natural, shown, _ in seen["pictures"]:
            # Wide enough for its words: on a phone it scrolls within its frame.
            assert natural > 0 and shown >= 560, (name, source)


@pytest.mark.parametrize("way", ["folder", "server"])
def test_the_search_finds_words_of_a_notebook(way, browser, server, built):
    base = built.as_uri() if way == "folder" else server
    browser.open(f"{base}/search.html?q=McNemar", 1250)
    found, end = [], time.monotonic() + 20
    while not found and time.monotonic() < end:
        time.sleep(0.1)
        found = browser.run(
            "[...document.querySelectorAll('#search-results li a')].map(a => a.href)"
        )
    time.sleep(0.5)  # time for what a result fetches to fail
    browser.run("0")
    assert any("/notebooks/03_prompt_ceiling.html" in link for link in found)
    assert browser.faults == []
