"""Every link in Markdown and notebooks leads somewhere; no path of one machine."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.validateLink = lambda url: True  # or a file: link would count as plain text
# Where Modal's containers have the course's files: no machine of ours.
IN_CONTAINER = re.compile(r"/root/(utils|data)\b")
# A path from the root of a machine: after a letter it would be part of another path.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|tmp|home)/")
PAGES = {".md", ".ipynb"}
TEXTS = {*PAGES, ".py", ".toml", ".yml"}


class Html(HTMLParser):
    """Links and anchors in raw HTML within Markdown."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            elif name in ("id", "name"):
                self.anchors.append(value)


def shipped_files(root: Path = ROOT) -> list[Path]:
    """Files of the repository that git does not ignore, tracked or not yet."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        run = subprocess.run(listing, cwd=root, capture_output=True, check=True)
        paths = [root / name for name in run.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        ignored = (root / ".gitignore").read_text().split()
        paths = [p for p in root.rglob("*") if not hidden(p.relative_to(root), ignored)]
    return sorted(path for path in paths if path.is_file())


def hidden(path: Path, ignored: list[str]) -> bool:
    """Whether .gitignore's plain patterns (name, name/, /name/) hide this path."""
    return path.parts[0] == ".git" or any(
        fnmatch(part, pattern.strip("/"))
        for pattern in ignored
        for part in (path.parts[:1] if pattern[0] == "/" else path.parts)
    )


def github_slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def jupyter_slug(title: str) -> str:
    return title.strip().replace(" ", "-")


def markdown_texts(path: Path) -> list[str]:
    if path.suffix == ".md":
        return [path.read_text(encoding="utf-8")]
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


@cache
def links_and_anchors(page: Path) -> tuple[list[str], set[str]]:
    """Link and image targets of a Markdown file or notebook, and its anchors."""
    slug = github_slug if page.suffix == ".md" else jupyter_slug
    html, titles = Html(), Counter()
    for text in markdown_texts(page):
        tokens = MARKDOWN.parse(text)
        for before, token in pairwise([None, *tokens]):
            for part in token.children or [token]:
                if part.type in ("html_block", "html_inline"):
                    html.feed(part.content)
                html.links += [
                    part.attrs[k] for k in ("href", "src") if k in part.attrs
                ]
            if before and before.type == "heading_open":
                words = (c.content for c in token.children if c.type != "html_inline")
                title = slug("".join(words))
                html.anchors.append(f"{title}-{titles[title]}".removesuffix("-0"))
                titles[title] += 1
    return html.links, set(html.anchors)


def fault(link: str, page: Path, reachable: set[Path]) -> str:
    """What is wrong with a link of `page`; empty if nothing is."""
    url = urlsplit(link)
    if url.scheme in ("http", "https"):
        # Words with dots between them, or this machine for a server of the reader's.
        good = re.fullmatch(
            r"([\w-]+\.)+[a-z]+|localhost|127\.0\.0\.1", url.hostname or ""
        )
        return "" if good else "no host"
    if url.scheme == "mailto":
        return ""
    if not link:
        return "empty"
    if url.scheme or link.startswith("/"):
        return "neither relative nor http"
    target = (page.parent / unquote(url.path)).resolve() if url.path else page
    if target not in reachable:
        return "no such file in the repository"
    anchor = unquote(url.fragment)
    if target.suffix not in PAGES:
        fits = re.fullmatch(r"(L\d+(-L\d+)?)?", anchor)  # lines of code, or none
    else:
        fits = not anchor or anchor in links_and_anchors(target)[1]
    return "" if fits else "no such heading"


def broken_links(root: Path, files: list[Path]) -> list[str]:
    """One line for each link that leads nowhere for a stranger with a clone."""
    folders = {f for path in files for f in path.parents if f.is_relative_to(root)}
    return [
        f"{page.relative_to(root)}: {link}: {why}"
        for page in files
        if page.suffix in PAGES
        for link in links_and_anchors(page)[0]
        if (why := fault(link, page, folders | set(files)))
    ]


