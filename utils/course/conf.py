"""The course as web pages: `make site`. Settings of Sphinx, MyST-NB and Furo.

The pages are the README, data/README and the notebooks with their saved outputs; no
cell is executed, and any warning, such as a link that leads nowhere, fails the build.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = html_title = "Beneath the API"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", "data/README.md", "notebooks/[0-9]*.ipynb"]
include_patterns += ["notebooks/workshop/solutions.md"]
exclude_patterns = [".*", "runs", "site", "tests", "utils", "**/.*", "data/runs"]
smartquotes = False
highlight_language = "none"

nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 4  # headings can be linked to as on GitHub

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = html_use_index = False

# GitHub shows the README, too, so what only the site needs is done to it here.
SIDEBAR = """
```{toctree}
:hidden:
:glob:

notebooks/*
notebooks/workshop/solutions
data/README
```
"""


def fit_readme(app: Sphinx, page: str, source: list[str]) -> None:
    """List all pages at the README's end; its links to folders become plain words."""
    if page == root_doc:
        folders = re.compile(r"\[([^]]+)\]\((data/runs|notebooks)\)")
        source[0] = folders.sub(r"\1", source[0]) + SIDEBAR


def name_front_page(app: Sphinx, error: Exception | None) -> None:
    """Let the README also be the page that a web server shows first."""
    if error is None:
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Connect both to Sphinx."""
    app.connect("source-read", fit_readme)
    app.connect("build-finished", name_front_page)
