"""Each notebook runs once, alone, in a clone; its results lie within bands.

`check_04` and its like hold what is asked of one notebook: `found` are the results of
this run, `full` the shipped ones, `done` has the executed copy and what the run left.
"""

import heapq
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from repository import NAMES, ROOT, clone, code_of, load, on_screen, run_cells, said
from standin_sandboxes import SandboxStandin

SHIPPED = ROOT / "data/runs"
TIMEOUT = 1_800  # seconds; ends a run that hangs, on a machine however busy
near = pytest.approx
pytestmark = pytest.mark.timeout(TIMEOUT + 60)


@dataclass
class Done:
    """A notebook that ran in quick mode: what it left in `runs`, and what it said."""

    name: str
    runs: Path

    def __post_init__(self):
        executed = load(self.runs / f"{self.name}.ipynb")
        self.said = said(executed)
        cells = code_of(executed)
        self.outputs = [output for cell in cells for output in cell.outputs]
        self.text = "".join(one.text for one in self.outputs if "text" in one)
        saved = json.loads((self.runs / f"{self.name}.json").read_text())
        self.results = saved["results"]
        # The costly pieces that ran for real.
        cards = self.runs.glob(f"{self.name.split('_')[0]}_*-quick/card.json")
        self.pieces = {path.parent.name for path in cards}


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
def execute(tmp_path, cache):
    """Run a notebook of a clone through papermill, as `make course` does."""
    tree = clone(tmp_path / "clone")

    def run(name, **variables):
        runs = tree / "runs/quick"
        runs.mkdir(parents=True, exist_ok=True)
        flags = "--no-progress-bar --log-level WARNING -p MODE quick -k python3"
        command = [sys.executable, "-m", "papermill", *flags.split()]
        command += ["--cwd", "notebooks", f"notebooks/{name}.ipynb"]
        command += [str(runs / f"{name}.ipynb")]
        settings = {
            "BENEATH_CACHE": str(cache),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONPATH": str(tree),
        }
        settings = os.environ | settings | variables
        how = {"cwd": tree, "env": settings, "text": True, "timeout": TIMEOUT}
        done = subprocess.run(command, capture_output=True, **how)
        assert done.returncode == 0, done.stderr[-3000:]
        return Done(name, runs)

    yield run
    shutil.rmtree(tree, ignore_errors=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_alone_in_quick_mode(name, execute):
    done = execute(name)
    noise = [one.text for one in done.outputs if one.get("name") == "stderr"]
    assert not [text for text in noise if "\r" not in text]  # bars are no noise
    number = name.split("_")[0]
    CHECKS[number](done.results, shipped(name), done)
    assert on_screen()[number] in done.said  # a workshop's teacher looks for it


def check_00(found, full, done):
    assert found["traces"] == 1386 and found["reviewed"] == 276 + 538
    assert 0.30 < found["approved"]["value"] < 0.38


def check_01(found, full, done):
    kept = found["steps"].pop("kept")
    assert sum(found["steps"].values()) == kept and 1200 < kept < 1348
    low, high = (found[name]["all"] for name in ("fresh", "recall"))
    assert high[0] >= 0.95 * high[1] and low[1] == 101 and low == full["fresh"]["all"]
    clean = (done.runs / "01_clean_traces.jsonl").read_text()
    assert len(clean.splitlines()) == kept
    marked = map(json.loads, (ROOT / "data/pii.jsonl").read_text().splitlines())
    spans = [span["text"] for trace in marked for span in trace["spans"]]
    mails = [text for text in spans if "@" in text]
    assert mails and not any(mail in clean for mail in mails)


def check_02(found, full, done):
    assert (found["right"], found["live"], found["lucky"]) == (91, 104, 13)
    assert found["judges"]["plain"][:2] == [1.0, 0.0]
    assert found["judges"]["policy"][:2] == near([83 / 91, 151 / 159])
    value, low, high = found["corrected"]["policy, corrected"]
    assert low < value < high and low < found["corrected"]["truth"][0] < high
    assert {n for kinds in found["leaks"].values() for n in kinds.values()} == {0}
    assert sum(found["first_mistakes"].values()) == 120 and found["my_eval"] == 10
    assert found["right_revised"]["launch"] == 92 and found["right_on_four"] == 88
    mutants = full["mutation"]
    assert mutants["unnoticed on all four"] < mutants["unnoticed on all three"] < 300
    assert sum(found["disagreements"].values()) == 16
    (bar,) = found["ladder"]
    assert [bar["low"], bar["high"]] == near([0.307, 0.425], abs=0.001)


def check_03(found, full, done):
    wanted = {"launch": 91, "terse": 86, "caveman": 94}
    wanted |= {"four_rules": 198, "fewshot": 241, "rules": 250}
    assert found["right"] == wanted
    assert found["tokens"]["rules"] == near([901, 111], abs=1)
    assert found["differences"]["rules"]["p"] < 1e-30
    for tier in found["per_thousand_right"].values():
        assert tier["rules"][0] < tier["launch"][0]
    # 108 tokens out become 69 of 544 + 108, at five times the price of those in.
    plain = 5 * (108 - 69) / (544 + 5 * 108)
    assert found["caveman_saves"]["no cache"] == near(plain, abs=0.01)


def check_04(found, full, done):
    # All but the speed is of the shipped runs.
    assert found["right"] == full["right"] and full["right"]["launch"] == 91
    assert full["difference"]["low"] > 0.30 and found["brought"] == full["brought"]
    reviews = [full["right"][f"04_{n}_reviews"] for n in (100, 200, 400, 774)]
    assert reviews == sorted(reviews)
    assert found["left"] == full["left"] and full["left"]["reviewed"] == 814
    broken = full["broken_habits"]
    assert broken["thumbs_up"]["low"] > broken["approved"]["high"]
    # The same adapter begins its replies to the same questions alike.
    piece, whole = (
        json.loads((folder / "result.json").read_text())["replies"]
        for folder in (done.runs / "04_answers-quick", SHIPPED / "04_answers")
    )
    pairs = zip(piece, whole, strict=False)
    same = sum(len(a[0]) > 20 and b[0].startswith(a[0]) for a, b in pairs)
    assert same >= len(piece) - 1
    assert {"04_sft-quick", "04_answers-quick", "04_dpo-quick"} == done.pieces
    assert "Replayed, not run now: 04_sft" in done.text


def check_05(found, full, done):
    assert found["losses"] == full["losses"] and found["best"] == full["best"]
    assert full["regret"] >= 0
    assert found["steps"]["halving"] < 0.7 * found["steps"]["grid"]
    assert "05_grid-quick" in done.pieces


def check_06(found, full, done):
    assert found["right"] == full["right"] and found["null"] == full["null"]
    assert full["gain"]["rejection sampling"]["low"] > 0.12  # from few reviews
    assert full["null"]["low"] < 0 < full["null"]["high"]  # and not from all
    wrong = {k: v["5. wrong most often"] for k, v in full["conditions"].items()}
    assert wrong["all reviews"] < wrong["at least"] < wrong["200 reviews"]
    assert {"06_explore-quick", "06_grpo_seed_0-quick"} <= done.pieces
    assert "Replayed, not run now: 06_grpo_seed_1" in done.text


def check_06b(found, full, done):
    assert found["right"] == full["right"] and found["exam"] == full["exam"]
    final = json.loads((SHIPPED / "final.json").read_text())
    assert final["exam"] == {"right": sum(full["exam"]), "n": 1000}
    assert (SHIPPED.parents[1] / final["adapter"] / "adapter_config.json").exists()
    assert sum(full["exam"]) >= 930 and full["moved"]["+ variants"]["low"] > 0
    assert {"06b_greedy_1-quick"} == done.pieces


def check_07(found, full, done):
    assert found["trained"] == full["trained"]  # both runs are shipped
    for one in (found["searched"], full["searched"]):
        for name in ("live", "overlap"):  # pay is up and truth is down
            assert one[name]["pay"][-1] >= one[name]["pay"][0]
            assert one[name]["right"][-1] < one[name]["right"][0] - 0.1
        for name in ("truth", "short", "short if right"):
            assert one[name]["right"][-1] >= one[name]["right"][0]
    right = {name: sum(one["flags"]) for name, one in full["trained"].items()}
    assert right["hack"] < right["start"] - 75 and right["mend"] >= right["start"]
    assert "Replayed, not run now: 07_grpo_mend" in done.text
    assert "07_grpo_hack-quick" in done.pieces


def check_08(found, full, done):
    for one in (found, full):
        ends = one["scaled"]  # seconds, dollars, most at a time
        naive = ends["short, a sandbox a job, 5/s, 100 at a time"]
        assert naive[0] == near(100_000 / 5, rel=0.01)  # creation, no more
        small = ends["short, pool of 4, 256 a call"]
        assert small[0] < naive[0] / 5 and small[1] < naive[1] / 20
        places = ends["long, a sandbox a job, 5/s, 100 at a time"]
        team = ends["long, a sandbox a job, 5/s, 1,000 at a time"]
        assert places[2] == 100 < team[2] < 1_000
        assert team[0] == near(100_000 / 5, rel=0.02)
        # The last line is flat from where 128 starts of a minute bind.
        *_, starts = one["hours"].values()
        jobs = 10_000 if one is found else 100_000
        assert starts[-1] == near(jobs * 60 / 128 / 3600, rel=0.05)
        *_, (_, _, model) = one["bill"].values()  # of long rollouts, on a GPU
        assert model == near(2_000 / 5_000 / 3600 * 395_000)
        ungraded = one["ungraded"]
        assert ungraded["as_zero"] < ungraded["right"] and ungraded["spoilt"] > 0.5
        assert one["step_usd"]["asynchronous"] < one["step_usd"]["wait for all"] / 2
    for name, seen in full["measured"].items():
        assert 0.2 < full["predicted"][name] / statistics.median(seen) < 5, name
    assert "Paid: [None, None, None, None], ungraded: 4." in done.text


def check_09(found, full, done):
    assert found["right"] == full["right"] and found["agree"] == full["agree"]
    assert full["agree"] >= 475
    for name in ("served, F16", "served, Q8_0"):
        assert full["parity"][name]["right"] >= 90, name
    alone = next(one for one in full["load"] if one["quantization"] == "Q8_0")
    assert alone["clients"] == 1 and alone["promise"] == "kept" and alone["quiet"]
    for one in (found, full):
        assert one["over"]["0 retries"]["refused"] > 0
        assert not any(row["errors"] for row in one["over"].values())
        statuses = [said[:3] for said in one["hostile"].values()]
        assert statuses == ["400"] * 6 + ["404", "400", "200"]
    assert "6 of 6 questions were answered" in done.text
    assert "engine restarts" in done.text and '"status": 499' in done.text
    assert "Not started: vllm serve" in done.text
    assert done.pieces == {"09_parity-quick", "09_load-quick"}


def check_10(found, full, done):
    assert found["finding"] == full["finding"]  # all of it is of shipped runs
    own, routed = (bar["right"] for bar in full["ladder"])
    assert len(own) == len(routed) == 250 and sum(routed) >= sum(own)
    for name, gap in full["gaps"].items():
        stands = any("stands" in word for word in full["claims"].get(name, {}).values())
        # Quality first: what may be less right than the margin never stands.
        assert (full["quality"][name] == "as right") is (gap["low"] >= -0.02)
        assert not stands or gap["low"] >= -0.02
    front_figures_by_hand(full, sum(own) / 250)
    assert "Replayed, not run now: 09_served" in done.text
    assert "Replayed, not run now: 09_load" in done.text


def front_figures_by_hand(full, right):
    """Compute both prices of the served model again, from the raw times of 09_load.

    A queue is simulated here, request by request, where the notebook has formulas.
    """
    loads = json.loads((SHIPPED / "09_load/result.json").read_text())["loads"]
    loads = [one for one in loads if one["quantization"] == "Q8_0"]
    alone = [one for one in loads if one["clients"] == one["engines"]]
    load = max(alone, key=lambda one: one["engines"])
    seconds = np.array([row[2] for row in load["rows"] if row[3] == 200])
    cores = json.loads((SHIPPED / "09_load/card.json").read_text())["hardware"]["cores"]
    price = json.loads((ROOT / "data/prices.json").read_text())["compute"]
    second = cores * price["cpu_core_second"]["price"]
    second += price["memory_gib_second"]["price"]  # 1 GiB
    lines = (ROOT / "data/traces.jsonl").read_text().splitlines()
    hours = Counter(json.loads(line)["time"][11:13] for line in lines)
    peak = max(hours.values()) / (len(lines) / 24)
    month = 365.25 / 12 * 86_400

    def late(volume, machines):
        """Share of the answers after 2 s, and after 1 s, in the busiest hour."""
        rng, servers = np.random.default_rng(0), machines * load["engines"]
        gaps = rng.exponential(month / volume / peak, 60_000)
        work, free = rng.choice(seconds, 60_000), [0.0] * servers
        now, took = 0.0, []
        for gap, length in zip(gaps.tolist(), work.tolist(), strict=True):
            now += gap
            end = max(now, free[0]) + length
            heapq.heapreplace(free, end)
            took.append(end - now)
        took = np.array(took[10_000:])
        return (took > 2).mean(), (took > 1).mean()

    for name, machines in (("today", 1), ("promise", 8)):
        volume = full["volumes"][name]
        usd = 1000 * machines * second * month / volume / right
        assert full["dollars"]["best model, served"][name] == near(usd)
        over, half = late(volume, machines)
        assert over <= 0.065 and half <= 0.53, name  # the promise is kept
    over, half = late(1.08 * full["volumes"]["promise"], 8)
    assert over > 0.05 or half > 0.5  # and no more than that is carried


def check_11(found, full, done):
    for one in (found, full):
        peeked, rarer, sequential = one["false_alarms"].values()
        assert peeked["low"] > 0.1 and rarer["value"] < peeked["value"]
        assert sequential["low"] < 0.05 and sequential["value"] < 0.08
        assert one["change"]["cut at 64 tokens"]["high"] < 0
        assert one["rolled_back"]["cut at 64 tokens"]["low"] > 0.9
        none, *_, most = one["power"]["250"]
        assert none["value"] < 0.08 and most["low"] > 0.8
        always, _, seldom = one["noticed"].values()
        assert seldom["high"] < always["value"]
        assert one["false_alarm"]["low"] < 0.05 and one["status"] in (0, 1)
        assert one["fixed"]["live model"]["value"] == 0
        assert one["fixed"]["fifty and old"]["low"] > 0.5
    for name in ("saved", "caught", "change", "limits", "fixed", "others"):
        assert found[name] == full[name], name  # the same replies, graded again
    assert {"11_cut_at_64_tokens-quick", "11_fifty_and_old-quick"} == done.pieces
    assert "Replayed, not run now: 11_fifty_and_old" in done.text


def check_12(found, full, done):
    assert found["rehearsal"] is full["rehearsal"] is False
    assert found["right"] == full["right"] and full["right"]["tuned"][3] == 160
    assert full["right"]["launch prompt"][0] == 0.5 and full["difference"]["low"] > 0
    same, asked = found["same"]
    assert asked == 4 and same >= 3
    assert "12_tickets-quick" in done.pieces
    assert "Replayed, not run now: 12_tickets" in done.text


CHECKS = {name[6:]: check for name, check in globals().items() if "check_" in name}


# --- other ways to run ---------------------------------------------------------------


def test_with_a_key_the_same_notebooks_ask_the_readers_server(execute, chat_server):
    chat_server.script = ["Counting.\n```sql\nSELECT COUNT(*) FROM tickets\n```"]
    live = {"OPENAI_BASE_URL": chat_server.url, "OPENAI_API_KEY": "k"}
    live["MODEL"] = "the-readers-model"
    assert execute("01_collect_logs", **live).results["asked_live"] is True
    assert len(chat_server.requests) == 2  # the assistant, and the wrapped client
    answers = execute("03_prompt_ceiling", **live).results["live"]
    # 20 questions under two prompts, three times each, and once by similarity.
    assert sum(answers["launch"]["outcomes"].values()) == 60
    assert len(chat_server.requests) == 2 + 140
    assert {request["model"] for request in chat_server.requests} == {live["MODEL"]}


def test_an_unreachable_server_and_a_long_tmpdir_stop_nothing(execute, tmp_path):
    folder = tmp_path / ("long" * 30)  # where kernels and workers have their sockets
    folder.mkdir()
    gone = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "k"}
    done = execute("01_collect_logs", **gone, MODEL="m", TMPDIR=str(folder))
    assert "unreachable" in done.text and done.results["asked_live"] is False


def test_a_notebook_does_not_run_with_another_copys_utils(execute):
    with pytest.raises(AssertionError, match=r"lies in .*clone, and its utils come"):
        execute("00_start_here", PYTHONPATH=str(ROOT))


# --- cells that no quick run reaches --------------------------------------------------


@pytest.mark.modal
def test_08_uses_modal_where_there_is_a_token(capsys):
    jobs = [("warehouse", "select count(*) from tickets")] * 300
    scope = {"MODE": "modal", "RATE": 50.0, "take": lambda half, n: jobs}
    parts = ("import time", "ModalPool(tidewater")
    with SandboxStandin() as server:
        run_cells("08_scale_rollouts", scope, *parts)
        assert not server.unknown and not server.errors
    assert re.search(r"300 jobs, [12] sandboxes, .* on Modal", capsys.readouterr().out)
