"""Costly runs: known by their recipe, kept, found again, and never passed off."""

import itertools
import json
import linecache
import os
import shutil
import types
from pathlib import Path
from types import ModuleType, SimpleNamespace

import modal
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from utils import course
from utils.course import costly as recipes
from utils.course.costly import Recipe

EXAMPLES = [{"prompt": "a secret question"}, {"prompt": "another"}]
CONFIG = {"steps": 3, "examples": EXAMPLES}
numbers = itertools.count()


def cell(source, **names):
    """Run a text as a kernel runs a notebook's cell; return the names it leaves."""
    name = f"<cell {next(numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    scope = {"__name__": "__main__", **names}
    exec(compile(source, name, "exec"), scope)
    return SimpleNamespace(**scope)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A course of its own with three modules; the second imports the third."""
    monkeypatch.setattr(course, "ROOT", tmp_path)
    for module in (course, recipes):
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "data" / "runs")
    (tmp_path / "utils").mkdir()
    write(tmp_path, alpha="RATE = 1\n", beta="from utils import gamma\n", gamma="G = 1")
    return tmp_path


def write(tree, **modules):
    for name, source in modules.items():
        (tree / "utils" / f"{name}.py").write_text(source)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    told = SimpleNamespace(now=100.0)
    monkeypatch.setattr(recipes, "time", SimpleNamespace(monotonic=lambda: told.now))
    return told


class Jobs:
    """A session that runs a job here and keeps what it was asked."""

    def __init__(self, on_modal=False):
        self.on_modal, self.asked = on_modal, []

    def run(self, job, config):
        self.asked.append(config)
        return job.local(config)


def train(config):
    return {"log": [{"step": 1, "loss": 2.5}, {"step": 2}], "steps": config["steps"]}


def job_of(function):
    return modal.App("x").function(serialized=True)(function)


def key(source, config=CONFIG, parts=(), **names):
    made = cell(source, **names)
    return Recipe("04_x", made.f, config, [getattr(made, n) for n in parts]).key


# The key

PLAIN = "def f(config):\n    x = config['steps'] + 1\n    return {'x': x}\n"
HELPER = "def half(x):\n    return x / 2\n"
CLASS = "class Diary(dict):\n    rows = 1\n\n    def add(self, x):\n        return x\n"


@pytest.mark.parametrize(
    "source",
    [
        PLAIN,
        "import json\n\n\n" + PLAIN + "\nother = 1\n",
        PLAIN.replace("+ 1", "+ 1  # one more"),
        PLAIN.replace(":\n", ':\n    """Say what it does."""\n'),
        PLAIN.replace("config['steps'] + 1", '(\n    config["steps"]\n    + 1)'),
        "import functools\n\n@functools.cache\n" + PLAIN,
        "def mark(f):\n    return f\n\n@mark\n@mark\n" + PLAIN,
        "if True:\n" + "".join(f"    {line}\n" for line in PLAIN.splitlines()),
    ],
)
def test_comments_docstrings_layout_and_decorators_change_no_key(tree, source):
    assert key(source) == key(PLAIN)


@pytest.mark.parametrize(
    "source",
    [
        PLAIN.replace("+ 1", "+ 2"),
        PLAIN.replace("+ 1", "+ 1.0"),
        PLAIN.replace("(config)", "(config, y=0)"),
        PLAIN.replace("x = ", "y = x = "),
    ],
)
def test_code_changes_the_key(tree, source):
    assert key(source) != key(PLAIN)


def test_configuration_and_data_change_the_key_but_not_where_it_runs(tree):
    def of(**change):
        return Recipe("04_x", train, CONFIG | change).key

    other = [of(), of(steps=4), of(more=1), of(examples=EXAMPLES[::-1])]
    other.append(of(examples=[EXAMPLES[0], {"prompt": "anothex"}]))
    assert len(set(other)) == len(other)
    assert of(folder="/tmp/x", live=True) == of()
    turned = dict(reversed(CONFIG.items()))
    assert Recipe("04_y", train, turned).key == of()
    assert len(of()) == 64


def test_parts_change_the_key(tree):
    parts = ("half", "Diary")

    def of(source):
        return key(source, parts=parts)

    whole = PLAIN + HELPER + CLASS
    assert of(whole) != key(whole)
    assert of(whole.replace("x / 2", "x / 3")) != of(whole)
    assert of(whole.replace("rows = 1", "rows = 2")) != of(whole)
    assert of(whole.replace("return x\n", "return -x\n")) != of(whole)
    assert of(whole.replace("return x\n", "return x  # so\n")) == of(whole)
    marked = whole.replace("class", "import atexit\n\n@atexit.register\nclass")
    assert of(marked) == of(whole)
    twice = whole.replace("(dict):", '(dict):\n    """Rows."""\n')
    assert of(twice) == of(whole)


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("def f(config):\n    from utils import beta\n    return beta.B\n", {}),
        ("def f(config):\n    from utils.beta import B\n    return B\n", {}),
        ("def f(config):\n    import utils.beta\n    return 1\n", {}),
        (
            "def f(config):\n    return beta.B\n",
            {"beta": ModuleType("utils.beta"), "alpha": ModuleType("utils.alpha")},
        ),
        (
            "def f(config):\n    return make(2)\n",
            {"make": type("make", (), {"__module__": "utils.beta"})},
        ),
    ],
)
def test_the_modules_that_a_function_uses_are_in_its_key(tree, first, names):
    before = key(first, **names)
    write(tree, gamma="G = 1  # a comment")
    write(tree, beta='"""A docstring."""\n\nfrom utils import gamma\n')
    write(tree, alpha="RATE = 2\n")  # not used
    assert key(first, **names) == before
    write(tree, gamma="G = 2")  # imported by the one that is used
    changed = key(first, **names)
    assert changed != before
    write(tree, beta="from utils import gamma\nB = 2\n")
    assert key(first, **names) not in (before, changed)


def test_the_modules_that_a_part_uses_are_in_the_key(tree):
    source = PLAIN + "def half(x):\n    return alpha.RATE\n"
    names = {"alpha": ModuleType("utils.alpha"), "parts": ("half",)}
    before = key(source, **names)
    write(tree, alpha="RATE = 2\n")
    assert key(source, **names) != before


def test_how_a_curve_is_drawn_is_not_in_the_key(tree):
    write(tree, plots="WIDTH = 1\n")
    source = "def f(config):\n    return plots.curve(config)\n"
    names = {"plots": ModuleType("utils.plots")}
    before = key(source, **names)
    write(tree, plots="WIDTH = 2\n")
    assert key(source, **names) == before


def test_a_docstring_that_names_a_module_changes_no_key(tree):
    names = {"alpha": ModuleType("utils.alpha")}
    told = PLAIN.replace(":\n", ':\n    """Unlike alpha, count."""\n', 1)
    assert key(told, **names) == key(PLAIN, **names)


def test_a_class_without_a_method_is_told_to_be_no_part(tree):
    source = (
        f"{PLAIN}from dataclasses import dataclass\n\n@dataclass\nclass A:\n    x: int"
    )
    with pytest.raises(TypeError, match="A has no method"):
        key(source, parts=("A",))


@pytest.mark.timeout(120)
def test_keys_of_a_notebooks_functions_and_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    show = "print(Recipe('04_x', f, {'steps': 1}, (half, Diary)).key)"
    function = PLAIN.replace("+ 1", "+ len(str(costs.PRICE_FILE))")
    sources = [
        "from utils import costs\nfrom utils.recipes import Recipe",
        f"{HELPER}\n{CLASS}",
        f"{function}\n{show}",
        f"{function.replace('x}', 'x}  # so')}\n{show}",  # run again, with a comment
        f"{CLASS.replace('rows = 1', 'rows = 2')}\n{show}",  # as defined last
        f"{CLASS}\n{show}",
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    where = {"metadata": {"path": str(course.ROOT)}}
    NotebookClient(notebook, kernel_name="python3", resources=where).execute()
    keys = [c.outputs[0].text for c in notebook.cells[2:]]
    assert keys[0] == keys[1] == keys[3] != keys[2]


# Runs


def start(mode="full"):
    return course.start("04_train", mode)


def test_a_run_leaves_its_log_its_result_and_its_card(tree, clock, capsys):
    jobs = Jobs()

    def slow(config):
        clock.now += 90
        return train(config)

    recipe = Recipe("04_x", slow, CONFIG)
    done = recipes.run(start(), jobs, recipe, job_of(slow), live=True)
    assert done.folder == tree / "runs" / "full" / f"04_x-{recipe.key[:8]}"
    assert jobs.asked == [{**CONFIG, "folder": str(done.folder), "live": True}]
    assert done.result == {"steps": 3}
    assert done.log == [{"step": 1, "loss": 2.5}, {"step": 2}]
    assert json.loads((done.folder / "result.json").read_text()) == {"steps": 3}
    lines = (done.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.log
    card = json.loads((done.folder / "card.json").read_text())
    assert card == done.card
    assert card["command"] == "python -m utils.course run --mode full --only 04"
    assert card["seconds"] == 90
    assert card["recipe"] == recipe.key
    assert card["name"] == "04_x"
    assert card["on_modal"] is False
    assert card["commit"] == "not in a git checkout"
    assert {"date", "python"} <= card.keys()
    assert card["hardware"]["cores"] == os.cpu_count()
    told = capsys.readouterr().out
    for word in ("Run now:", "04_x", recipe.key[:12], "1.5 minutes", "git checkout"):
        assert word in told
    assert (done.replayed, done.remote) == (False, None)
    assert done.adapter == f"{done.folder}/adapter"


def test_a_card_holds_no_data(tree):
    config = CONFIG | {"texts": ["a secret text"] * 3, "rates": [0.1, 0.2]}
    done = recipes.run(start(), Jobs(), Recipe("04_x", train, config), train)
    text = (done.folder / "card.json").read_text()
    assert "secret" not in text
    assert done.card["config"]["examples"].startswith("2 items, sha256 ")
    assert done.card["config"]["texts"].startswith("3 items, sha256 ")
    assert done.card["config"]["rates"] == [0.1, 0.2]
    assert done.card["config"]["steps"] == 3
    assert "folder" not in done.card["config"]


def counted(config):
    counted.calls += 1
    return {"calls": counted.calls}


@pytest.fixture
def count():
    counted.calls = 0
    return lambda mode, config=CONFIG, jobs=None: recipes.run(
        start(mode), jobs or Jobs(), Recipe("04_x", counted, config), counted
    )


@pytest.mark.parametrize("mode", ["full", "modal"])
def test_a_finished_run_is_not_run_again(tree, count, mode, capsys):
    assert count(mode).result == {"calls": 1}
    assert "Run now:" in capsys.readouterr().out
    again = count(mode)
    assert again.result == {"calls": 1}
    assert again.replayed
    assert again.log == []
    assert "Replayed, not run now:" in capsys.readouterr().out
    assert count(mode, CONFIG | {"steps": 4}).result == {"calls": 2}  # another recipe


def test_quick_mode_runs_each_time_in_an_empty_folder(tree, count):
    first = count("quick")
    (first.folder / "checkpoint").touch()
    again = count("quick")
    assert again.result == {"calls": 2}
    assert again.folder == first.folder
    assert not (again.folder / "checkpoint").exists()
    assert not again.replayed


def shipped(tree, done):
    target = tree / "data" / "runs" / "04_x"
    shutil.copytree(done.folder, target)
    shutil.rmtree(done.folder)
    return target


def test_a_borrowed_part_brings_the_modules_of_its_own_notebook(tree):
    alpha = types.ModuleType("utils.alpha")
    lent = cell("def part(x):\n    return alpha.RATE * x\n", alpha=alpha)
    mine = cell("def f(config):\n    return part(1)\n", part=lent.part)
    recipe = Recipe("05_x", mine.f, CONFIG, [lent.part])
    before = recipe.key
    write(tree, alpha="RATE = 2\n")
    assert recipe.key != before


def test_a_shipped_run_is_replayed_here_but_not_on_modal_or_in_quick_mode(tree, count):
    target = shipped(tree, count("full"))
    done = count("full")
    assert (done.result, done.folder, done.replayed) == ({"calls": 1}, target, True)
    assert done.adapter == f"{target}/adapter"
    assert count("modal").result == {"calls": 1}  # without a token it runs here
    assert count("modal", jobs=Jobs(on_modal=True)).result == {"calls": 2}
    assert count("quick").result == {"calls": 3}


def test_a_shipped_run_of_another_recipe_is_not_taken(tree, count):
    shipped(tree, count("full"))
    other = CONFIG | {"steps": 4}
    assert count("full", other).result == {"calls": 2}
    with pytest.raises(LookupError, match=r'data/runs/04_x .* MODE = "full"'):
        recipes.replay(Recipe("04_x", counted, other))


def test_replay_returns_the_shipped_run_and_says_so(tree, count, capsys):
    recipe = Recipe("04_x", counted, CONFIG)
    with pytest.raises(LookupError, match="not a run of this recipe"):
        recipes.replay(recipe)
    target = shipped(tree, count("full"))
    capsys.readouterr()
    done = recipes.replay(recipe)
    assert (done.folder, done.result) == (target, {"calls": 1})
    assert capsys.readouterr().out.startswith("Replayed, not run now: 04_x")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_goes_on_where_it_was(tree, clock, error):
    def train(config):
        clock.now += 40
        seen = Path(config["folder"], "checkpoint")
        if not seen.exists():
            seen.write_text("half the steps")
            raise error("the power is gone")
        return {"found": seen.read_text()}

    recipe = Recipe("04_x", train, CONFIG)
    with pytest.raises(error):
        recipes.run(start(), Jobs(), recipe, train)
    (folder,) = (tree / "runs" / "full").iterdir()
    assert not (folder / "card.json").exists()
    assert recipe.find(folder) is None
    clock.now += 1000  # the night between
    done = recipes.run(start(), Jobs(), recipe, train)
    assert done.folder == folder
    assert done.result == {"found": "half the steps"}
    assert done.card["seconds"] == 80


def test_on_modal_the_folder_is_on_the_volume(tree):
    jobs = Jobs(on_modal=True)
    recipe = Recipe("04_x", train, CONFIG)
    for replayed in (False, True):
        done = recipes.run(start("modal"), jobs, recipe, job_of(train), live=True)
        assert done.replayed is replayed
        assert done.remote == f"/runs/04_x-{recipe.key[:8]}"
        assert done.adapter == f"{done.remote}/adapter"
        assert done.folder == tree / done.remote.replace("/runs", "runs/modal", 1)
    assert jobs.asked == [{**CONFIG, "folder": done.remote, "live": False}]
    assert done.card["on_modal"] is True


def test_a_plain_function_runs_here_whatever_the_session(tree):
    jobs = Jobs()
    done = recipes.run(start(), jobs, Recipe("04_x", train, CONFIG), train)
    assert done.result == {"steps": 3}
    assert jobs.asked == []
