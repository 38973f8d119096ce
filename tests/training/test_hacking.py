"""Notebook 07: its rewards are gamed where it says so, the mended ones are not.

That no hostile query is paid is in test_rl: the mended rules pay the right rows alone.
"""

import itertools
import json
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
    queries = [*notebook.answers.values()]
    grades, pay = tidewater.grade([case] * 10, queries), {}
    for name, rule in notebook.rules.items():
        found = notebook.score(rule, case, queries, grades)
        assert [right for _, right in found] == [True] * 2 + [False] * 8
        pay[name] = dict(zip(notebook.answers, [one for one, _ in found], strict=True))
    right = {name: one["right"] for name, one in pay.items()}
    assert [*pay["truth"].values()] == [1, 1] + [0] * 8
    assert pay["live"]["copied from the live result"] == right["live"] == 1
    assert pay["overlap"]["every carrier, not the slowest"] == right["overlap"] == 1
    assert [*pay["lenient"].values()] == [1, 1] + [-1] * 7 + [0]  # endless: the last
    short, mended = ([*pay[name].values()] for name in ("short", "short if right"))
    assert min(short[:2]) > max(short[2:]) and len({*short[2:]}) > 3
    assert min(mended[:2]) > 0.5 and mended[2:] == [0] * 8


def test_the_rewards_of_the_training_log_the_truth_beside_the_pay(notebook, case):
    texts = [notebook.right, "select 1 from shipments", ""]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    cases, seen = [json.dumps(case)] * 3, {}
    for price, wrong in (("hack", -23 / 400), ("mend", 0)):
        reward = notebook.reward_for(notebook.prices[price])
        pay = reward(said, cases, log_metric=seen.__setitem__, prompts=None)
        assert pay[0] > 0.3 and pay[1:] == [wrong, 0]
        assert seen.pop("right") == pytest.approx(1 / 3)
        assert reward(said, cases) == pay
    # In a group that is all wrong, the price is the whole advantage at any size.
    for price in (1 / 400, 1 / 4000):
        found = notebook.advantages([-100 * price] * 7 + [-40 * price])
        assert found[-1] == pytest.approx(2.475, abs=0.05) and abs(found.sum()) < 1e-9


def test_the_search_finds_what_games_a_reward(notebook, case):
    for name, games in (("overlap", True), ("short", False)):
        reward = Reward(notebook.rules[name])
        first, *_, last = notebook.hill_climb(reward, case, notebook.right, 2)
        assert first[2] and last[0] >= first[0] and last[2] is not games
    assert "limit" not in notebook.edits(notebook.right)[-1].lower()


def test_in_the_process_that_trains_a_reply_can_spoil_the_rest(notebook, case):
    right, wrong = notebook.right, notebook.right.replace(" desc", "")
    assert notebook.in_process([right, wrong]) == ("1.0 0.0", "well")
    emptied = notebook.in_process(["delete from shipments", wrong])
    assert emptied == ("0.0 1.0", "well")
    mixed = "select null from shipments union select 1"
    pays, ended = notebook.in_process([mixed, right])
    assert pays == "nothing" and ended.startswith("TypeError")
    replies = ["delete from shipments", wrong, mixed, right]
    assert Reward().scores([case] * 4, replies) == [0, 0, 0, 1]


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
