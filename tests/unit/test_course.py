"""The ground: modes, results, the runner, one list of packages, a stranger's set-up."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from utils import course
from utils.course import ROOT


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A course of its own, in an empty folder."""
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(course, "SHIPPED", tmp_path / "data" / "runs")
    for folder in ("notebooks", "utils", "data/runs"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def notebook(tree, name, *sources, tags=("parameters",)):
    cells = [new_code_cell('MODE = "quick"', metadata={"tags": list(tags)})]
    cells += [new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = new_notebook(
        cells=[new_markdown_cell("# x"), *cells], metadata={"kernelspec": kernel}
    )
    path = tree / "notebooks" / f"{name}.ipynb"
    nbformat.write(made, path)
    return path


def test_an_unknown_mode_is_a_clear_error():
    with pytest.raises(ValueError, match=r"'fast' is not a mode.*'quick'.*'modal'"):
        course.start("00_start_here", "fast")


def test_the_command_line_refuses_unknown_modes_and_notebooks(capsys):
    for arguments, told in (
        (["--mode", "fast"], "quick"),
        (["--only", "77"], "00_start"),
    ):
        with pytest.raises(SystemExit) as stopped:
            course.main(["run", *arguments])
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err


def test_results_are_saved_with_a_card_and_found_again(tree, capsys):
    run = course.start("07_x", "full")
    run.save(right=3)
    saved = json.loads((tree / "runs/full/07_x.json").read_text())
    card = saved["card"]
    assert card["command"] == "python -m utils.course run --mode full --only 07"
    assert {"commit", "date", "hardware", "python", "seconds"} <= card.keys()
    assert card["hardware"]["cores"] >= 1
    assert "runs/full/07_x.json" in capsys.readouterr().out
    assert run.load("07_x") == {"right": 3}


def test_what_is_not_in_runs_comes_from_the_shipped_runs(tree):
    shipped = tree / "data/runs/02_y.json"
    shipped.write_text('{"results": {"right": 91}}')
    assert course.start("03_z", "quick").load("02_y") == {"right": 91}
    with pytest.raises(FileNotFoundError, match="run --mode quick"):
        course.start("03_z", "quick").load("05_missing")


@pytest.mark.timeout(120)
def test_the_runner_stops_at_the_first_failure_and_keeps_the_rest(tree, capsys):
    notebook(tree, "00_good", "print(MODE)")
    notebook(tree, "01_bad", "before = 1", "raise KeyError('the reason')")
    notebook(tree, "02_never", "print('never')")
    assert course.main(["run", "--mode", "full"]) == 1
    out = capsys.readouterr()
    assert "01_bad stopped at this cell" in out.out
    assert "KeyError: 'the reason'" in out.out
    assert "\x1b" not in out.out
    made = sorted(p.name for p in (tree / "runs/full").iterdir())
    assert made == ["00_good.html", "00_good.ipynb", "01_bad.ipynb"]
    executed = nbformat.read(tree / "runs/full/00_good.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "full\n"


def test_shipping_keeps_outputs_and_strips_the_machine(tree):
    path = notebook(tree, "00_n", "work()", "more()")
    executed = nbformat.read(path, 4)
    outputs = [
        new_output("stream", name="stdout", text=f"\x1b[31mred\x1b[0m {tree}/data/x"),
        new_output("stream", name="stderr", text="\rx:  40%|####  | 2/5\r      \r"),
        new_output(
            "display_data", data={"application/vnd.jupyter.widget-view+json": 1}
        ),
    ]
    executed.cells[2].outputs = outputs
    (tree / "runs/full").mkdir(parents=True)
    nbformat.write(executed, tree / "runs/full/00_n.ipynb")
    (tree / "runs/full/00_n.json").write_text('{"card": {}, "results": {}}')
    course.ship(path, "full")
    shipped = nbformat.read(path, 4)
    first, second = shipped.cells[2].outputs
    assert first.text == "red data/x"
    merged = new_output("stream", name="stderr", text="\rx:  40%|## | 2/5\nWarning: y")
    assert not course._is_progress(merged)
    assert second.data == {}
    counts = [c.execution_count for c in shipped.cells if c.cell_type == "code"]
    assert counts == [1, 2, 3]
    assert shipped.metadata.course.sources == course.fingerprint(shipped)
    card = json.loads((tree / "data/runs/00_n.json").read_text())["card"]
    assert card["sources"] == shipped.metadata.course.sources


def test_the_fingerprint_follows_code_and_not_comments(tree):
    def made(code, module):
        (tree / "utils/a.py").write_text(module)
        (tree / "utils/b.py").write_text("from utils import a\n")
        return course.fingerprint(new_notebook(cells=[new_code_cell(code)]))

    first = made("from utils import b", '"""Doc."""\nx = 1\n')
    assert made("from utils import b", '"""Better doc."""\nx = 1  # why\n') == first
    assert made("from utils import b", "x = 2\n") != first
    assert made("from utils import b\n1", "x = 1\n") != first
    assert made("import json", "x = 2\n") == made("import json", "x = 1\n")


def test_the_fingerprint_is_the_same_in_every_python():
    source = (
        "def f(x: int = 0, *, y=None) -> str:\n    return f'{x!r:>{y}} {y}' or -1.5\n"
    )
    digest = hashlib.sha256(course.bare_source(source).encode()).hexdigest()[:16]
    assert digest == "bbd93ac2581f3973"


def test_each_module_can_be_imported_alone_and_none_needs_a_notebook():
    modules = sorted(p.stem for p in (ROOT / "utils").glob("*.py"))
    assert {"assistant", "sandbox", "grading", "stats", "traces"} <= set(modules)
    code = "import importlib, sys; importlib.import_module(sys.argv[1])"
    for name in modules:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, f"utils.{name}"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
        )
        assert done.returncode == 0, (name, done.stderr[-300:])
        assert "notebooks" not in course.imported_utils(
            (ROOT / f"utils/{name}.py").read_text()
        )


def test_utils_has_no_circles():
    graph = {
        p.stem: course.imported_utils(p.read_text())
        for p in (ROOT / "utils").glob("*.py")
    }

    def reach(name):
        waiting, seen = set(graph[name]), set()
        while waiting - seen:
            seen.add(one := min(waiting - seen))
            waiting |= graph[one]
        return seen

    assert not [name for name in graph if name in reach(name)]


def names_in(lines):
    found = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip()) for line in lines)
    return {m[0].lower().replace("_", "-") for m in found if m}


