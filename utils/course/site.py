"""The course as a static site: the README in front, each notebook a page.

`python -m utils.site` writes it to site/. Nothing is executed: the pages show the saved
outputs. Sphinx builds them, MyST-NB reads the notebooks, Furo is the look. The site
asks no other host for anything, so it can be read from a folder.
"""

import argparse
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from utils.course.run import ROOT, find_notebooks

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Files that a page can link to and that become pages themselves, as they stand.
LISTINGS = {".py": "python", ".json": "json", ".toml": "toml", ".txt": "text"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

STYLE = """
/* A wide table scrolls in its own frame and a long line wraps: the page stays put. */
.cell_output .text_html { overflow-x: auto; margin: 1rem 0; }
.cell_output pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.cell_output { padding-left: 0; }
/* Frames of data without Netscape's borders; numbers stand flush right. */
.cell_output table { border: 0; border-collapse: collapse; font-size: 0.875rem; }
.cell_output :is(th, td) { border: 0; padding: 0.25rem 0.75rem; text-align: right;
  border-bottom: 1px solid var(--color-background-border); }
.cell_output tbody th { text-align: left; }
.cell_output table[id^="T_"] td { min-width: 4rem; overflow-wrap: anywhere; }
.table-wrapper table.docutils { margin-left: 0; }
table.docutils td { vertical-align: top; }
/* A figure's words shrink with it. On a phone it keeps a size at which one can read. */
@media (max-width: 40rem) {
  table.docutils { font-size: 0.8125rem; }
  .cell_output table { width: max-content; max-width: 38rem; }
  .table-wrapper td:last-child code { overflow-wrap: anywhere; }
  :is(.cell_output, p):has(> img) { overflow-x: auto; }
  :is(.cell_output, p) > img { max-width: none; width: 38rem; }
}
@media print {
  .skip-to-content, .toc-drawer { display: none; }
  .highlight pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  div.cell_input, img, tr { break-inside: avoid; }
}
"""
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<path fill="#1b3a4b" d="M1 1h14v6H1z"/><path fill="#b5541c" d="M1 9h14v6H1z"/></svg>
"""
# Summaries of what was found are fetched page by page, which a browser refuses to
# pages read from a folder.
_SEARCH = """
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
"""
SETTINGS = {
    "project": "Beneath the API",
    "html_title": "Beneath the API",
    "extensions": ["myst_nb"],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "myst_heading_anchors": 4,
    "smartquotes": False,
    "highlight_language": "none",
    "html_theme": "furo",
    "html_css_files": ["course.css"],
    "html_js_files": [(None, {"body": _SEARCH})],
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_copyright": False,
    "html_use_index": False,
}


def build(target: Path) -> list[Path]:
    """Build the site into the folder `target`, in place of what is there.

    Returns its HTML files. A build that fails leaves an older site as it is.

    Raises:
        ValueError: a notebook has no saved outputs, a link leads nowhere, or `target`
            holds something that is no site; the message says which and what to do.

    """
    if target.exists() and not (target.is_dir() and _is_ours(target)):
        raise ValueError(f"{target} holds something else. Name a new or empty folder")
    with tempfile.TemporaryDirectory() as folder:
        pages, built = Path(folder, "pages"), Path(folder, "built", "html")
        stage(pages)
        _sphinx(pages, built, Path(folder, "doctrees"))
        (built / ".buildinfo").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(built, target)
    return sorted(target.rglob("*.html"))


def _is_ours(folder: Path) -> bool:
    return (folder / "_static" / "course.css").exists() or not any(folder.iterdir())


def stage(pages: Path) -> None:
    """Write what Sphinx reads into the new folder `pages`: README, notebooks, links."""
    notebooks = {path: _read(path) for path in find_notebooks()}
    waiting, done = [ROOT / "README.md", *notebooks], []
    while waiting:
        path = waiting.pop(0)
        if path not in done:
            done.append(path)
            page = pages / _place(path)
            page.parent.mkdir(parents=True, exist_ok=True)
            waiting += _write(path, page, notebooks)
    titles = {path: _title(path, notebook) for path, notebook in notebooks.items()}
    others = sorted(p for p in done[1:] if p not in notebooks and _is_page(p))
    titles |= {p: p.relative_to(ROOT).as_posix() for p in others}
    with (pages / "index.md").open("a", encoding="utf-8") as index:
        for caption, paths in (("The notebooks", notebooks), ("Linked files", others)):
            places = {path: _place(path).with_suffix("").as_posix() for path in paths}
            lines = [f"{titles[path]} <{place}>" for path, place in places.items()]
            entries = "\n".join([":hidden:", f":caption: {caption}", "", *lines])
            index.write(f"\n```{{toctree}}\n{entries}\n```\n")
    (pages / "static").mkdir()
    for name, text in {"course.css": STYLE, "icon.svg": ICON}.items():
        (pages / "static" / name).write_text(text, encoding="utf-8")


def _write(path: Path, page: Path, notebooks: "dict[Path, NotebookNode]") -> list[Path]:
    """Write one file of the repository as a page; return the files that it links to.

    Of a notebook nothing is changed but links. Its figures get a text for those who
    cannot see them: the question in the figure's title.
    """
    import nbformat

    linked: list[Path] = []
    if path in notebooks:
        for cell in notebooks[path].cells:
            if cell.cell_type == "markdown":
                cell.source = _relink(cell.source, path, linked)
            else:
                asked = re.search(r'plots\.figure\(\s*"([^"]+)"', cell.source)
                text = f"Figure: {asked[1]}" if asked else "Figure"
                cell.metadata["mystnb"] = {"image": {"alt": text}}
        nbformat.write(notebooks[path], page)
    elif path.suffix == ".md":
        text = _relink(path.read_text(encoding="utf-8"), path, linked)
        page.write_text(text, encoding="utf-8")
    elif path.suffix in LISTINGS:
        text = path.read_text(encoding="utf-8").rstrip()
        # Longer than any fence within.
        fence = "`" * (1 + max(map(len, ["``", *re.findall("`+", text)])))
        name = path.relative_to(ROOT).as_posix()
        text = f"# {name}\n\n{fence}{LISTINGS[path.suffix]}\n{text}\n{fence}\n"
        page.write_text(text, encoding="utf-8")
    else:
        shutil.copy(path, page)
    return linked


def _read(path: Path) -> "NotebookNode":
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    if not all(cell.execution_count for cell in code):
        raise ValueError(
            f"{path.name} has cells without saved outputs. To make them, run: "
            f"python -m utils.course run --mode full --save --only {path.stem[:2]}"
        )
    return notebook


def _title(path: Path, notebook: "NotebookNode") -> str:
    title = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)[1]
    return f"{path.stem[:2]} {title.replace('`', '')}"


def _is_page(path: Path) -> bool:
    return path.suffix in (".md", ".ipynb", *LISTINGS)


def _place(path: Path) -> Path:
    """Where a file of the repository lies among the pages."""
    place = path.relative_to(ROOT)
    if place == Path("README.md"):
        return Path("index.md")
    return place.with_name(f"{place.name}.md") if path.suffix in LISTINGS else place


def _relink(text: str, page: Path, linked: list[Path]) -> str:
    """Point links of `page` at pages; those files join the list `linked`.

    What cannot be a page of the site, as a folder, keeps its words and loses its link.
    A link to nothing stays: Sphinx tells of it.
    """

    def link(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        url = urlsplit(target)
        if url.scheme or not url.path:
            return match[0]
        path = (page.parent / unquote(url.path)).resolve()
        if not path.exists():
            return match[0]
        if not path.is_relative_to(ROOT) or not (image or _is_page(path)):
            return words
        linked.append(path)
        place = os.path.relpath(_place(path), _place(page).parent)
        # Anchors as GitHub and Sphinx write them; Jupyter keeps capitals and stops.
        anchor = re.sub(r"[^\w-]", "", unquote(url.fragment).lower())
        return f"{image}[{words}]({Path(place).as_posix()}{anchor and '#' + anchor})"

    return _LINK.sub(link, text)


def _sphinx(pages: Path, built: Path, doctrees: Path) -> None:
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    static = pages / "static"
    here = {
        "html_static_path": [str(static)],
        "html_favicon": str(static / "icon.svg"),
    }
    told = io.StringIO()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=pages,
            confdir=None,
            outdir=built,
            doctreedir=doctrees,
            buildername="html",
            confoverrides=SETTINGS | here,
            status=None,
            warning=told,
            warningiserror=True,
        )
        app.build()
    if app.statuscode:
        lines = _COLOUR.sub("", told.getvalue()).replace(f"{pages}{os.sep}", "")
        # MyST-NB writes line 3 of cell 12 as 120003.
        place = r"ipynb:(\d+)(?=\d{4}:)0{0,3}(\d+):"
        lines = re.sub(place, r"ipynb: cell \1, line \2:", lines)
        raise ValueError(f"the site has faults; mend what they name:\n{lines}")


def main(arguments: list[str] | None = None) -> int:
    """Command line of the site; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.site", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "site")
    target = parser.parse_args(arguments).folder
    try:
        pages = build(target)
    except (ValueError, OSError) as error:
        print(f"No site: {error}", file=sys.stderr)
        return 1
    print(f"{len(pages)} pages in {target}. Open {target / 'index.html'}, or run:")
    print(f"  python -m http.server -d {target} --bind 127.0.0.1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
