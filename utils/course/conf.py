"""The course as web pages: `make site`. Settings of Sphinx, MyST-NB and Furo.

The pages are the README, other texts and the notebooks with their saved outputs. No
cell is executed, and any warning, such as a link that leads nowhere, fails the build.
"""

import json
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
project = html_title = "Beneath the API"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "data/README.md", "notebooks/troubleshooting.md"),
    *("notebooks/[0-9]*.ipynb", "notebooks/workshop/*.md"),
]
exclude_patterns = [".*", "runs", "site", "tests", "utils", "**/.*", "data/runs"]
exclude_patterns += ["notebooks/workshop/slides.md"]  # `make slides` shows them
smartquotes = False
highlight_language = "none"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # a memo's tables are tables
myst_heading_anchors = 4  # headings can be linked to as on GitHub

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_favicon = "icon.svg"
html_copy_source = html_show_sourcelink = html_show_copyright = html_use_index = False
# The decision form is a page of its own, without Sphinx.
html_extra_path = ["../costs/decide.html"]

# What a cell holds that imports or draws, or how one begins that prints or saves.
PLUMBING = re.compile(r"^(import|from) |\bplots\.|\A(print\(|pd\.|run\.save)", re.M)
LINES = 4  # a longer cell is folded, too

# GitHub shows the README, too, so what only the site needs is done to it here.
HERE = "\n<a href='decide.html'>Decide with your own numbers</a> · "  # not Sphinx's
HERE += "[When something fails](notebooks/troubleshooting.md)\n"
SIDEBAR = """
```{{toctree}}
:hidden:
:caption: {}

{}
```
"""
PARTS = {
    "Notebooks": r"notebooks/\d",
    "Workshop": "notebooks/workshop/",
    "More": "notebooks/troubleshooting|data/README|CONTRIBUTING",
}


def fit_readme(app: Sphinx, page: str, source: list[str]) -> None:
    """List all pages beside the README; its links to folders become plain words."""
    if page != root_doc:
        return
    folders = re.compile(r"\[([^]]+)\]\((data/runs|notebooks)\)")
    intro, heading, rest = folders.sub(r"\1", source[0]).partition("\n## ")
    source[0] = intro + HERE + heading + rest
    for caption, pattern in PARTS.items():
        pages = sorted(one for one in app.project.docnames if re.match(pattern, one))
        source[0] += SIDEBAR.format(caption, "\n".join(pages)) if pages else ""


def fit_notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """Give a notebook its number, and fold settings, imports, drawings, long cells."""
    if not re.match(PARTS["Notebooks"], page):
        return
    notebook = json.loads(source[0])
    number = page.removeprefix("notebooks/").partition("_")[0]
    for cell in notebook["cells"]:
        text = cell["source"] = "".join(cell["source"])
        if cell["cell_type"] != "code":
            cell["source"] = re.sub("^# ", f"# {number} ", text)
            continue
        lines = len(text.splitlines())
        tags = cell["metadata"].setdefault("tags", [])
        if lines > LINES or PLUMBING.search(text) or "parameters" in tags:
            tags.append("hide-input")
            words = f"code, {lines} line{'s' * (lines > 1)}"
            prompts = ("code_prompt_show", "code_prompt_hide")
            cell["metadata"]["mystnb"] = dict.fromkeys(prompts, words)
        if text.startswith("check("):  # all that it says is: no answer yet
            tags.append("remove-output")
    source[0] = json.dumps(notebook)


def name_front_page(app: Sphinx, error: Exception | None) -> None:
    """Let the README also be the page that a web server shows first."""
    if error is None:
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Connect all three to Sphinx."""
    app.connect("source-read", fit_readme)
    app.connect("source-read", fit_notebook)
    app.connect("build-finished", name_front_page)
