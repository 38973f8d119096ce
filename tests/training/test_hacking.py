"""Notebook 07: its rewards are gamed where it says so, the mended ones are not.

That no hostile query is paid is in test_rl: the mended rules pay the right rows alone.
"""

import itertools
from types import SimpleNamespace

import pytest
from repository import ROOT, code_of, load

from utils import tidewater
from utils.tidewater.reward import Reward


@pytest.fixture(scope="module")
def notebook():
    """The names that the notebook's cells tagged `recipe` define."""
    cells = code_of(load(ROOT / "notebooks/07_catch_reward_hacking.ipynb"))
    names = {}
    for cell in cells:
        if "recipe" in cell.metadata.get("tags", ()):
            exec(cell.source, names)
    return SimpleNamespace(**names)


@pytest.fixture(scope="module")
def case():
    return tidewater.load_cases("practice", 1)[0]


def test_each_reward_pays_a_wrong_answer_as_predicted(notebook, case):
    ((carrier, days),) = case["expected"]["warehouse"]
    copied = f"select '{carrier}',{days} from shipments limit 1"
    every = notebook.right.removesuffix(" limit 1")
    brief, endless = "select 1 from shipments limit 1", notebook.answers["endless"]
    queries = [notebook.right, copied, every, brief, endless]
    pay = {}
    rewards = notebook.rewards | {"short if right": Reward(notebook.short_if_right)}
    for name, reward in rewards.items():
        found = notebook.score(reward, [case] * 5, queries)
        assert [right for _, right in found] == [True] + [False] * 4
        pay[name] = [one for one, _ in found]
    assert pay["truth"] == [1, 0, 0, 0, 0]
    assert pay["live"][1] == pay["live"][0] == 1
    assert pay["overlap"][2] == pay["overlap"][0] == 1
    assert pay["short"][3] > pay["short"][0]
    assert pay["lenient"] == [1, -1, -1, -1, 0]
    assert pay["short if right"][0] > 0.5 and pay["short if right"][1:] == [0] * 4


def test_in_the_process_that_trains_a_reply_can_spoil_the_rest(notebook, case):
    right, wrong = notebook.right, notebook.right.replace(" desc", "")
    grade, endless = notebook.in_process, notebook.answers["endless"]
    assert grade([right, wrong], 60) == ("1.0 0.0", "well")
    assert grade(["delete from shipments", wrong], 60) == ("0.0 1.0", "well")
    mixed = "select null from shipments union select 1"
    pays, ended = grade([mixed, right], 60)
    assert pays == "nothing" and ended.startswith("TypeError")
    replies = ["delete from shipments", wrong, mixed, endless, right]
    safe = notebook.score(notebook.rewards["truth"], [case] * 5, replies)
    assert [pay for pay, _ in safe] == [0, 0, 0, 0, 1]


def test_the_best_of_n_is_the_mean_over_all_draws(notebook):
    pays, rights = (0.2, 0.9, 0.5, 0.5, 0.9, 0), (1, 0, 1, 0, 1, 1)
    tries = [*zip(pays, map(bool, rights), strict=True)]
    for n in range(1, 7):
        found = []
        for draw in itertools.combinations(tries, n):
            best = max(pay for pay, _ in draw)
            # Of equal pay any of all such tries is as likely, whichever were drawn.
            alike = [right for pay, right in tries if pay == best]
            found.append((best, sum(alike) / len(alike)))
        wanted = [sum(column) / len(found) for column in zip(*found, strict=True)]
        assert notebook.best_of(tries, n) == pytest.approx(wanted)