def strings(node: object) -> Iterator[str]:
    """Every text in a notebook's cells, pictures apart (their base64 holds slashes)."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from strings(item)
    elif isinstance(node, dict):
        for key, item in node.items():
            if not key.startswith("image/"):
                yield from strings(item)


def machine_paths(path: Path) -> list[str]:
    if path.suffix == ".ipynb":
        texts = strings(nbformat.read(path, as_version=4).cells)
    else:
        texts = [path.read_text(encoding="utf-8")]
    lines = (line for text in texts for line in text.splitlines())
    return [
        f"{path}: {line.strip()[:120]}"
        for line in lines
        if MACHINE_PATH.search(IN_CONTAINER.sub("", line))
    ]


def test_every_link_resolves():
    files = shipped_files()
    pages = [path for path in files if path.suffix in PAGES]
    assert ROOT / "data" / "README.md" in pages
    assert any(links_and_anchors(page)[0] for page in pages)
    assert broken_links(ROOT, files) == []


def test_no_path_of_one_machine():
    # Tests name such paths to forbid them, and hostile queries try to reach them.
    files = [p for p in shipped_files() if p.suffix in TEXTS]
    files = [p for p in files if ROOT / "tests" not in p.parents]
    assert ROOT / "utils" / "course.py" in files
    assert [line for path in files for line in machine_paths(path)] == []


GOOD = """# One `two`, three!
## Again
## Again
<a id="here"></a>
[a](#one-two-three) [b](#again-1) [c](sub/other.ipynb#Train-It) [d](#here)
![e](sub/pic.png) <img src="sub/pic.png"> [f](https://example.org/a?b#c) [g](sub)

`[not a link](nowhere.md)`
"""
BAD = [
    "[a]()",
    "[a](nowhere.md)",
    "![a](sub/Pic.png)",
    "[a](#again-2)",
    "[a](sub/other.ipynb#train-it)",
    "[a](../outside.md)",
    "[a](sub#train-it)",
    "[a](/sub/pic.png)",
    "[a](file:sub/pic.png)",
    "[a](https:///path)",
    "[a](https://nodots/path)",
    '<a href="nowhere.md">a</a>',
    "| a |\n| - |\n| [a](nowhere.md) |",
]


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pic.png").write_bytes(b"")
    v4 = nbformat.v4
    streams = [v4.new_output("stream", text="all\nwell")]
    cells = [v4.new_markdown_cell("## Train It"), v4.new_code_cell(outputs=streams)]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "sub" / "other.ipynb")
    (tmp_path.parent / "outside.md").write_text("")
    return tmp_path


def check(tree, text):
    links_and_anchors.cache_clear()
    (tree / "page.md").write_text(text)
    return broken_links(tree, [path for path in tree.rglob("*") if path.is_file()])


def test_the_check_passes_good_links(tree):
    assert check(tree, GOOD) == []
    assert len(links_and_anchors(tree / "page.md")[0]) == 8


@pytest.mark.parametrize("link", BAD)
def test_the_check_finds_a_broken_link(tree, link):
    (found,) = check(tree, f"{GOOD}\n{link}\n")
    assert found.startswith("page.md: ")


def test_a_path_of_one_machine_is_found_in_text_and_outputs(tree):
    folder = "/" + "tmp/run.json"
    page, book = tree / "page.md", tree / "sub" / "other.ipynb"
    page.write_text("see example.org" + folder)
    assert machine_paths(page) == machine_paths(book) == []
    page.write_text(f"see `{folder}`")
    book.write_text(book.read_text().replace("well", f'"{folder}"'.replace('"', r"\"")))
    assert len(machine_paths(page)) == len(machine_paths(book)) == 1


def test_without_git_ignored_files_are_left_out(tree):
    (tree / ".gitignore").write_text("*.png\n/cache/\n")
    for name in ("cache/a.md", "sub/cache/b.md"):
        (tree / name).parent.mkdir()
        (tree / name).write_text("")
    names = [p.relative_to(tree).as_posix() for p in shipped_files(tree)]
    assert names == [".gitignore", "sub/cache/b.md", "sub/other.ipynb"]
