"""The authors' tool: what is published is clean, complete and of its own code."""

import json

import nbformat
import pytest
import release
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A course of one notebook with a full run behind it."""
    monkeypatch.setattr(release, "ROOT", tmp_path)
    for folder in ("notebooks", "data/runs", "runs/full/04_sft-0123abcd/adapter"):
        (tmp_path / folder).mkdir(parents=True)
    cells = [new_markdown_cell("# x"), new_code_cell("work()"), new_code_cell("more()")]
    path = tmp_path / "notebooks/04_n.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    executed = nbformat.read(path, as_version=4)
    executed.cells.insert(1, new_code_cell('MODE = "full"'))  # as papermill does
    widget = {"application/vnd.jupyter.widget-view+json": 1, "text/plain": "bar"}
    home = release.Path.home()
    executed.cells[2].outputs = [
        new_output("stream", text=f"\x1b[31mred\x1b[0m {tmp_path}/data/x {home}/y"),
        new_output("stream", name="stderr", text="\rx:  40%|####  | 2/5\r      \r"),
        new_output("stream", name="stderr", text="\rx:  40%|## | 2/5\nWarning: y"),
        new_output("display_data", data=widget),
    ]
    runs = tmp_path / "runs/full"
    nbformat.write(executed, runs / "04_n.ipynb")
    card = {"name": "04_sft", "date": "2026-11-29", "seconds": 3.0}
    (runs / "04_sft-0123abcd/card.json").write_text(json.dumps(card))
    (runs / "04_sft-0123abcd/checkpoint-3").mkdir()
    for name in ("log.jsonl", "result.json"):
        (runs / "04_sft-0123abcd" / name).write_text("{}")
    settings = {"base_model_name_or_path": "/home/me/smollm2"}
    adapter = runs / "04_sft-0123abcd/adapter/adapter_config.json"
    adapter.write_text(json.dumps(settings))
    (runs / "04_n.json").write_text('{"card": {}, "results": {}}')
    (runs / "04_train.examples.jsonl").write_text("{}\n")
    return tmp_path


def test_outputs_are_published_without_the_machine(tree):
    release.publish(tree / "notebooks/04_n.ipynb")
    notebook = nbformat.read(tree / "notebooks/04_n.ipynb", as_version=4)
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2]
    text, warning, display = notebook.cells[1].outputs
    assert text.text == "red data/x ~/y"
    assert "Warning: y" in warning.text  # a bar alone goes, a warning stays to be seen
    assert display.data == {"text/plain": "bar"}
    stamp = notebook.metadata.course
    assert stamp == {"mode": "full", "cells": release.fingerprint(notebook)}


def test_files_of_the_run_come_along_and_checkpoints_do_not(tree):
    release.publish(tree / "notebooks/04_n.ipynb")
    shipped = tree / "data/runs"
    names = {str(p.relative_to(shipped)) for p in shipped.rglob("*") if p.is_file()}
    costly = {f"04_sft/{name}" for name in ("card.json", "log.jsonl", "result.json")}
    costly.add("04_sft/adapter/adapter_config.json")
    assert names == {"04_n.json", "04_train.examples.jsonl", *costly}
    assert "/home/" not in (shipped / "04_sft/adapter/adapter_config.json").read_text()


def test_outputs_of_other_code_are_refused(tree):
    path = tree / "notebooks/04_n.ipynb"
    path.write_text(path.read_text().replace("more()", "more(2)"))
    with pytest.raises(SystemExit, match="was edited after the full run"):
        release.publish(path)


def test_the_fingerprint_follows_the_code_and_nothing_else():
    def made(code, prose="a"):
        cells = [new_markdown_cell(prose), new_code_cell(code)]
        return release.fingerprint(new_notebook(cells=cells))

    assert made("x = 1") == made("x = 1", prose="b") != made("y = 1")


def test_compare_names_what_moved_and_not_when(tmp_path, capsys):
    for folder, right, date in (("old", 91, "Monday"), ("new", 92, "Tuesday")):
        (tmp_path / folder).mkdir()
        results = {"right": right, "list": [1.5, "word"], "none": None}
        saved = {"card": {"date": date}, "results": results}
        (tmp_path / folder / "02_y.json").write_text(json.dumps(saved))
    arguments = ["compare", str(tmp_path / "old"), str(tmp_path / "new")]
    assert release.main(arguments) == 1
    assert capsys.readouterr().out == "02_y.json: ['results']['right'] '91' -> '92'\n"
    assert release.main([*arguments[:2], arguments[1]]) == 0
    changes = release.differences({"a": [1], "b": 2}, {"a": [1, 2], "c": 2})
    assert [line.split(" ", 1)[0] for line in changes] == ["['a']", "['b']", "['c']"]


def test_the_ladder_draws_each_gain_over_the_bar_above():
    bar = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2, "right": [True, False]}
    steps = [bar | {"name": name} for name in ("a", "b", "c", "d")]
    steps[1] |= {"value": 1.0, "right": [True, True]}
    dollars = {"a": [0.146, 0.1457, 0.148], "b": [None, 1.5, None]}
    dollars["c"] = [2.0, 1.0, None]
    texts = [text.get_text() for text in release.ladder(steps, dollars).texts]
    assert {"50.0", "100.0"} <= {*texts}
    assert sum(text.startswith("+50.0 points") for text in texts) == 1
    assert {"0.146 (0.146 to 0.148)", "none right", "2.000 (1.000 to any)"} <= {*texts}
    plain = [text.get_text() for text in release.ladder(steps).texts]
    assert not any("USD" in text for text in plain)


def test_the_untrained_model_is_the_foot_of_the_trained_bars():
    def saved(*names, **more):
        return {"results": {"ladder": [{"name": name} for name in names], **more}}

    runs = {"03": saved("prompt: rules"), "04": saved("SFT"), "06": saved("GRPO")}
    runs["10"] = saved("routed", untrained={"name": "untrained"})
    names = [bar["name"] for bar in release.ladder_bars(runs)]
    assert names == ["prompt: rules", "untrained", "SFT", "GRPO", "routed"]


def test_the_minutes_are_those_of_the_cards(tree):
    for name, cpu, seconds in (("04_a", "EPYC", 3600), ("06_b", "NVIDIA H200", 90)):
        (tree / "data/runs" / name).mkdir()
        card = {"hardware": {"cpu": cpu, "cores": 2}, "seconds": seconds}
        (tree / "data/runs" / name / "card.json").write_text(json.dumps(card))
    saved = {"04_n": {"card": {"seconds": 3600}}}
    quick = {"card": {"hardware": {"cores": 2}, "seconds": 450}}
    told = " ".join(release.minutes(saved | {"course_quick": quick}).split())
    assert told.startswith("All notebooks in quick mode: 7.5 minutes on 2 cores")
    assert "from nothing: 2.0 hours on 2 cores, of which 1.0 in 1 costly runs" in told
    assert "1 more ran on an H200, in 2 minutes" in told
