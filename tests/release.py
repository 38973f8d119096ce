"""The authors' tool: from a full run to what the repository shows.

python tests/release.py publish [--only 02]     outputs and results of runs/full
python tests/release.py publish --mode quick    no more than the minutes of runs/quick
python tests/release.py readme                  the figures and tables of both READMEs
"""

import argparse
import hashlib
import itertools
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import nbformat
from nbconvert.filters import strip_ansi

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import front  # noqa: E402

from utils.costs.bill import count  # noqa: E402
from utils.course import plots  # noqa: E402
from utils.course.run import run_card  # noqa: E402
from utils.evals.stats import paired_difference  # noqa: E402


def find_notebooks(only=""):
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
    return [path for path in paths if only in ("", path.stem.split("_")[0])]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook):
    """Return what saved outputs belong to: a hash of the notebook's own code."""
    text = "\n\n".join(cell.source for cell in code_of(notebook))
    return hashlib.sha256(text.encode()).hexdigest()


# --- publish -------------------------------------------------------------------------


def publish(path):
    """Put a full run's outputs into a notebook and its files into data/runs.

    Raises SystemExit where the executed copy is of other code than the notebook's.
    """
    runs, shipped = ROOT / "runs/full", ROOT / "data/runs"
    notebook = nbformat.read(path, as_version=4)
    executed = nbformat.read(runs / path.name, as_version=4)
    ran = {cell.id: cell for cell in code_of(executed)}
    for number, cell in enumerate(code_of(notebook), start=1):
        if cell.id not in ran or ran[cell.id].source != cell.source:
            sys.exit(f"{path.name}: cell {cell.id} was edited after the full run")
        outputs = [one for one in ran[cell.id].outputs if not is_progress(one)]
        cell.outputs = [clean(one, number) for one in outputs]
        cell.execution_count = number
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    if "language_info" in executed.metadata:  # or JupyterLab calls the file changed
        notebook.metadata["language_info"] = executed.metadata.language_info
    notebook.metadata["course"] = {"mode": "full", "cells": fingerprint(notebook)}
    nbformat.write(notebook, path)
    number = path.stem.split("_")[0]
    rows = [*runs.glob(f"{number}_*.examples.jsonl"), *runs.glob(f"{number}_clean_*")]
    if number == "06b":
        rows.append(runs / "final.json")  # the best model
    for file in [runs / f"{path.stem}.json", *rows]:
        shutil.copy(file, shipped / file.name)
    # Of two runs of one name the newer one is shipped.
    cards = [card.parent for card in runs.glob(f"{number}_*/card.json")]
    for folder in sorted(cards, key=lambda one: read_json(one / "card.json")["date"]):
        publish_costly(folder, shipped / read_json(folder / "card.json")["name"])


def publish_costly(folder, target):
    """Copy what is kept of a costly run; its checkpoints stay behind."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("card.json", "log.jsonl", "result.json"):
        shutil.copy(folder / name, target)
    if (folder / "adapter").is_dir():
        # No tokenizer and no settings of the trainer: they are large, or name paths.
        (target / "adapter").mkdir()
        for file in (folder / "adapter").glob("adapter_*"):
            shutil.copyfile(file, target / "adapter" / file.name)
        settings = read_json(target / "adapter/adapter_config.json")
        # The folder of the base model is this machine's; its name is enough.
        base = Path(settings["base_model_name_or_path"]).name
        settings["base_model_name_or_path"] = base
        write_json(target / "adapter/adapter_config.json", settings)


def is_progress(output):
    """Whether an output is nothing but tqdm's bars, as '40%|####  | 2/5'."""
    if output.get("name") != "stderr":
        return False
    lines = re.split(r"[\r\n]+", output.text)
    return all("%|" in line or not line.strip() for line in lines)


def clean(output, number):
    """Take this machine's paths, colours and widgets out of an output."""
    data = output.get("data", {})
    for kind in list(data):
        if "widget" in kind:
            del data[kind]
        elif isinstance(data[kind], str):
            data[kind] = clean_text(data[kind])
    if "text" in output:
        output.text = clean_text(output.text)
    if "execution_count" in output:
        output.execution_count = number
    return output


def clean_text(text):
    text = strip_ansi(text).replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    return text.replace(f"{Path.home()}/", "~/")


def publish_minutes(mode):
    """Keep how many seconds each notebook took in a run of all of them."""
    took = {}
    for path in find_notebooks():
        executed = nbformat.read(ROOT / "runs" / mode / path.name, as_version=4)
        took[path.stem] = executed.metadata.papermill.duration
    card = run_card(f"make course MODE={mode}", sum(took.values()))
    saved = {"card": card, "results": {"seconds": took}}
    write_json(ROOT / f"data/runs/course_{mode}.json", saved)


# --- readme --------------------------------------------------------------------------


def write_readme():
    """Draw the README's figures and fill in the tables, all from data/runs."""
    shipped = ROOT / "data/runs"
    saved = {path.stem: read_json(path) for path in sorted(shipped.glob("*_*.json"))}
    found = saved["10_compare_costs"]["results"]
    axes = ladder(ladder_bars(saved), found["dollars"], found["volumes"])
    axes.figure.savefig(shipped / "ladder.png")
    names = front.compute()
    front.draw(names).figure.savefig(shipped / "price.png", dpi=130)
    parts = {"finding": front.finding(names), "ways": front.table(names)}
    parts |= {"notebooks": notebook_table(saved), "minutes": minutes(saved)}
    for name, run in saved.items():
        if name.startswith("bench_"):
            parts[name] = run["results"]["table"]
    for path in (ROOT / "README.md", ROOT / "data/README.md"):
        text = path.read_text(encoding="utf-8")
        for name, part in parts.items():
            # What stands between the two comments is replaced.
            start = f"<!-- {name}: written by make figure -->\n"
            frame = re.compile(f"(?<={start}).*?(?=<!-- end)", re.DOTALL)
            text = frame.sub(lambda _, part=part: f"{part}\n", text)
        path.write_text(text, encoding="utf-8")