def test_conda_and_pip_install_the_same_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    locked = [line for line in locked if line and line[0] not in " #"]
    assert all("==" in line for line in locked)
    assert names_in(project["dependencies"]) <= names_in(locked)
    conda = (ROOT / "environment.yml").read_text()
    assert re.search(r"^name: (\S+)", conda, re.M)[1] == project["name"]
    python = re.search(r"- python=(\S+)", conda)[1]
    assert project["requires-python"] == f">={python}"
    inside = re.search(r"- pip:\n((?:      - .+\n?)+)", conda)[1]
    assert inside.split() == ["-", "-r", "requirements.lock", "-", "-e", "."]


def test_what_is_installed_is_what_is_locked():
    """Only in the locked environment: the newest versions are tested elsewhere."""
    import importlib.metadata as metadata

    if "-latest" in sys.prefix:
        pytest.skip("the newest versions are under test")
    locked = (ROOT / "requirements.lock").read_text()
    for name in ("papermill", "openai", "scipy", "statsmodels", "matplotlib"):
        # One line for each Python, where the versions differ.
        wanted = re.findall(rf"^{name}==([^\s;]+)", locked, re.M)
        assert metadata.version(name) in wanted


def test_ci_runs_make_test():
    assert "make test" in (ROOT / ".ci/run").read_text()
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    assert ".ci/run" in workflow and "cron:" in workflow and "LATEST=1" in workflow


def test_the_ladder_draws_each_gain_over_the_bar_above():
    from utils import plots

    low = {"name": "a", "value": 0.25, "low": 0.1, "high": 0.5, "n": 4}
    high = {"name": "b", "value": 0.75, "low": 0.5, "high": 0.9, "n": 4}
    low["right"], high["right"] = [True, False, False, False], [True, True, True, False]
    axes = plots.ladder([low, high])
    texts = [text.get_text() for text in axes.texts]
    assert any(text.startswith("+50.0 points") for text in texts)
    assert {"25.0", "75.0"} <= set(texts)
    assert axes.get_title(loc="left").endswith("?")


def test_the_ladder_tells_dollars_beside_the_bars():
    from utils import plots

    bar = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2, "right": [True, False]}
    steps = [bar | {"name": name} for name in ("a", "b", "c", "d")]
    dollars = {"a": [0.146, 0.1457, 0.148], "b": [None, 1.5, None]}
    dollars["c"] = [2.0, 1.0, None]
    texts = [text.get_text() for text in plots.ladder(steps, dollars).texts]
    assert {"0.146 (0.146 to 0.148)", "none right", "2.000 (1.000 to any)"} <= {*texts}
    assert sum("USD" in text for text in texts) == 1
    assert not any("USD" in text.get_text() for text in plots.ladder(steps).texts)


def test_the_untrained_model_is_the_foot_of_the_trained_bars():
    def saved(*names, **more):
        return {"results": {"ladder": [{"name": name} for name in names], **more}}

    runs = {"03": saved("prompt: rules"), "04": saved("SFT"), "06": saved("GRPO")}
    assert [b["name"] for b in course.ladder_bars(runs)][1:] == ["SFT", "GRPO"]
    runs["10"] = saved("routed", untrained={"name": "untrained"})
    names = [bar["name"] for bar in course.ladder_bars(runs)]
    assert names == ["prompt: rules", "untrained", "SFT", "GRPO", "routed"]


def test_a_changed_eval_is_refused(tmp_path, monkeypatch):
    from utils import tidewater

    assert len(tidewater.frozen_eval()) == 64
    for name in ("eval.jsonl", "eval.sha256"):
        (tmp_path / name).write_bytes((ROOT / "data" / name).read_bytes())
    monkeypatch.setattr(tidewater, "DATA", tmp_path)
    assert len(tidewater.frozen_eval()) == 64
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="frozen"):
        tidewater.frozen_eval()


def test_the_minutes_are_those_of_the_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "SHIPPED", tmp_path)
    for name, cpu, seconds in (("04_a", "EPYC", 3600), ("06_b", "NVIDIA H200", 90)):
        (tmp_path / name).mkdir()
        card = {"hardware": {"cpu": cpu, "cores": 2}, "seconds": seconds}
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    paths = course.find_notebooks()
    saved = {path.stem: {"card": {"seconds": 3600 / len(paths)}} for path in paths}
    told = " ".join(course.minutes(saved).split())
    assert "from nothing: 2.0 hours on 2 cores, of which 1.0 in 1 costly runs" in told
    assert "1 more ran on an H200, in 2 minutes" in told and "quick mode" not in told
    card = {"hardware": {"cores": 2}, "seconds": 450}
    told = course.minutes(saved | {"course_quick": {"card": card}})
    assert told.startswith("All notebooks in quick mode: 7.5 minutes on 2 cores")
