"""Every notebook keeps the house form, and its saved outputs are clean and its own."""

import json
import re
import statistics

import pytest
import release
from repository import NAMES, NOTEBOOKS, ROOT, code_of, load, prose_of

SHIPPED = ROOT / "data/runs"
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


@each_notebook
def test_the_first_screen(path):
    notebook = load(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title, _, rest = first.source.partition("\n")
    assert re.fullmatch(r"# [A-Z][^\n]+", title)
    sentence = rest.strip().split("\n\n")[0]
    assert sentence.rstrip().endswith(".") and not sentence.startswith("|")
    for row in ("Goal", "Needs", "(Machine m|M)inutes", "Dollars", "Produces"):
        assert re.search(rf"^\| {row} \| .+ \|$", first.source, re.M), row
    parameters = notebook.cells[1]
    assert parameters.metadata["tags"] == ["parameters"]
    assert parameters.source.startswith('MODE = "quick"')
    names = re.findall(r"^[A-Z_, ]+ = ", parameters.source, re.M)
    assert 1 <= sum(name.count(",") + 1 for name in names) <= 12


@each_notebook
def test_headings_and_the_end(path):
    notebook = load(path)
    text = "\n\n".join(prose_of(notebook))
    assert len(re.findall(r"^# ", text, re.M)) == 1
    *numbered, claim, exercises = re.findall(r"^## (.+)$", text, re.M)
    assert claim == "What you can now claim" and exercises == "Exercises"
    numbers = [heading.split(".")[0] for heading in numbered]
    assert numbers == [str(i) for i in range(1, len(numbered) + 1)]
    code = "\n".join(cell.source for cell in code_of(notebook))
    tasks = set(re.findall(r'check\("([0-9b.]+)"', code))
    numbers = range(1, max(3, len(tasks)) + 1)  # at least three, none left out
    assert tasks == {f"{path.stem.split('_')[0]}.{i}" for i in numbers}
    assert not re.search(r"[\U0001F000-\U0001FAFF\u2600-\u27BF]", text)
    following = NAMES.index(path.stem) + 1
    if following < len(NAMES):
        assert f"({NAMES[following]}.ipynb)" in prose_of(notebook)[-1]


@each_notebook
def test_cells_are_short(path):
    sources = [cell.source for cell in code_of(load(path))]
    # Lines that are not empty.
    lengths = [len(re.findall(r"\S.*", source)) for source in sources]
    assert statistics.median(lengths) <= 8 and max(lengths) <= 40
    words = sum(len(text.split()) for text in prose_of(load(path)))
    assert 500 <= words <= 2000


@each_notebook
def test_a_notebook_is_short_and_opens_with_its_finding(path):
    first, code = load(path).cells[0].source, code_of(load(path))
    lines = [line for cell in code for line in re.findall(r"\S.*", cell.source)]
    assert len(code) <= 40 and len(lines) <= 300, (len(code), len(lines))
    assert max(map(len, lines)) <= 88
    assert re.search(r"^\| Reading minutes \| \d+", first, re.M)
    assert re.search(r"^\| Machine minutes \| quick \d+, full \d+", first, re.M)
    results = json.loads((SHIPPED / f"{path.stem}.json").read_text())["results"]
    assert results["finding"] in " ".join(first.split())


@each_notebook
def test_after_each_figure_the_reader_is_told_how_to_read_it(path):
    cells = load(path).cells
    drawn = [i for i, cell in enumerate(cells) if "plots.figure(" in cell.source]
    assert drawn
    for i in drawn:
        assert re.search(r'plots\.figure\(\s*"[^"]+\?"', cells[i].source)
        assert "How to read it:" in cells[i + 1].source


@each_notebook
def test_saved_outputs_are_of_the_code_as_it_stands(path):
    notebook = load(path)
    stamp = {"mode": "full", "cells": release.fingerprint(notebook)}
    assert notebook.metadata.get("course") == stamp, (
        f"run: make course MODE=full ONLY={path.stem.split('_')[0]}; make publish"
    )
    assert all(cell.execution_count for cell in code_of(notebook))


@each_notebook
def test_saved_outputs_are_clean(path):
    assert path.stat().st_size < 600_000
    notebook = load(path)
    assert "widgets" not in notebook.metadata
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "error"]
    assert not [one for one in outputs if one.get("name") == "stderr"]
    text = json.dumps(outputs)
    assert not re.search(r"/work/|/root/|/home/|/tmp/|/Users/|u001b|Warning", text)
    assert "image/png" in text


@each_notebook
def test_the_stated_minutes_were_enough(path):
    first = load(path).cells[0].source
    stated = re.search(r"\| (?:Machine m|M)inutes \| (?:.*full )?(\d+)", first)[1]
    card = json.loads((SHIPPED / f"{path.stem}.json").read_text())["card"]
    assert card["seconds"] < 60 * int(stated)
    assert re.search(r"MODE=full|--mode full", card["command"])


def test_the_readme_shows_the_shipped_runs():
    saved = {path.stem: release.read_json(path) for path in SHIPPED.glob("*.json")}
    assert {*NAMES} <= saved.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert release.notebook_table(saved) in readme, "run: make figure"
    assert release.minutes(saved) in readme, "run: make figure"
    assert "data/runs/ladder.png" in readme and (SHIPPED / "ladder.png").exists()


def test_shipped_runs_have_their_logs_and_adapters():
    for name in ("04_sft", "06_rl_seed_0"):
        adapter = SHIPPED / name / "adapter/adapter_model.safetensors"
        assert adapter.stat().st_size < 20e6
    for folder in SHIPPED.glob("[0-9][0-9]*_*/"):
        card = json.loads((folder / "card.json").read_text())
        # Sampling alone has nothing to log; its replies are the result.
        trained = card["config"].keys() & {"steps", "max_steps", "rungs"}
        assert (folder / "log.jsonl").read_text().strip() or not trained
        text = "".join(file.read_text() for file in folder.glob("*.json*"))
        assert not re.search(r"(/work/|/root/|/home/|/tmp/|/Users/)", text), folder
