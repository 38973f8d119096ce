"""What a notebook starts and ends with: its mode, its own course, results and cards."""

import json
import re

import pytest
from repository import ROOT

from utils import course
from utils.course import run as runs


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A course of its own, in an empty folder in which the notebook runs."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "data/runs")
    (tmp_path / "data/runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_unknown_mode_is_a_clear_error():
    with pytest.raises(ValueError, match=r"'fast' is not a mode.*'quick'.*'modal'"):
        course.start("00_start_here", "fast")


def test_results_are_saved_with_a_card_and_found_again(tree, capsys):
    run = course.start("07_x", "full")
    run.save(right=3)
    card = json.loads((tree / "runs/full/07_x.json").read_text())["card"]
    assert card["command"] == "make course MODE=full ONLY=07"
    assert {"commit", "date", "hardware", "python", "seconds"} <= card.keys()
    assert card["commit"] == "not in a git checkout"
    assert "Saved runs/full/07_x.json after 0 s." in capsys.readouterr().out
    assert run.load("07_x") == {"right": 3}
    rows = [{"text": "Größe"}, {"text": "two\nlines"}]
    run.save_rows("07_rows.jsonl", rows)
    assert run.load_rows("07_rows.jsonl") == rows
    (tree / "runs/full/07_b.jsonl").write_text('\ufeff{"a": "b\u2028c"}\n\n', "utf-8")
    assert run.load_rows("07_b.jsonl") == [{"a": "b\u2028c"}]


def test_what_is_not_in_runs_comes_from_the_shipped_runs(tree):
    (tree / "data/runs/02_y.json").write_text('{"results": {"right": 91}}')
    run = course.start("03_z", "quick")
    assert run.load("02_y") == {"right": 91}
    with pytest.raises(FileNotFoundError, match="make course MODE=quick ONLY=05"):
        run.load("05_missing")


def test_results_on_all_cases_are_the_shipped_ones_in_quick_mode(tree):
    (tree / "data/runs/04_y.json").write_text('{"results": {"cases": 250}}')
    for mode, cases in (("quick", 60), ("full", 251)):
        made = course.start("04_y", mode).folder / "04_y.json"
        made.write_text(json.dumps({"results": {"cases": cases}}))
    assert course.start("06_z", "quick").load("04_y") == {"cases": 60}
    assert course.start("06_z", "quick").load_full("04_y") == {"cases": 250}
    assert course.start("06_z", "full").load_full("04_y") == {"cases": 251}


def test_a_notebook_of_another_copy_is_refused(tmp_path):
    other = tmp_path / "other"
    (other / "utils/course").mkdir(parents=True)
    (other / "utils/course/run.py").touch()
    (other / "notebooks").mkdir()
    with pytest.raises(RuntimeError, match=f"lies in {other}, and its utils come from"):
        runs.check_root(other / "notebooks")
    for good in (ROOT, ROOT / "notebooks", ROOT / "work/deeper", tmp_path):
        runs.check_root(good)


def test_no_path_of_one_machine():
    place = re.compile(r"(?<![\w.~-])/(work|home|Users)/")
    paths = [ROOT / "README.md", ROOT / "data/README.md", *ROOT.glob("utils/**/*.py")]
    found = [path for path in paths if place.search(path.read_text(encoding="utf-8"))]
    assert found == []
