"""Costly runs: known by configuration and version, kept, found again, gone on with."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import release
from repository import NOTEBOOKS, ROOT, load

from utils import course
from utils.course import costly
from utils.course import run as runs

EXAMPLES = [{"prompt": "a secret question"}, {"prompt": "another"}]
CONFIG = {"max_steps": 3, "examples": EXAMPLES}
CARDS = sorted((ROOT / "data/runs").glob("*/card.json"))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A course of its own, in an empty folder in which the notebook runs."""
    for module in (runs, costly):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "data/runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train():
    """A costly function that keeps what it was asked and counts its calls."""

    def function(config):
        function.asked.append(config)
        return {"log": [{"step": 1, "loss": 2.5}], "call": len(function.asked)}

    function.asked = []
    return function


def run(train, mode="full", config=CONFIG, **more):
    course.start("04_train", mode)
    return costly.run("04_x", train, config, **more)


def ship(tree, done):
    """Publish a finished run, as the release tool does."""
    target = tree / "data/runs/04_x"
    shutil.copytree(done.folder, target)
    shutil.rmtree(done.folder)
    return target


# --- the key --------------------------------------------------------------------------


def test_the_key_depends_on_configuration_data_and_version_only():
    changed = [EXAMPLES[0], {"prompt": "anothex"}]
    configs = [CONFIG, CONFIG | {"max_steps": 4}, CONFIG | {"examples": changed}]
    keys = {costly.key(config) for config in configs} | {costly.key(CONFIG, version=2)}
    assert len(keys) == 4
    assert costly.key(dict(reversed(CONFIG.items()))) == costly.key(CONFIG)


@pytest.mark.parametrize("path", CARDS, ids=[path.parent.name for path in CARDS])
def test_a_shipped_run_is_known_by_its_card(path):
    card = json.loads(path.read_text())
    assert card["name"] == path.parent.name
    assert card["key"] == costly.key(card["config"], card["version"])
    for name in card["config"]:
        changed = card["config"] | {name: "changed"}
        assert costly.key(changed, card["version"]) != card["key"]


class Rename(ast.NodeTransformer):
    """Give the local variables of each function other names."""

    renamed = 0

    def visit_FunctionDef(self, node):
        parts = list(ast.walk(node))
        kept = {part.arg for part in parts if isinstance(part, ast.arg)}
        names = [part for part in parts if isinstance(part, ast.Name)]
        stored = {name.id for name in names if isinstance(name.ctx, ast.Store)}
        for name in names:
            if name.id in stored - kept:
                name.id = f"{name.id}_renamed"
                self.renamed += 1
        return node


STALE = """
import sys
from utils.course import costly
import release
assert costly.__file__.startswith(sys.argv[1])
for path in sorted((release.ROOT / "data/runs").glob("*/card.json")):
    card = release.read_json(path)
    print(costly.key(card["config"], card["version"]))
for path in release.find_notebooks():
    print(release.fingerprint(release.nbformat.read(path, as_version=4)))
"""


def test_renaming_local_variables_makes_no_run_and_no_notebook_stale(tmp_path):
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    rename = Rename()
    for path in (tmp_path / "utils").rglob("*.py"):
        module = rename.visit(ast.parse(path.read_text(encoding="utf-8")))
        path.write_text(ast.unparse(module), encoding="utf-8")
    assert rename.renamed > 1000
    both = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
    command = [sys.executable, "-c", STALE, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": both}
    out = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    known = [json.loads(path.read_text())["key"] for path in CARDS]
    known += [release.fingerprint(load(path)) for path in NOTEBOOKS]
    assert out.split() == known


# --- runs -----------------------------------------------------------------------------


def test_a_run_leaves_its_log_its_result_and_its_card(tree, capsys):
    def slow(config):
        config["max_steps"] = 0  # what a function does to its own copy
        return {"log": [{"step": 1, "loss": 2.5}], "folder": config["output_dir"]}

    done = run(slow)
    assert done.folder == tree / f"runs/full/04_x-{costly.key(CONFIG)[:8]}"
    assert done.result == {"folder": str(done.folder)}
    assert json.loads((done.folder / "log.jsonl").read_text()) == done.log[0]
    card = json.loads((done.folder / "card.json").read_text())
    assert card == done.card
    assert card["command"] == "make course MODE=full ONLY=04"
    assert (card["name"], card["version"]) == ("04_x", 1)
    assert card["key"] == costly.key(CONFIG) == costly.key(card["config"])
    assert "secret" not in json.dumps(card)
    assert "Run now: 04_x" in capsys.readouterr().out
    assert done.adapter == f"{done.folder}/adapter" and not done.replayed


def test_full_mode_replays_what_was_run_here_or_shipped(tree, train, capsys):
    first = run(train)
    again = run(train)
    assert again.result == {"call": 1} and again.replayed
    assert "Replayed, not run now: 04_x" in capsys.readouterr().out
    target = ship(tree, first)
    done = run(train)
    assert (done.result, done.folder, done.replayed) == ({"call": 1}, target, True)
    assert run(train, config=CONFIG | {"max_steps": 4}).result == {"call": 2}
    assert run(train, version=2).result == {"call": 3}


def test_quick_mode_runs_a_piece_and_returns_the_shipped_run(tree, train):
    target = ship(tree, run(train))
    piece = tree / "runs/quick/04_x-quick"
    piece.mkdir(parents=True)
    (piece / "left").touch()
    done = run(train, "quick", quick={"max_steps": 1})
    assert (done.result, done.folder, done.replayed) == ({"call": 1}, target, True)
    assert train.asked[-1] == CONFIG | {"max_steps": 1, "output_dir": str(piece)}
    assert not (piece / "left").exists()
    run(train, "quick")  # no piece: it is replayed alone
    assert len(train.asked) == 2


def test_a_changed_configuration_is_told_by_name(tree, train):
    ship(tree, run(train))
    changed = CONFIG | {"max_steps": 4, "examples": EXAMPLES[:1], "new": 1}
    with pytest.raises(LookupError, match="differs in examples, max_steps, new"):
        run(train, "quick", config=changed)
    with pytest.raises(LookupError, match="differs in its version"):
        run(train, "quick", version=2)


def test_an_interrupted_run_goes_on_where_it_was(tree, monkeypatch):
    passed = iter([0, 40, 1000, 1040])  # the night between
    clock = SimpleNamespace(monotonic=lambda: next(passed))
    monkeypatch.setattr(costly, "time", clock)

    def train(config):
        seen = Path(config["output_dir"], "checkpoint")
        if not seen.exists():
            seen.write_text("half the steps")
            raise KeyboardInterrupt("the power is gone")
        return {"found": seen.read_text()}

    with pytest.raises(KeyboardInterrupt):
        run(train)
    assert not list(tree.glob("runs/full/*/card.json"))
    done = run(train)
    assert done.result == {"found": "half the steps"}
    assert done.card["seconds"] == 80


def test_the_newest_adapter_is_found(tree, train):
    def save(config):
        folder = Path(config["output_dir"], "adapter")
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        return {}

    ship(tree, run(save))
    shipped = costly.adapter("04_x")
    assert shipped["adapter"] == "data/runs/04_x/adapter"
    assert shipped["sha256"] == hashlib.sha256(b"weights").hexdigest()
    done = run(save, config={"max_steps": 9})
    made = done.folder.relative_to(tree).as_posix()
    assert costly.adapter("04_x")["adapter"] == f"{made}/adapter"
    course.start("06_x", "quick")  # which always goes by the shipped one
    assert costly.adapter("04_x") == shipped
