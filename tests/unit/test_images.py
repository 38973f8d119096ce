"""Every image of Modal mode can be built: its list of packages resolves to wheels."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import modal
import pytest
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from repository import ROOT

from utils import remote
from utils.training import grpo, sft

ASKED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = re.compile(r"^([\w.-]+)==(\S+)(?: ; (.+))?$", re.MULTILINE)
ADMITTED = SpecifierSet(ASKED["requires-python"])
PYTHONS = [f"3.{n}" for n in range(30) if ADMITTED.contains(f"3.{n}")]
RECIPES = {"sft.py": sft.PINS.split(), "grpo.py": grpo.PINS.split()}
BUILT = [("3.12", name) for name in RECIPES]  # they name their Python
BUILT += [(python, name) for python in PYTHONS for name in ("plain", "vLLM")]
BESIDE = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


class Packages(list):
    """Takes the place of an image, and keeps what it installs."""

    def __getattr__(self, name):
        def layer(*arguments, **_):
            self.extend(arguments if name == "uv_pip_install" else ())
            return self

        return layer


@pytest.mark.parametrize(("python", "name"), BUILT)
def test_an_image_can_be_built(python, name, monkeypatch):
    """Its list resolves to wheels, for each Python that the course admits."""
    values = {"python_full_version": f"{python}.0", "python_version": python}
    lock = PINS.findall((ROOT / "requirements.lock").read_text())
    locked = {n: v for n, v, when in lock if not when or Marker(when).evaluate(values)}
    monkeypatch.setattr(remote, "version", locked.__getitem__)
    monkeypatch.setattr(modal.Image, "debian_slim", lambda **_: Packages())
    pinned = remote.VLLM if name == "vLLM" else ()
    wanted = RECIPES.get(name) or remote.image(pinned=pinned)
    if not (uv := shutil.which("uv", path=BESIDE)):
        pytest.skip("uv is not installed: pip install uv")
    command = [uv, "pip", "compile", "--no-build", "--python-version", python, "-"]
    command += ["--python-platform", "x86_64-manylinux_2_31"]
    env = os.environ | {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "30"}
    how = {"input": "\n".join(wanted), "capture_output": True, "text": True, "env": env}
    done = subprocess.run(command, check=False, **how)
    if done.returncode and "No solution found" not in done.stderr:
        pytest.skip(f"no package index is reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    assert set(wanted) <= set(done.stdout.split())