def ladder_bars(saved):
    """List the ladder's bars in order; `saved` maps a notebook to its JSON.

    The untrained model, which notebook 10 adds, is the foot of the trained ones.
    """
    bars = [bar for run in saved.values() for bar in run["results"].get("ladder", ())]
    foot = saved["10_compare_costs"]["results"]["untrained"]
    bars.insert([bar["name"] for bar in bars].index("SFT"), foot)
    return bars


def ladder(steps, dollars, volumes):
    """Draw the ladder, a bar a step, with its paired gain over the bar before.

    A step has name, value, low, high (fractions of 1), n, and right: whether each case
    was answered correctly, the same cases in the same order. `volumes` maps a load to
    its questions a month, and `dollars` a name to USD per 1,000 right answers at each
    load. What was not served has no price.
    """
    size = (10.4, 1.2 + 0.42 * len(steps))
    question = "How right is each way to answer, and what does it cost?"
    axes = plots.figure(question, figsize=size)
    named = {step["name"]: SimpleNamespace(**step) for step in steps}
    unit = f"right on all three databases, % of {steps[0]['n']} cases"
    plots.bars(axes, named, unit, 100)
    axes.set_title(question, pad=30)  # above the heads of the columns
    words = {"va": "center", "fontsize": 9, "annotation_clip": False}
    axes.annotate("gain over the bar above", (118, -0.75), **words)
    for row, (before, step) in enumerate(itertools.pairwise(steps), start=1):
        if step["name"] == "untrained":  # another beginning, no step down
            continue
        gain = paired_difference(before["right"], step["right"]).difference
        axes.annotate(gain.points(), (118, row), **words)
    axes.annotate("USD per 1,000 right answers at", (192, -1.25), **words)
    for place, (load, volume) in zip((192, 228), volumes.items(), strict=True):
        axes.annotate(f"{count(volume)} a month", (place, -0.75), **words)
        for row, name in enumerate(named):
            if name in dollars:
                usd = f"{dollars[name][load]:.3f}"
                axes.annotate(usd, (place, row), **words)
    axes.set_xlim(0, 270)
    axes.xaxis.label.set_x(0.19)  # under the bars
    axes.spines["bottom"].set_bounds(0, 100)
    axes.set_xticks(range(0, 101, 20))
    return axes


def stated(path, row):
    """Return what a row of a notebook's first cell says, at the pattern's group."""
    first = nbformat.read(path, as_version=4).cells[0].source
    return re.search(row, first, re.M)[1]


def reading(path):
    return int(stated(path, r"^\| Reading minutes \| (\d+)"))


def notebook_table(saved):
    """Write the README's table of notebooks; `saved` maps a run to its JSON.

    Minutes of reading and of a full run are as a notebook states them, those of a quick
    run as it took.
    """
    rows = [
        "| notebook | what you do | reading | quick run | full run |",
        "| --- | --- | --- | --- | --- |",
    ]
    quick = saved["course_quick"]["results"]["seconds"]
    for path in find_notebooks():
        title = stated(path, r"^# (.+)$")
        full = stated(path, r"^\| Machine minutes \| .*full (\d+)")
        took = quick[path.stem] / 60
        told = f"{took:.0f}" if took >= 1 else "under 1"
        link = f"[{path.stem}](notebooks/{path.name})"
        rows.append(f"| {link} | {title} | {reading(path)} | {told} | {full} |")
    return "\n".join(rows)


def minutes(saved):
    """Say how long the course takes; `saved` maps a run to its JSON.

    A full run from nothing takes the minutes of the notebooks and those of the costly
    runs that they replay, which have cards of their own.
    """
    folders = (ROOT / "data/runs").glob("[0-9][0-9]*_*/card.json")
    cards = [read_json(path) for path in folders]
    on_gpu = [card for card in cards if "H200" in card["hardware"]["cpu"]]
    costly = sum(card["seconds"] for card in cards if card not in on_gpu)
    lent = sum(card["seconds"] for card in on_gpu)
    full = sum(saved[path.stem]["card"]["seconds"] for path in find_notebooks())
    quick = saved["course_quick"]["card"]
    text = (
        f"Reading takes {sum(map(reading, find_notebooks())) / 60:.1f} hours. A quick "
        f"run of all notebooks takes {quick['seconds'] / 60:.1f} minutes on "
        f"{quick['hardware']['cores']} cores, after set-up. "
        f"A full run from nothing takes {(full + costly) / 3600:.1f} hours on 2 cores, "
        f"of which {costly / 3600:.1f} are {len(cards) - len(on_gpu)} costly runs that "
        "full mode replays while their configurations are unchanged. "
        f"{len(on_gpu)} more ran on an H200, in {lent / 60:.1f} minutes; on 2 cores "
        "they take longer, and are not in the sum."
    )
    return "\n".join(textwrap.wrap(text, 88))


def main(arguments=None):
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("command", choices=("publish", "readme"))
    parser.add_argument("--mode", choices=("full", "quick"), default="full")
    parser.add_argument("--only", default="", help="one notebook: 02, or 06b")
    chosen = parser.parse_args(arguments)
    if chosen.command == "readme":
        write_readme()
    elif chosen.mode == "quick":
        publish_minutes("quick")
    else:
        for path in find_notebooks(chosen.only):
            if (ROOT / "runs/full" / path.name).exists():
                publish(path)
                print(f"{path.name}: outputs of runs/full")
    return 0


if __name__ == "__main__":
    sys.exit(main())
