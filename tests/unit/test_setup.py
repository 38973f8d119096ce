"""Make's commands, the light environment and the lock file do what the README says."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
LOCK = (ROOT / "requirements.lock").read_text()


def course_in(folder, **notebooks):
    """Lay out a course of tiny notebooks, each with one cell after its parameters."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "utils").mkdir()
    (folder / "utils/__init__.py").touch()
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, source in notebooks.items():
        parameters = new_code_cell('MODE = "quick"', metadata={"tags": ["parameters"]})
        cells = [parameters, new_code_cell(source)]
        notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, folder / f"notebooks/{name[3:]}.ipynb")
    return folder


def make(folder, *words, environment=sys.prefix, **variables):
    command = ["make", f"ENV={environment}", *words]
    # Not what the `make test` that runs this test, or the developer, has set.
    ours = {"MAKEFLAGS", "MODE", "ONLY", "FRESH", "LAB", "HF_HUB_OFFLINE", "PYTHONPATH"}
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    settings = {"env": inherited | variables, "text": True, "timeout": 900}
    return subprocess.run(command, cwd=folder, capture_output=True, **settings)


# --- make course ---------------------------------------------------------------------


def test_make_course_runs_what_is_asked_for_until_one_fails(tmp_path):
    """Also with a temporary folder of a length that no socket's name may have."""
    shows = "import os, utils; print(MODE, utils.__file__, os.getenv('HF_HUB_OFFLINE'))"
    course = course_in(
        tmp_path / "course", nb_00_good=shows, nb_01_bad="1 / 0", nb_02_never="2"
    )
    temporary = tmp_path / ("long" * 40)
    temporary.mkdir()
    done = make(course, "MODE=full", TMPDIR=str(temporary))
    assert done.returncode
    stopped = "Stopped: notebooks/01_bad.ipynb failed. See the error in its place in "
    assert f"{stopped}runs/full/01_bad.ipynb" in done.stdout
    assert "ZeroDivisionError" in done.stderr
    assert not (course / "runs/full/02_never.ipynb").exists()
    good = nbformat.read(course / "runs/full/00_good.ipynb", as_version=4)
    text = good.cells[-1].outputs[0].text
    assert text.split() == ["full", str(course / "utils/__init__.py"), "1"]
    (tmp_path / "env").symlink_to(sys.prefix)  # not every shell resolves the ~
    home = {"environment": "~/env", "HOME": str(tmp_path)}
    alone = make(course, "ONLY=02", **home).stdout
    assert re.search(r"^1 of 3 notebooks: \d+ seconds", alone, re.M)
    assert [path.stem for path in course.glob("runs/quick/*.ipynb")] == ["02_never"]
    wrong = make(course, "ONLY=1").stderr
    assert "ONLY=1 is no notebook: choose among 00_good 01_bad 02_never" in wrong


# --- make lab ------------------------------------------------------------------------


def test_make_lab_opens_copies_that_keep_a_readers_edits(tmp_path):
    """And a clone gets its own utils, whatever its environment's packages say."""
    course = course_in(tmp_path, nb_00_start_here="0", nb_01_b="1")
    where = "import utils; print(utils.__file__)"
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    jupyter = environment / "bin/jupyter"
    jupyter.write_text(
        f"#!/bin/sh\necho \"$@\"\ncd work && {sys.executable} -c '{where}'\n"
    )
    jupyter.chmod(0o755)
    said = make(course, "lab", environment=environment).stdout
    assert "work/00_start_here.ipynb" in said
    assert str(tmp_path / "utils/__init__.py") in said
    edited = course / "work/00_start_here.ipynb"
    original = (course / "notebooks/00_start_here.ipynb").read_text()
    assert edited.read_text() == original
    edited.write_text("mine")
    make(course, "lab", environment=environment)
    assert edited.read_text() == "mine"
    make(course, "lab", "FRESH=1", environment=environment)
    assert edited.read_text() == original
    (kept,) = course.glob("work/before-*/00_start_here.ipynb")
    assert kept.read_text() == "mine"
    ignored = ["git", "check-ignore", "-q", "work/00_start_here.ipynb"]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0


# --- the light environment -----------------------------------------------------------

LIGHT = ("00", "01", "02", "03", "10")
# Other packages of the light environment bring these two along.
ABSENT = {requirement.name for requirement in EXTRAS["train"]} - {"aiohttp", "psutil"}
WITHOUT = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError("not in the light environment: " + name)

sys.meta_path.insert(0, Absent)
for name, source in {sources}.items():
    exec(compile(source, name, "exec"), dict(__name__=name))
"""


def test_light_notebooks_start_without_what_trains():
    """They begin with their parameters and the cells that import."""
    sources = {}
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        opening = [s for s in code if re.search(r"^(MODE =|import|from)", s, re.M)]
        if path.name[:2] in LIGHT:
            sources[path.stem] = "\n".join(opening)
    assert len(sources) == len(LIGHT)
    script = WITHOUT.format(absent=sorted(ABSENT), sources=json.dumps(sources))
    environment = os.environ | {"MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


# --- packages ------------------------------------------------------------------------


def pins(wanted):
    """The locked versions of a package: one for each Python where they differ."""
    return re.findall(rf"^{canonicalize_name(wanted.name)}==([^\s;]+)", LOCK, re.M)


def test_the_lock_pins_what_is_asked_for_and_leaves_cuda_to_pytorch():
    for wanted in [*CORE, *EXTRAS["train"], *EXTRAS["dev"]]:
        assert pins(wanted), f"{wanted.name}: run make lock"
        assert all(pin in wanted.specifier for pin in pins(wanted)), wanted
    if "-latest" not in sys.prefix:  # there the newest versions are tested
        for wanted in [*CORE, *EXTRAS["train"]]:
            here = importlib.metadata.version(wanted.name).partition("+")[0]
            assert here in pins(wanted), wanted
    assert not re.findall(r"^(?:nvidia|cuda|triton).*", LOCK, re.M)


# --- commands ------------------------------------------------------------------------


def test_commands_that_texts_name_exist():
    targets = re.findall(r"^([a-z][a-z -]*?):", (ROOT / "Makefile").read_text(), re.M)
    known = {name for line in targets for name in line.split()}
    texts = [ROOT / "README.md", ROOT / "data/README.md", ROOT / ".ci/run"]
    texts += (ROOT / ".github/workflows").glob("*.yml")
    texts += ROOT.glob("notebooks/*.ipynb")
    for path in texts:
        text = path.read_text()
        named = re.findall(r"(?:`|^|- |exec )make ([a-z][a-z-]*)", text, re.M)
        assert set(named) <= known, path
