"""The course as web pages: `make site` builds without a warning and misses nothing."""

import ast
import re
import subprocess
import sys

import pytest
from repository import NAMES, ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_notebook_has_a_page_with_its_figures(tmp_path):
    # Sphinx fails at any warning (-W), as at a link that leads nowhere.
    command = [sys.executable, "-m", "sphinx", "-M", "html", str(ROOT), str(tmp_path)]
    command += ["-c", str(ROOT / "utils/course"), "-W", "--keep-going", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    front = (tmp_path / "html/index.html").read_text()
    assert (
        "Beneath the API" in front and 'href="notebooks/troubleshooting.html"' in front
    )
    for name in NAMES:
        assert f'href="notebooks/{name}.html"' in front
        page = (tmp_path / f"html/notebooks/{name}.html").read_text()
        assert 'src="../_images/' in page, f"{name} shows no figure"
        assert "How to read it" in page
    assert "warehouse.sqlite" in (tmp_path / "html/data/README.html").read_text()
    # A long cell is folded, a short one is not; the notebook itself has no such tag.
    page = (tmp_path / "html/notebooks/00_start_here.html").read_text()
    assert page.count("<details") > 5 and page.count("cell_input") > page.count(
        "<details"
    )
    assert "hide-input" not in (ROOT / "notebooks/00_start_here.ipynb").read_text()
    # Nothing is fetched from another host, so the pages can be read from a folder.
    for path in (tmp_path / "html").rglob("*.html"):
        assert not re.search(r'src="http|<link[^>]*href="http', path.read_text()), path


def known_texts():
    """Texts of the code, and the Makefile's; what is filled in is a '…'."""
    yield re.sub(r"\$\(\w+\)|\$\$\w+", "…", (ROOT / "Makefile").read_text())
    yield re.sub(r"{\w+}", "…", (ROOT / "utils/costs/words.toml").read_text())
    for path in (ROOT / "utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                fixed = (getattr(part, "value", None) for part in node.values)
                yield "".join(one if isinstance(one, str) else "…" for one in fixed)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_what_the_troubleshooting_page_quotes_is_still_said():
    page = (ROOT / "notebooks/troubleshooting.md").read_text()
    messages, texts = re.findall(r"```text\n(.+)\n```", page), list(known_texts())
    assert len(messages) > 25
    gone = [one for one in messages if not any(one in text for text in texts)]
    assert not gone
