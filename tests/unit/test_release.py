"""The authors' tool: what is published is clean, complete and of its own code."""

import json

import nbformat
import pytest
import release
from nbformat.v4 import new_code_cell, new_notebook, new_output

CARD = {"name": "04_sft", "date": "2026-11-29", "seconds": 3.0}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A course of one notebook with a full run behind it."""
    monkeypatch.setattr(release, "ROOT", tmp_path)
    costly = tmp_path / "runs/full/04_sft-0123abcd"
    for folder in ("notebooks", "data/runs", costly / "adapter"):
        (tmp_path / folder).mkdir(parents=True)
    cells = [new_code_cell("work()"), new_code_cell("more()")]
    path = tmp_path / "notebooks/04_n.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    executed = nbformat.read(path, as_version=4)
    executed.cells.insert(0, new_code_cell('MODE = "full"'))  # as papermill does
    widget = {"application/vnd.jupyter.widget-view+json": 1, "text/plain": "bar"}
    home = release.Path.home()
    executed.cells[1].outputs = [
        new_output("stream", text=f"\x1b[31mred\x1b[0m {tmp_path}/data/x {home}/y"),
        new_output("stream", name="stderr", text="\rx:  40%|####  | 2/5\r      \r"),
        new_output("stream", name="stderr", text="\rx:  40%|## | 2/5\nWarning: y"),
        new_output("display_data", data=widget),
    ]
    nbformat.write(executed, tmp_path / "runs/full/04_n.ipynb")
    (tmp_path / "runs/full/04_n.json").write_text('{"card": {}, "results": {}}')
    (tmp_path / "runs/full/04_train.examples.jsonl").write_text("{}\n")
    for name in ("log.jsonl", "result.json", "checkpoint-3"):
        (costly / name).write_text("{}")
    (costly / "card.json").write_text(json.dumps(CARD))
    settings = '{"base_model_name_or_path": "/home/me/smollm2"}'
    (costly / "adapter/adapter_config.json").write_text(settings)
    return tmp_path


def test_a_full_run_is_published_without_the_machine_and_its_checkpoints(tree):
    release.publish(tree / "notebooks/04_n.ipynb")
    notebook = nbformat.read(tree / "notebooks/04_n.ipynb", as_version=4)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    text, warning, display = notebook.cells[0].outputs
    assert text.text == "red data/x ~/y"
    assert "Warning: y" in warning.text  # a bar alone goes, a warning stays to be seen
    assert display.data == {"text/plain": "bar"}
    stamp = {"mode": "full", "cells": release.fingerprint(notebook)}
    assert notebook.metadata.course == stamp
    notebook.cells[1].source = "more(2)"
    assert release.fingerprint(notebook) != stamp["cells"]
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


def test_the_ladder_draws_gains_and_dollars():
    bar = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2, "right": [True, False]}
    steps = [bar | {"name": name} for name in ("a", "b")]
    steps[1] |= {"value": 1.0, "right": [True, True]}
    dollars = {"a": {"today": 0.1457, "promise": 0.07}}  # b was never served
    volumes = {"today": 1_918, "promise": 17.8e6}
    axes = release.ladder(steps, dollars, volumes)
    texts = [text.get_text() for text in axes.texts]
    assert {"50.0", "100.0", "0.146", "0.070"} <= {*texts}
    assert {"1,900 a month", "18 million a month"} <= {*texts}
    assert sum(text.startswith("+50.0 points") for text in texts) == 1
