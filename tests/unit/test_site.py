"""The course as web pages: `make site` builds without a warning and misses nothing."""

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
    assert "Beneath the API" in front and "ladder.png" in front
    for name in NAMES:
        assert f'href="notebooks/{name}.html"' in front
        page = (tmp_path / f"html/notebooks/{name}.html").read_text()
        assert 'src="../_images/' in page, f"{name} shows no figure"
        assert "How to read it" in page
    assert "warehouse.sqlite" in (tmp_path / "html/data/README.html").read_text()
    # Nothing is fetched from another host, so the pages can be read from a folder.
    for name in ("index", "notebooks/02_build_evals"):
        page = (tmp_path / f"html/{name}.html").read_text()
        assert 'src="http' not in page and 'rel="stylesheet" href="http' not in page
