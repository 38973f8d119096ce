"""Each notebook runs once, alone, in a clone; its results lie within bands.

`check_04` and its like hold what is asked of one notebook: `found` are the results of
this run, `full` the shipped ones, `done` has the executed copy and what the run left.
"""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository import NAMES, ROOT, clone, code_of, load
from standin_sandboxes import SandboxStandin

SHIPPED = ROOT / "data/runs"
TIMEOUT = 1_800  # seconds; ends a run that hangs, on a machine however busy
# Rates that another machine's SQLite or rounding may tip by a case.
near = pytest.approx


@dataclass
class Done:
    """A notebook that ran in quick mode: where, and what it said."""

    name: str
    tree: Path

    @property
    def runs(self):
        return self.tree / "runs/quick"

    @property
    def results(self):
        return json.loads((self.runs / f"{self.name}.json").read_text())["results"]

    @property
    def outputs(self):
        cells = code_of(load(self.runs / f"{self.name}.ipynb"))
        return [output for cell in cells for output in cell.outputs]

    @property
    def text(self):
        return "".join(one.text for one in self.outputs if "text" in one)

    def pieces(self):
        """Cards of the costly pieces that ran for real, by name."""
        cards = self.runs.glob(f"{self.name[:2]}_*-quick/card.json")
        return {path.parent.name: json.loads(path.read_text()) for path in cards}


