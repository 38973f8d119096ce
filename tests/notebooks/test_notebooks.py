"""Every notebook keeps the house form, runs, and reports numbers within bands."""

import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys

import nbformat
import pytest
from solutions import NEAR_MISSES, SOLUTIONS
from standin_sandboxes import SandboxStandin
from test_links import shipped_files

from utils import course
from utils.course import ROOT
from utils.course.exercises import _EXERCISES, check

PATHS = course.find_notebooks()
NAMES = [path.stem for path in PATHS]


def load(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


# --- form ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_first_screen(path):
    notebook = load(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title, _, rest = first.source.partition("\n")
    assert re.fullmatch(r"# [A-Z][^\n]+", title)
    sentence = rest.strip().split("\n\n")[0]
    assert sentence.rstrip().endswith(".") and not sentence.startswith("|")
    for row in ("Goal", "Needs", "Minutes", "Dollars", "Produces"):
        assert re.search(rf"^\| {row} \| .+ \|$", first.source, re.M), row
    parameters = [
        c for c in code_of(notebook) if "parameters" in c.metadata.get("tags", [])
    ]
    assert len(parameters) == 1
    assert notebook.cells[1] is parameters[0]
    assert parameters[0].source.startswith('MODE = "quick"')
    names = re.findall(r"^[A-Z_, ]+ = ", parameters[0].source, re.M)
    assert 1 <= sum(n.count(",") + 1 for n in names) <= 12


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_headings_and_the_end(path):
    notebook = load(path)
    text = "\n\n".join(prose_of(notebook))
    assert len(re.findall(r"^# ", text, re.M)) == 1
    headings = re.findall(r"^## (.+)$", text, re.M)
    *numbered, claim, exercises = headings
    assert claim == "What you can now claim" and exercises == "Exercises"
    assert [h.split(".")[0] for h in numbered] == [
        str(i) for i in range(1, len(numbered) + 1)
    ]
    tasks = set(
        re.findall(r'check\("([0-9.]+)"', "\n".join(map(str, code_of(notebook))))
    )
    assert tasks == {f"{path.stem[:2]}.{i}" for i in (1, 2, 3)}
    assert not re.search(r"[\U0001F000-\U0001FAFF\u2600-\u27BF]", text)
    following = NAMES.index(path.stem) + 1
    if following < len(NAMES):
        assert f"({NAMES[following]}.ipynb)" in prose_of(notebook)[-1]


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_cells_are_short(path):
    sources = [cell.source for cell in code_of(load(path))]
    lengths = sorted(
        len([line for line in s.splitlines() if line.strip()]) for s in sources
    )
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[-1] <= 40
    assert max(len(line) for s in sources for line in s.splitlines()) <= 88
    assert not any("pip install" in source for source in sources)
    words = sum(len(text.split()) for text in prose_of(load(path)))
    assert 500 <= words <= 1400


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_after_each_figure_the_reader_is_told_how_to_read_it(path):
    cells = load(path).cells
    drawn = [
        i for i, cell in enumerate(cells) if "plots.figure(" in cell.get("source", "")
    ]
    assert drawn
    for i in drawn:
        assert re.search(r'plots\.figure\("[^"]+\?"', cells[i].source)
        assert "How to read it:" in cells[i + 1].source


# --- saved outputs -------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_saved_outputs_are_of_the_code_as_it_stands(path):
    notebook = load(path)
    stored = notebook.metadata.get("course", {})
    assert stored.get("mode") == "full"
    assert stored["sources"] == course.fingerprint(notebook), (
        "run: python -m utils.course run --mode full --save --only " + path.stem[:2]
    )
    assert all(cell.execution_count for cell in code_of(notebook))


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_saved_outputs_are_clean(path):
    assert path.stat().st_size < 600_000
    notebook = load(path)
    assert "widgets" not in notebook.metadata
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    text = json.dumps(outputs)
    assert not re.search(r"(/work/|/root/|/home/|/tmp/|/Users/)", text)
    assert "\\u001b" not in text
    assert "Warning" not in text
    assert "image/png" in text


def test_the_readme_shows_the_shipped_runs():
    saved = {p.stem: json.loads(p.read_text()) for p in course.SHIPPED.glob("*.json")}
    assert set(NAMES) <= set(saved)
    readme = (ROOT / "README.md").read_text()
    assert course.table(saved) in readme, "run: make figure"
    assert "data/runs/ladder.png" in readme
    png = (course.SHIPPED / "ladder.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_stated_minutes_were_enough(path):
    stated = re.search(r"\| Minutes \| (\d+)", load(path).cells[0].source)[1]
    card = json.loads((course.SHIPPED / f"{path.stem}.json").read_text())["card"]
    assert card["seconds"] < 60 * int(stated)
    assert "--mode full" in card["command"]
    assert card["sources"] == load(path).metadata["course"]["sources"]


# --- execution -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A clone, as a stranger has it, with all notebooks run in quick mode."""
    tree = clone(tmp_path_factory.mktemp("course"))
    done = run(tree, "--mode", "quick")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return tree


def clone(folder):
    """Copy what git would: tracked and new files, not the ignored ones."""
    for path in shipped_files():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def run(tree, *arguments, **variables):
    """Run the course in `tree`, whose utils take precedence over the installed ones."""
    keep = {k: v for k, v in os.environ.items() if k not in ("OPENAI_API_KEY", "MODEL")}
    return subprocess.run(
        [sys.executable, "-m", "utils.course", "run", *arguments],
        cwd=tree,
        env=keep | {"PYTHONPATH": str(tree)} | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )


def results(tree, name, mode="quick"):
    return json.loads((tree / "runs" / mode / f"{name}.json").read_text())["results"]


@pytest.mark.timeout(900)
def test_all_run_in_quick_mode_without_key_or_noise(executed):
    for name in NAMES:
        notebook = load(executed / "runs/quick" / f"{name}.ipynb")
        outputs = [o for cell in code_of(notebook) for o in cell.outputs]
        noise = [o.text for o in outputs if o.get("name") == "stderr"]
        assert not [text for text in noise if "\r" not in text]
        assert (executed / "runs/quick" / f"{name}.html").stat().st_size > 100_000


def test_00_reaches_a_verdict_for_each_price_tier(executed):
    found = results(executed, "00_start_here")
    assert found["traces"] == 1386 and found["reviewed"] == 276 + 538
    assert 0.30 < found["approved"]["value"] < 0.38
    assert set(found["verdicts"]) == set(found["signals"]) == set(found["bill"])
    verdicts = {v.split(":")[0] for v in found["verdicts"].values()}
    assert verdicts <= {"go", "no-go", "not yet"}


def test_every_verdict_can_be_reached():
    cells = code_of(load(PATHS[0]))
    scope = {}
    exec(next(c.source for c in cells if "def decide" in c.source), scope)
    off = dict.fromkeys(("cost", "latency", "quality"), False)
    decide = scope["decide"]
    assert decide(off, True) == "no-go: stay on the API"
    assert decide(off | {"cost": True, "latency": None}, True) == "go: cost"
    assert decide(off | {"latency": None}, True) == "not yet: measure latency"
    assert decide(off | {"cost": True}, False) == "not yet: collect and review first"


def test_01_cleans_and_redacts(executed):
    found = results(executed, "01_collect_logs")
    steps = found["steps"]
    kept = steps.pop("kept")
    assert sum(steps.values()) == kept and 1200 < kept < 1348
    assert found["recall"]["all"][0] >= 0.95
    assert found["precision"]["all"][0] >= 0.90
    assert found["asked_live"] is False
    clean = (executed / "runs/quick/01_clean_traces.jsonl").read_text()
    assert len(clean.splitlines()) == kept
    truth = (ROOT / "data/pii.jsonl").read_text().splitlines()
    mails = [
        s["text"] for t in truth for s in json.loads(t)["spans"] if "@" in s["text"]
    ]
    assert mails and not any(mail in clean for mail in mails)
    assert "recall" in (executed / "runs/quick/01_dataset_card.md").read_text()


def test_02_measures_the_launch_prompt_exactly(executed):
    found = results(executed, "02_build_evals")
    assert (found["right"], found["live"], found["lucky"]) == (91, 104, 13)
    assert found["judges"]["plain"][:2] == [1.0, 0.0]
    assert found["judges"]["policy"][0] == pytest.approx(83 / 91)
    assert found["judges"]["policy"][1] == pytest.approx(151 / 159)
    value, low, high = found["corrected"]["policy, corrected"]
    assert low < value < high and low < found["corrected"]["truth"][0] < high
    assert "plain, corrected" not in found["corrected"]
    assert found["leaks"] == {"logs": 0, "practice set": 0}
    assert found["same_sql"] == 0 and 1 <= found["same_rows"] <= 10
    assert sum(found["taxonomy"].values()) == 120
    (bar,) = found["ladder"]
    assert bar["low"] == pytest.approx(0.307, abs=0.001)
    assert bar["high"] == pytest.approx(0.425, abs=0.001)


def test_03_finds_the_ceiling(executed):
    found = results(executed, "03_prompt_ceiling")
    wanted = {"launch": 91, "terse": 86, "caveman": 94}
    wanted |= {"four_rules": 198, "fewshot": 241, "rules": 250}
    assert found["right"] == wanted
    assert found["tokens"]["rules"] == pytest.approx([901, 111], abs=1)
    assert found["differences"]["rules"]["p"] < 1e-30
    assert found["differences"]["caveman"]["p"] > 0.05
    for tier in found["per_thousand_right"].values():
        assert tier["rules"][0] < tier["launch"][0]
        assert all(low <= value <= high for value, low, high in tier.values())
    assert found["quality_still_rises"] is True
    # 108 tokens out become 69 of 544 + 108, at five times the price of those in.
    plain = 5 * (108 - 69) / (544 + 5 * 108)
    assert found["caveman_saves"]["no cache"] == pytest.approx(plain, abs=0.01)
    assert found["caveman_saves"]["cached"] > 1.5 * plain
    for tier, dollars in found["cached_per_thousand_right"].items():
        assert dollars["rules"] == found["per_thousand_right"][tier]["rules"][0]
        assert (
            dollars["fewshot"] < 0.5 * found["per_thousand_right"][tier]["fewshot"][0]
        )
    assert found["live"] == {}


def test_04_trains_for_real_and_evaluates_the_shipped_adapter(executed):
    found = results(executed, "04_train_sft")
    full = json.loads((course.SHIPPED / "04_train_sft.json").read_text())["results"]
    assert found["cases"] == 60 and full["cases"] == 250
    assert found["ladder"] == [] and len(full["ladder"][0]["right"]) == 250
    # The same adapter on the first 60 of the same cases; another machine's rounding
    # may tip a token.
    assert abs(found["right"]["SFT"] - sum(full["ladder"][0]["right"][:60])) <= 2
    assert full["right"]["launch"] == 91
    assert full["difference"]["low"] > 0.30
    assert full["dropped"]["left"] == found["dropped"]["left"] > 800
    low = full["broken_habits"]["thumbs_up"][1]
    assert low > full["broken_habits"]["approved"][2]  # the intervals are apart
    assert found["arms"] == full["arms"] and found["parts"] == full["parts"]
    assert {n for _, n in full["arms"].values()} == {150} and len(full["arms"]) == 8
    (trained,) = (executed / "runs/quick").glob("04_quick-*/card.json")
    card = json.loads(trained.read_text())
    assert card["config"]["steps"] == 4 and card["seconds"] > 0
    notebook = (executed / "runs/quick/04_train_sft.ipynb").read_text()
    assert "Replayed, not run now: 04_sft" in notebook
    assert "Runs here: MODE" in notebook


def test_05_halves_for_real_and_replays_the_shipped_sweep(executed):
    found = results(executed, "05_sweep_cheaply")
    full = json.loads((course.SHIPPED / "05_sweep_cheaply.json").read_text())["results"]
    assert found["log"] == full["log"] and found["best"] == full["best"]
    assert found["steps"]["halving"] < 0.7 * found["steps"]["grid"]
    survivors = [r["name"] for r in full["log"] if r["step"] == full["log"][-1]["step"]]
    first = [row for row in full["log"] if row["step"] == full["log"][0]["step"]]
    assert len(survivors) < len(first)
    (trained,) = (executed / "runs/quick").glob("05_quick-*/card.json")
    log = (trained.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in log] == [1, 1, 2]


def test_06_practises_for_real_and_replays_the_shipped_run(executed):
    found = results(executed, "06_train_rl")
    full = json.loads((course.SHIPPED / "06_train_rl.json").read_text())["results"]
    assert found["right"] == full["right"]
    assert {n for _, n in full["right"].values()} == {250}
    assert [len(bar["right"]) for bar in full["ladder"]] == [250, 250]
    assert full["right"]["SFT"][0] < full["right"]["GRPO, seed 0"][0]
    assert found["before"] == full["before"] and full["before"]["mixed"] > 120
    # Another machine's rounding may tip a token.
    same, asked = found["adapter_repeats"]
    assert asked == 16 and same >= 14
    (trained,) = (executed / "runs/quick").glob("06_quick-*/card.json")
    log = (trained.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in log] == [0, 1, 2, 2]
    notebook = (executed / "runs/quick/06_train_rl.ipynb").read_text()
    assert "Replayed, not run now: 06_rl_seed_0" in notebook
    assert "Replayed, not run now: 06_rl_seed_1" in notebook


def test_07_presses_for_real_and_replays_the_shipped_runs(executed):
    found = results(executed, "07_catch_reward_hacking")
    full = json.loads((course.SHIPPED / "07_catch_reward_hacking.json").read_text())
    full = full["results"]
    for name, done in full["trained"].items():  # another SQLite may tip a verdict
        assert found["trained"][name]["right"] == pytest.approx(done["right"], abs=1)
    for name, curve in full["best_of"].items():
        assert found["best_of"][name]["right"] == pytest.approx(
            curve["right"], abs=0.01
        )
        assert curve["pay"] == sorted(curve["pay"])
    for name in ("live", "overlap", "short"):  # pay is up and truth is down
        for one in (found, full):
            pay, right = one["searched"][name]["pay"], one["searched"][name]["right"]
            assert pay[-1] >= pay[0] and right[-1] < right[0] - 0.1
        assert pay[-1] > pay[0]
    assert full["best_of"]["short"]["right"][-1] < full["best_of"]["short"]["right"][0]
    assert full["trained"]["short"]["change"]["high"] < 0
    for name in ("truth", "short if right"):
        right = full["searched"][name]["right"]
        assert right == sorted(right)
        assert full["trained"][name]["change"]["high"] > 0
    (trained,) = (executed / "runs/quick").glob("07_quick-*/card.json")
    assert not list(trained.parent.rglob("*.safetensors"))
    notebook = (executed / "runs/quick/07_catch_reward_hacking.ipynb").read_text()
    assert "Replayed, not run now: 07_short" in notebook


def test_08_measures_predicts_and_carries_it_to_a_hundred_thousand(executed):
    found = results(executed, "08_scale_rollouts")
    full = json.loads((course.SHIPPED / "08_scale_rollouts.json").read_text())
    full = full["results"]
    assert {"fresh, 2 at a time, 1000", "pool of 2, 100000"} <= set(full["measured"])
    for one in (found, full):
        assert one["measured"].keys() == one["predicted"].keys()
        for name, seen in one["measured"].items():  # the machine may be busy
            assert 0.2 < one["predicted"][name] / statistics.median(seen) < 5, name
        pool, naive = (one["measured"][f"{w}, 100"] for w in ("pool of 2", NAIVE))
        assert statistics.median(pool) < statistics.median(naive)
        for name, (closed, simulated) in one["closed_forms"].items():
            random = name.startswith("wait")
            assert simulated == pytest.approx(closed, rel=0.2 if random else 1e-6)
        assert {n for n in one["closed_forms"] if n.startswith("wait")} == set(
            one["two_standard_errors"]
        )
        told, met = (statistics.median(seen) for seen in one["whole_call"].values())
        assert 0.2 < told / met < 5
        short, long = one["scaled"]["short"], one["scaled"]["long"]
        seconds, dollars, _ = short["one a job, 5/s, 100 at a time"][-1]
        assert seconds == pytest.approx(100_000 / 5, rel=0.01)  # creation, no more
        small = short["pool of 4, 256 a call"][-1]
        assert small[0] < seconds / 20 and small[1] < dollars / 50
        starter, team = (long[f"one a job, 5/s, {n} at a time"][-1] for n in LIMITS)
        assert starter[2] == 100 and 100 < team[2] < 1_000
        assert team[0] == pytest.approx(100_000 / 5, rel=0.02) and starter[0] > team[0]
        for size in (8, 512):
            idle = [one["idle_usd"][f"{how}, {size}"] for how in STEPS]
            assert min(idle[0]) > max(idle[1]) and min(idle[1]) > max(idle[2])
    # Seconds rise with jobs, and a higher limit never makes it slower.
    for runs in full["rates"].values():
        assert all(b <= a * 1.01 for a, b in itertools.pairwise(runs))


NAIVE, LIMITS = "fresh, 2 at a time", ("100", "1,000")
STEPS = ("wait for all", "5 % spare", "asynchronous")


@pytest.mark.timeout(120)
def test_08_uses_modal_where_there_is_a_token(capsys):
    cells = code_of(load(course.find_notebooks("08")[0]))
    source = next(c.source for c in cells if "ModalPool(tidewater" in c.source)
    scope = {}
    exec(
        "import time\n"
        "from utils import remote, tidewater\n"
        "from utils.modal_sandbox import ModalPool\n"
        "MODE, RATE = 'modal', 50.0\n"
        "def take(half, n):\n"
        "    case = tidewater.load_cases()[half]\n"
        "    return [('warehouse', case['sql'])] * 300\n",
        scope,
    )
    exec(source, scope)
    assert "no sandbox was created on Modal" in capsys.readouterr().out
    with SandboxStandin() as server:
        exec(source, scope)
        assert not server.unknown and not server.errors
        assert 1 <= len(server.sandboxes) <= 2  # 300 jobs are two calls of 256 or less
    assert re.search(r"300 jobs, [12] sandboxes, .* on Modal", capsys.readouterr().out)


def test_09_serves_for_real_and_replays_the_shipped_runs(executed):
    found = results(executed, "09_serve_your_model")
    full = json.loads((course.SHIPPED / "09_serve_your_model.json").read_text())
    full = full["results"]
    assert len(full["served"]["right"]) == 250 and full["served"]["outcomes"]
    # Another machine's SQLite may tip a verdict; the replies are the shipped ones.
    assert abs(sum(found["served"]["right"]) - sum(full["served"]["right"])) <= 1
    forms = {"adapter", "merged", "CTranslate2"}
    forms |= {f"served, {kind}" for kind in ("F32", "F16", "Q8_0", "Q4_0")}
    assert found["parity"].keys() == forms
    for name in ("merged", "CTranslate2", "served, F32"):
        assert full["parity"][name]["same verdict"] >= 97, name
    assert full["agree"] >= 240
    assert [row["clients"] for row in full["load"]] == [1, 4, 16]
    assert full["load"][0]["p50"] < 1  # the aim of the course, on 2 cores
    assert all(row["lost"] == row["refused"] == 0 for row in full["load"])
    for one in (found["over"], full["over"]):  # measured in this very run
        assert one["one try"]["refused"] > 0
        assert one["one try"]["lost"] == one["retries"]["lost"] == 0
        assert one["retries"]["refused"] == 0
    assert 0 < found["cold_start_seconds"] < 60
    notebook = (executed / "runs/quick/09_serve_your_model.ipynb").read_text()
    assert "Not started: vllm serve" in notebook and "unreachable" in notebook


def test_10_prices_right_answers_and_reaches_verdicts(executed):
    found = results(executed, "10_compare_costs")
    full = json.loads((course.SHIPPED / "10_compare_costs.json").read_text())["results"]
    (bar,) = full["ladder"]
    assert bar["name"] == "routed" and len(bar["right"]) == bar["n"] == 250
    for name, one in full["auroc"].items():  # another SQLite may tip a verdict
        assert found["auroc"][name]["value"] == pytest.approx(one["value"], abs=0.03)
    saved = [json.loads(p.read_text()) for p in course.SHIPPED.glob("0[2346]_*.json")]
    bars = [b for one in saved for b in one["results"].get("ladder", ())]
    names = {b["name"] for b in bars} | {"untrained", "routed"}
    assert set(full["dollars"]) == names
    prompts = json.loads((course.SHIPPED / "03_prompt_ceiling.json").read_text())
    known = prompts["results"]["per_thousand_right"]
    for tier, each in known.items():
        for name, triple in each.items():
            assert full["api"][tier][name] == pytest.approx(triple)
    assert full["dollars"]["prompt: rules"] == full["api"]["claude-haiku-5.5"]["rules"]
    # The untrained model has hardly anything right, so it costs hardly anything less.
    assert sum(full["untrained"]["right"]) < 5
    for triple in full["dollars"].values():
        value, low, high = (math.inf if x is None else x for x in triple)
        assert 0 < low <= value <= high
    for name, each in full["fifth"].items():
        shares = [u for triple in each.values() for u in triple if u is not None]
        assert all(0 < u <= 1 for u in shares)
        assert shares or name == "routed"
    assert len(full["routed"]) == 4  # two price tiers, with a cache and without
    for market, one in full["routed"].items():
        share = one["share"]
        assert 0 < share["low"] < share["value"] < share["high"] < 1 and one["usd"] > 0
        assert one["difference"]["low"] <= one["difference"]["value"] <= 0
        tier, way = market.split(" | ")
        value, low, high = full["ours"][tier][way.replace("rules", "routed")]
        per_right = 1000 * one["usd"] / (sum(one["right"]) / len(one["right"]))
        assert low < value < high and value == pytest.approx(per_right)
    for each in full["ours"].values():  # calls and rival are cheaper with a cache
        assert each["rules, cached"][0] < each["rules"][0]
        assert each["routed, cached"][0] < each["routed"][0]
    use = full["utilisation"]
    assert 0 < use["today"] < use["100 x today"] <= use["assumed"] + 1e-9 <= 1
    for one in full["a_fifth"].values():
        said = [one["30%"], one["today"], one["100 x today"]]
        assert set(said) <= {"stands", "open", "falls"}
        ranks = [["falls", "open", "stands"].index(word) for word in said]
        assert ranks[1] <= ranks[2] <= ranks[0]  # busier machines are cheaper
        assert (one["needs"] == "never") <= (set(said) == {"falls"})
    verdicts = [said for both in full["verdicts"].values() for said in both.values()]
    assert {said.split(":")[0] for said in verdicts} <= {"go", "no-go", "not yet"}
    assert len(verdicts) == 2 * 2 * 2 * 3 and "no-go: stay on the API" in verdicts
    for key, both in full["verdicts"].items():  # at today's volume nothing is paid back
        if "| 1 x today" in key:
            assert both["if the API is in time"] == "no-go: stay on the API"
    for name, one in full["auroc"].items():
        assert one["low"] <= one["value"] <= one["high"]
        if name.startswith("log-probability"):
            assert one["low"] > 0.5  # better than chance
    assert list((executed / "runs/quick").glob("10_quick-*/card.json"))
    notebook = (executed / "runs/quick/10_compare_costs.ipynb").read_text()
    assert "Replayed, not run now: 10_signals" in notebook


def test_10_applies_the_rule_of_00():
    def rule(path):
        cells = code_of(load(path))
        source = next(c.source for c in cells if "def decide" in c.source)
        return course.bare_source(source)

    (tenth,) = [path for path in PATHS if path.stem.startswith("10")]
    assert rule(PATHS[0]) == rule(tenth)


def test_10_judges_a_readers_numbers():
    (tenth,) = [path for path in PATHS if path.stem.startswith("10")]
    sources = [cell.source for cell in code_of(load(tenth))]
    scope = {}
    exec("from utils import costs", scope)
    parameters = next(s for s in sources if "MOST_WRONG =" in s)
    for part in (parameters, "def decide", "def refuse_nonsense", "def judge"):
        exec(next(s for s in sources if part in s), scope)
    yours = {
        "questions a month": 1_000_000,
        "tokens in": 1_000,
        "tokens out": 100,
        "USD a million in": 2.0,
        "USD a million out": 10.0,
        "API right": 1.0,
        "ours right": 0.99,
        "ours less API": (-0.015, 0.0),
        "passed on": 0.1,
        "API median seconds": 1.0,
        "our median seconds": 1.0,
        "seconds promised": 2.0,
        "API may cost a month": 1_000,
        "prompting no longer helps": False,
        "USD an hour": 0.36,
        "answers a second": 1.0,
        "utilisation": 0.5,
        "USD once": 1_200,
        "months to earn back": 12,
        "USD a wrong answer costs": 0.0,
        "enough data": True,
    }
    verdict, grounds = scope["judge"](yours)
    # 1,000 x 2 + 100 x 10 = 3,000 USD a million; ours 0.0002 + 0.0003 + 0.0001
    assert verdict == "go: cost"
    assert grounds["API bill a month"] == pytest.approx(3_000)
    per_right, per_answer = (
        "ours over theirs, per right",
        "ours over theirs, per answer, wrong ones paid",
    )
    assert grounds[per_right] == pytest.approx(0.0006 / 0.99 / 0.003)
    assert grounds[per_answer] == pytest.approx(0.2)
    # A hundredth of the answers wrong, at 50 cents each, is 0.005 an answer.
    verdict, grounds = scope["judge"](yours | {"USD a wrong answer costs": 0.5})
    assert verdict == "no-go: stay on the API"
    assert grounds[per_answer] == pytest.approx((0.0006 + 0.005) / 0.003)
    bad = {"ours right": 0.5, "ours less API": (-0.56, -0.44)}
    unsure = {"ours less API": (-0.03, 0.01)}
    better = {"API right": 0.9, "ours less API": (0.04, 0.14)}
    same = {"API right": 0.98, "ours less API": (-0.01, 0.03)}
    for change, word in (
        ({"API may cost a month": 4_000}, "no-go: stay on the API"),
        ({"USD once": 1e6}, "no-go: stay on the API"),
        ({"API median seconds": 3.0}, "go: cost, latency"),
        ({"API median seconds": None, "USD once": 1e6}, "not yet: measure latency"),
        ({"enough data": False}, "not yet: collect and review first"),
        # A quick, cheap and bad model is no answer to anything.
        (bad | {"API median seconds": 3.0}, "no-go: stay on the API"),
        (unsure, "not yet: measure cost"),
        # Late, but nobody has timed the routed system: off only if the API is in time.
        ({"API median seconds": 3.0, "our median seconds": None}, "go: cost"),
        (
            {"API median seconds": 3.0, "our median seconds": None, "USD once": 1e6},
            "not yet: measure latency",
        ),
        ({"our median seconds": None, "USD once": 1e6}, "no-go: stay on the API"),
        ({"API median seconds": 3.0, "our median seconds": 2.5}, "go: cost"),
        (better | {"prompting no longer helps": True}, "go: cost, quality"),
        (
            same | {"prompting no longer helps": True, "USD once": 1e6},
            "not yet: measure quality",
        ),
    ):
        assert scope["judge"](yours | change)[0] == word, change
    for wrong in ({"ours right": 90}, {"passed on": -1}, {"utilisation": 0}):
        with pytest.raises(ValueError, match="shares"):
            scope["judge"](yours | wrong)
    for wrong in ({"questions a month": 0}, {"months to earn back": 0}):
        with pytest.raises(ValueError, match="more than 0"):
            scope["judge"](yours | wrong)
    with pytest.raises(ValueError, match="low and high"):
        scope["judge"](yours | {"ours less API": (0.0, 0.01)})


def test_11_watches_for_real_and_replays_the_shipped_runs(executed):
    found = results(executed, "11_close_the_loop")
    full = json.loads((course.SHIPPED / "11_close_the_loop.json").read_text())
    full = full["results"]
    for one in (found, full):
        assert one["shadow"]["all"]["n"] > 400
        saved = {name: each["saved"] for name, each in one["partners"].items()}
        assert saved["launch"]["high"] < saved["fewshot"]["low"]
        peeked, rarer, sequential = one["false_alarms"].values()
        assert peeked["low"] > 0.1 and rarer["value"] < peeked["value"]
        assert sequential["low"] < 0.05 and sequential["value"] < 0.08
        back = {name: each["rolled_back"] for name, each in one["releases"].items()}
        assert back["cut at 64 tokens"]["low"] > 0.95
        assert back["system prompt added"]["low"] > 0.95
        # In resampled streams one that lost a little more than it won may be stopped.
        assert max(back[n]["value"] for n in ("rejection sampling", "other seed")) < 0.1
        before, after, n = one["drift"]
        assert n == 23 and before >= 19 and after <= 2
        assert [name for name, when in one["alarms"].items() if when] == ["shipments"]
        assert 250 < one["alarms"]["shipments"] <= 500
        assert not any(one["quiet"].values())
        eval_wrong = one["limits"]
        assert "none" in eval_wrong and set(eval_wrong) == set(one["alarms"])
        assert eval_wrong["none"]["n"] == 250  # replies without a table, of all
        assert one["noticed"]["low"] > 0.6 and one["noticed"]["early"] <= 2
        mended = one["retrained"]["cases of the rule"]["fifty and old"]
        assert mended["change"]["low"] > 0.4
        others = one["retrained"]["all others"]
        assert others["fifty and old"]["change"]["low"] > -0.1
        assert others["fifty alone"]["change"]["high"] < 0  # it forgets
    for name, each in full["releases"].items():  # another SQLite may tip a verdict
        assert found["releases"][name]["right"] == pytest.approx(each["right"], abs=1)
    for name, each in full["partners"].items():
        for share in ("saved", "missed", "caught"):
            assert found["partners"][name][share]["value"] == pytest.approx(
                each[share]["value"], abs=0.03
            )
    for part, each in full["retrained"].items():
        for name, one in each.items():
            assert found["retrained"][part][name]["value"] == pytest.approx(
                one["value"], abs=0.05
            )
    (trained,) = (executed / "runs/quick").glob("11_quick-*/card.json")
    assert not list(trained.parent.rglob("*.safetensors"))
    notebook = (executed / "runs/quick/11_close_the_loop.ipynb").read_text()
    for name in ("shadow", "week", "fifty_and_old", "system_prompt_added"):
        assert f"Replayed, not run now: 11_{name}" in notebook


def test_shipped_runs_have_their_logs_cards_and_adapters():
    for name in ("04_sft", "06_rl_seed_0"):
        adapter = course.SHIPPED / name / "adapter" / "adapter_model.safetensors"
        assert adapter.stat().st_size < 20e6
    for folder in course.SHIPPED.glob("0[4567]_*/"):
        card = json.loads((folder / "card.json").read_text())
        assert card["seconds"] > 0 and card["hardware"]["cores"] and card["commit"]
        # Sampling alone has nothing to log; its replies are the result.
        trained = "steps" in card["config"] or folder.name == "05_sweep"
        assert (folder / "log.jsonl").read_text().strip() or not trained
        text = "".join(f.read_text() for f in folder.glob("*.json*"))
        assert not re.search(r"(/work/|/root/|/home/|/tmp/|/Users/)", text)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_each_notebook_runs_alone(name, tmp_path):
    tree = clone(tmp_path)
    done = run(tree, "--only", name)
    assert done.returncode == 0, done.stdout[-3000:]
    assert results(tree, name)


@pytest.mark.timeout(600)
def test_with_a_key_the_same_notebooks_ask_the_readers_server(tmp_path, chat_server):
    chat_server.script = ["Counting.\n```sql\nSELECT COUNT(*) FROM tickets\n```"]
    live = {
        "OPENAI_BASE_URL": chat_server.url,
        "OPENAI_API_KEY": "k",
        "MODEL": "the-readers-model",
    }
    tree = clone(tmp_path)
    done = run(tree, "--only", "01", **live)
    assert done.returncode == 0, done.stdout[-3000:]
    assert results(tree, "01_collect_logs")["asked_live"] is True
    assert len(chat_server.requests) == 2  # the assistant, and the wrapped client
    done = run(tree, "--only", "03", **live)
    assert done.returncode == 0, done.stdout[-3000:]
    answers = results(tree, "03_prompt_ceiling")["live"]
    assert answers["launch"]["outcomes"] == {"answered": 20}
    assert len(chat_server.requests) == 2 + 40
    assert {r["model"] for r in chat_server.requests} == {"the-readers-model"}


@pytest.mark.timeout(600)
def test_an_unreachable_server_is_told_and_stops_nothing(tmp_path):
    gone = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    gone |= {"OPENAI_API_KEY": "k", "MODEL": "m"}
    tree = clone(tmp_path)
    done = run(tree, "--only", "01", **gone)
    assert done.returncode == 0, done.stdout[-3000:]
    executed = (tree / "runs/quick/01_collect_logs.ipynb").read_text()
    assert "Outcome: unreachable" in executed
    assert results(tree, "01_collect_logs")["asked_live"] is False


# --- exercises -----------------------------------------------------------------------


def test_there_is_a_solution_to_every_exercise():
    assert SOLUTIONS.keys() == _EXERCISES.keys()
    assert {name[:2] for name in SOLUTIONS} == {name[:2] for name in NAMES}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_solution_is_right_and_no_other_answer(name):
    verdict = check(name, SOLUTIONS[name])
    assert verdict, repr(verdict)
    for empty in (..., None, "", [], {}):
        assert not check(name, empty)
    absurd = (-1, "SELECT 1", "go", {"spans": []}, lambda x: x)
    for wrong in (NEAR_MISSES[name], *absurd):
        verdict = check(name, wrong)
        assert not verdict
        assert name in repr(verdict) and len(repr(verdict)) > 30
    with pytest.raises(ValueError, match="no exercise"):
        check("99.9", 1)