def shipped(name):
    return json.loads((SHIPPED / f"{name}.json").read_text())["results"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of converted weights for all runs; the base model is the reader's own."""
    folder = tmp_path_factory.mktemp("cache")
    home = Path(os.environ.get("BENEATH_CACHE", "~/.cache/beneath-the-api"))
    for base in home.expanduser().glob("smollm2-*"):
        (folder / base.name).symlink_to(base)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tree(tmp_path):
    """A clone, as a stranger has it."""
    yield clone(tmp_path / "clone")
    shutil.rmtree(tmp_path / "clone", ignore_errors=True)


@pytest.fixture
def execute(tree, cache):
    """Run a notebook of the clone through papermill, as `make course` does."""

    def run(name, **variables):
        command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        command += ["--log-level", "WARNING", "-p", "MODE", "quick", "-k", "python3"]
        copy = tree / f"runs/quick/{name}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        command += ["--cwd", "notebooks", f"notebooks/{name}.ipynb", str(copy)]
        settings = {
            "BENEATH_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONPATH": str(tree),
        }
        done = subprocess.run(
            command,
            cwd=tree,
            env=os.environ | settings | variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return Done(name, tree)

    return run


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_alone_in_quick_mode(name, execute):
    done = execute(name)
    noise = [one.text for one in done.outputs if one.get("name") == "stderr"]
    assert not [text for text in noise if "\r" not in text]  # bars are no noise
    CHECKS[name[:2]](done.results, shipped(name), done)


def check_00(found, full, done):
    assert found["traces"] == 1386 and found["reviewed"] == 276 + 538
    assert 0.30 < found["approved"]["value"] < 0.38
    assert set(found["verdicts"]) == set(found["signals"]) == set(found["bill"])
    verdicts = {verdict.split(":")[0] for verdict in found["verdicts"].values()}
    assert verdicts <= {"go", "no-go", "not yet"}


def check_01(found, full, done):
    kept = found["steps"].pop("kept")
    assert sum(found["steps"].values()) == kept and 1200 < kept < 1348
    assert found["recall"]["all"][0] >= 0.95
    assert found["precision"]["all"][0] >= 0.90
    assert found["asked_live"] is False
    clean = (done.runs / "01_clean_traces.jsonl").read_text()
    assert len(clean.splitlines()) == kept
    marked = map(json.loads, (ROOT / "data/pii.jsonl").read_text().splitlines())
    spans = [span["text"] for trace in marked for span in trace["spans"]]
    mails = [text for text in spans if "@" in text]
    assert mails and not any(mail in clean for mail in mails)
    assert "recall" in (done.runs / "01_dataset_card.md").read_text()


def check_02(found, full, done):
    assert (found["right"], found["live"], found["lucky"]) == (91, 104, 13)
    assert found["judges"]["plain"][:2] == [1.0, 0.0]
    assert found["judges"]["policy"][:2] == near([83 / 91, 151 / 159])
    value, low, high = found["corrected"]["policy, corrected"]
    assert low < value < high and low < found["corrected"]["truth"][0] < high
    assert found["leaks"] == {"logs": 0, "practice set": 0}
    assert sum(found["taxonomy"].values()) == 120
    (bar,) = found["ladder"]
    assert [bar["low"], bar["high"]] == near([0.307, 0.425], abs=0.001)


def check_03(found, full, done):
    wanted = {"launch": 91, "terse": 86, "caveman": 94}
    wanted |= {"four_rules": 198, "fewshot": 241, "rules": 250}
    assert found["right"] == wanted
    assert found["tokens"]["rules"] == near([901, 111], abs=1)
    assert found["differences"]["rules"]["p"] < 1e-30
    assert found["differences"]["caveman"]["p"] > 0.05
    for tier in found["per_thousand_right"].values():
        assert tier["rules"][0] < tier["launch"][0]
        assert all(low <= value <= high for value, low, high in tier.values())
    # 108 tokens out become 69 of 544 + 108, at five times the price of those in.
    plain = 5 * (108 - 69) / (544 + 5 * 108)
    assert found["caveman_saves"]["no cache"] == near(plain, abs=0.01)
    assert found["live"] == {}


def check_04(found, full, done):
    assert found["cases"] < full["cases"] == 250
    # The same adapter on the first of the same cases.
    same = sum(full["ladder"][0]["right"][: found["cases"]])
    assert abs(found["right"]["SFT"] - same) <= 2
    assert full["right"]["launch"] == 91 and full["difference"]["low"] > 0.30
    assert full["dropped"]["left"] == found["dropped"]["left"] > 800
    low = full["broken_habits"]["thumbs_up"][1]
    assert low > full["broken_habits"]["approved"][2]  # the intervals are apart
    assert found["arms"] == full["arms"] and len(full["arms"]) == 8
    assert "04_sft-quick" in done.pieces()
    assert "Replayed, not run now: 04_sft" in done.text


def check_05(found, full, done):
    assert found["log"] == full["log"] and found["best"] == full["best"]
    assert found["steps"]["halving"] < 0.7 * found["steps"]["grid"]
    first, last = full["log"][0]["step"], full["log"][-1]["step"]
    begun = [row for row in full["log"] if row["step"] == first]
    assert 0 < sum(row["step"] == last for row in full["log"]) < len(begun)
    assert "05_sweep-quick" in done.pieces()


def check_06(found, full, done):
    assert found["right"] == full["right"]
    assert {n for _, n in full["right"].values()} == {250}
    assert full["right"]["SFT"][0] < full["right"]["GRPO, seed 0"][0]
    assert full["before"]["mixed"] > 120
    same, asked = found["adapter_repeats"]
    assert asked and same >= asked - 2
    assert "06_rl_seed_0-quick" in done.pieces()
    for seed in (0, 1):
        assert f"Replayed, not run now: 06_rl_seed_{seed}" in done.text


def check_07(found, full, done):
    for name, one in full["trained"].items():
        assert found["trained"][name]["right"] == near(one["right"], abs=1)
    for name, curve in full["best_of"].items():
        assert found["best_of"][name]["right"] == near(curve["right"], abs=0.01)
    for name in ("live", "overlap", "short"):  # pay is up and truth is down
        for one in (found["searched"][name], full["searched"][name]):
            assert one["pay"][-1] >= one["pay"][0]
            assert one["right"][-1] < one["right"][0] - 0.1
    assert full["trained"]["short"]["change"]["high"] < 0
    for name in ("truth", "short if right"):
        assert full["trained"][name]["change"]["high"] > 0
    assert "Replayed, not run now: 07_short" in done.text


def check_08(found, full, done):
    for one in (found, full):
        assert one["measured"].keys() == one["predicted"].keys()
        for name, (closed, simulated) in one["closed_forms"].items():
            random = name.startswith("wait")
            assert simulated == near(closed, rel=0.2 if random else 1e-6)
        short, long = one["scaled"]["short"], one["scaled"]["long"]
        seconds, dollars, _ = short["one a job, 5/s, 100 at a time"][-1]
        assert seconds == near(100_000 / 5, rel=0.01)  # creation, no more
        small = short["pool of 4, 256 a call"][-1]
        assert small[0] < seconds / 20 and small[1] < dollars / 50
        starter = long["one a job, 5/s, 100 at a time"][-1]
        team = long["one a job, 5/s, 1,000 at a time"][-1]
        assert starter[2] == 100 and 100 < team[2] < 1_000
        assert team[0] == near(100_000 / 5, rel=0.02) and starter[0] > team[0]
    for name, seen in full["measured"].items():
        assert 0.2 < full["predicted"][name] / statistics.median(seen) < 5, name


def check_09(found, full, done):
    assert len(full["served"]["right"]) == 250 and full["served"]["outcomes"]
    right = sum(full["served"]["right"])
    assert sum(found["served"]["right"]) == near(right, abs=1)
    for name in ("merged", "CTranslate2", "served, F32"):
        assert full["parity"][name]["same verdict"] >= 97, name
    assert full["agree"] >= 240
    assert [row["clients"] for row in full["load"]] == [1, 4, 16]
    assert full["load"][0]["p50"] < 1  # the aim of the course, on 2 cores
    assert full["over"]["one try"]["refused"] > 0
    for one in (found["over"], full["over"]):
        assert one["one try"]["errors"] == one["retries"]["errors"] == 0
    assert "Not started: vllm serve" in done.text and "unreachable" in done.text
    assert done.pieces()


def check_10(found, full, done):
    (bar,) = full["ladder"]
    assert bar["name"] == "routed" and len(bar["right"]) == bar["n"] == 250
    for name, one in full["auroc"].items():
        assert found["auroc"][name]["value"] == near(one["value"], abs=0.03)
    for tier, each in shipped("03_prompt_ceiling")["per_thousand_right"].items():
        for name, triple in each.items():
            assert full["api"][tier][name] == near(triple)
    for triple in full["dollars"].values():
        value, low, high = (math.inf if x is None else x for x in triple)
        assert 0 < low <= value <= high
    for market, one in full["routed"].items():
        assert 0 < one["share"]["low"] < one["share"]["high"] < 1 and one["usd"] > 0
        tier, way = market.split(" | ")
        per_right = 1000 * one["usd"] / (sum(one["right"]) / len(one["right"]))
        ours = full["ours"][tier][way.replace("rules", "routed")]
        assert ours[0] == near(per_right)
    assert {word for one in full["a_fifth"].values() for word in one.values()} & {
        "stands",
        "open",
        "falls",
    }
    verdicts = [said for both in full["verdicts"].values() for said in both.values()]
    assert {said.split(":")[0] for said in verdicts} <= {"go", "no-go", "not yet"}
    assert "Replayed, not run now: 10_signals" in done.text


def check_11(found, full, done):
    for one in (found, full):
        assert one["shadow"]["all"]["n"] > 400
        peeked, rarer, sequential = one["false_alarms"].values()
        assert peeked["low"] > 0.1 and rarer["value"] < peeked["value"]
        assert sequential["low"] < 0.05 and sequential["value"] < 0.08
        for bad in ("cut at 64 tokens", "system prompt added"):
            assert one["releases"][bad]["rolled_back"]["low"] > 0.95
        before, after, n = one["drift"]
        assert n == 23 and before >= 19 and after <= 2
        assert [name for name, when in one["alarms"].items() if when] == ["shipments"]
        assert not any(one["quiet"].values())
        mended = one["retrained"]["cases of the rule"]["fifty and old"]
        assert mended["change"]["low"] > 0.4
        others = one["retrained"]["all others"]
        assert others["fifty and old"]["change"]["low"] > -0.1
        assert others["fifty alone"]["change"]["high"] < 0  # it forgets
    for name, each in full["releases"].items():
        assert found["releases"][name]["right"] == near(each["right"], abs=1)
    for name in ("shadow", "week", "fifty_and_old", "system_prompt_added"):
        assert f"Replayed, not run now: 11_{name}" in done.text


CHECKS = {name[-2:]: check for name, check in globals().items() if "check_" in name}


# --- other ways to run ---------------------------------------------------------------


@pytest.mark.timeout(TIMEOUT + 60)
def test_with_a_key_the_same_notebooks_ask_the_readers_server(execute, chat_server):
    chat_server.script = ["Counting.\n```sql\nSELECT COUNT(*) FROM tickets\n```"]
    live = {"OPENAI_BASE_URL": chat_server.url, "OPENAI_API_KEY": "k"}
    live["MODEL"] = "the-readers-model"
    assert execute("01_collect_logs", **live).results["asked_live"] is True
    assert len(chat_server.requests) == 2  # the assistant, and the wrapped client
    answers = execute("03_prompt_ceiling", **live).results["live"]
    assert sum(answers["launch"]["outcomes"].values()) == 20
    assert len(chat_server.requests) == 2 + 40
    assert {request["model"] for request in chat_server.requests} == {live["MODEL"]}


@pytest.mark.timeout(TIMEOUT + 60)
def test_an_unreachable_server_is_told_and_stops_nothing(execute):
    gone = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    done = execute("01_collect_logs", **gone, OPENAI_API_KEY="k", MODEL="m")
    assert "unreachable" in done.text
    assert done.results["asked_live"] is False


@pytest.mark.timeout(TIMEOUT + 60)
def test_the_folder_for_temporary_files_may_have_a_long_name(execute, tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    assert execute("00_start_here", TMPDIR=str(folder)).results


@pytest.mark.timeout(TIMEOUT + 60)
def test_a_notebook_does_not_run_with_another_copys_utils(execute):
    with pytest.raises(AssertionError, match=r"lies in .*clone, and its utils come"):
        execute("00_start_here", PYTHONPATH=str(ROOT))


# --- cells that no quick run reaches --------------------------------------------------


def run_cells(name, scope, *parts):
    """Run the first cell of a notebook that has each part; return the names they leave.

    Raises StopIteration where no cell has it.
    """
    sources = [cell.source for cell in code_of(load(ROOT / f"notebooks/{name}.ipynb"))]
    for part in parts:
        exec(next(source for source in sources if part in source), scope)
    return scope


def test_00_can_reach_every_verdict():
    decide = run_cells("00_start_here", {}, "def decide")["decide"]
    off = dict.fromkeys(("cost", "latency", "quality"), False)
    assert decide(off, True) == "no-go: stay on the API"
    assert decide(off | {"cost": True, "latency": None}, True) == "go: cost"
    assert decide(off | {"latency": None}, True) == "not yet: measure latency"
    assert decide(off | {"cost": True}, False) == "not yet: collect and review first"


@pytest.mark.modal
def test_08_uses_modal_where_there_is_a_token(capsys):
    scope = {"MODE": "modal", "RATE": 50.0}
    run_cells("08_scale_rollouts", scope, "import time", "import ModalPool")
    case = scope["tidewater"].load_cases()[0]
    scope["take"] = lambda half, n: [("warehouse", case["sql"])] * 300
    run_cells("08_scale_rollouts", scope, "ModalPool(tidewater")
    assert "no sandbox was created on Modal" in capsys.readouterr().out
    with SandboxStandin() as server:
        run_cells("08_scale_rollouts", scope, "ModalPool(tidewater")
        assert not server.unknown and not server.errors
        assert 1 <= len(server.sandboxes) <= 2  # 300 jobs are two calls of 256 or less
    assert re.search(r"300 jobs, [12] sandboxes, .* on Modal", capsys.readouterr().out)


YOURS = {
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


@pytest.fixture(scope="module")
def judge():
    """Notebook 10's rule for a reader's own numbers."""
    parts = ("MOST_WRONG =", "from utils.costs.prices import")
    parts += ("def decide", "def refuse_nonsense", "def judge")
    return run_cells("10_compare_costs", {}, *parts)["judge"]


def test_10_judges_a_readers_numbers(judge):
    verdict, grounds = judge(YOURS)
    # 1,000 x 2 + 100 x 10 = 3,000 USD a million; ours 0.0002 + 0.0003 + 0.0001
    assert verdict == "go: cost"
    assert grounds["API bill a month"] == near(3_000)
    assert grounds["ours over theirs, per right"] == near(0.0006 / 0.99 / 0.003)
    # A hundredth of the answers wrong, at 50 cents each, is 0.005 an answer.
    verdict, grounds = judge(YOURS | {"USD a wrong answer costs": 0.5})
    assert verdict == "no-go: stay on the API"
    paid = grounds["ours over theirs, per answer, wrong ones paid"]
    assert paid == near((0.0006 + 0.005) / 0.003)


SLOW, DEAR = {"API median seconds": 3.0}, {"USD once": 1e6}
BAD = {"ours right": 0.5, "ours less API": (-0.56, -0.44)}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"API may cost a month": 4_000}, "no-go: stay on the API"),
        (DEAR, "no-go: stay on the API"),
        (SLOW, "go: cost, latency"),
        (DEAR | {"API median seconds": None}, "not yet: measure latency"),
        ({"enough data": False}, "not yet: collect and review first"),
        # A quick, cheap and bad model is no answer to anything.
        (BAD | SLOW, "no-go: stay on the API"),
        ({"ours less API": (-0.03, 0.01)}, "not yet: measure cost"),
        # Late, but nobody has timed the routed system.
        (SLOW | {"our median seconds": None}, "go: cost"),
        (SLOW | DEAR | {"our median seconds": None}, "not yet: measure latency"),
        (
            {
                "API right": 0.9,
                "ours less API": (0.04, 0.14),
                "prompting no longer helps": True,
            },
            "go: cost, quality",
        ),
    ],
)
def test_10_reaches_each_verdict(judge, change, verdict):
    assert judge(YOURS | change)[0] == verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ours right": 90}, "shares"),
        ({"questions a month": 0}, "more than 0"),
        ({"ours less API": (0.0, 0.01)}, "low and high"),
    ],
)
def test_10_refuses_nonsense(judge, change, message):
    with pytest.raises(ValueError, match=message):
        judge(YOURS | change)
