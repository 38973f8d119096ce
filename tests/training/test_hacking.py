"""Notebook 07: its rewards are gamed where it says so, the mended ones are not."""

import itertools
import json
from pathlib import Path

import pytest
from hostile import BOMBS, HOSTILE
from test_rl import RIGHT, config, recipe, tiny  # noqa: F401
from tiny import EXAMPLES

from utils import course, tidewater

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def notebook():
    """The names of notebook 07's cells tagged `recipe`."""
    return course.borrow("07_catch_reward_hacking", "recipe")


@pytest.fixture(scope="module")
def case():
    return tidewater.load_cases("practice", 1)[0]


def test_each_reward_pays_a_wrong_answer_as_predicted(notebook, case):
    (carrier, days) = case["expected"]["warehouse"][0]
    copied = f"select '{carrier}',{days} from shipments limit 1"
    every, brief = RIGHT.removesuffix(" limit 1"), "select 1 from shipments limit 1"
    endless = notebook.answers["endless"]
    pay = {}
    queries = [RIGHT, copied, every, brief, endless]
    worlds = notebook.worlds | {"short if right": notebook.ShortIfRight()}
    for name, world in worlds.items():
        found = notebook.paid(world, [case] * 5, queries)
        assert [right for _, right in found] == [True] + [False] * 4
        pay[name] = [one for one, _ in found]
    assert pay["truth"] == [1, 0, 0, 0, 0]
    assert pay["live"][1] == pay["live"][0] == 1
    assert pay["overlap"][2] == pay["overlap"][0] == 1
    assert pay["short"][3] > pay["short"][0]
    assert pay["lenient"] == [1, -1, -1, -1, 0]
    assert pay["short if right"][0] > 0.5 and pay["short if right"][1:] == [0] * 4


def test_mended_no_hostile_query_is_paid(notebook, case):
    bombs = set(BOMBS.values())  # each takes seconds; test_rl pays two of them
    queries = [sql for _, sql, _ in HOSTILE if sql not in bombs]
    mended = notebook.ShortIfRight()
    mended.known = notebook.worlds["truth"].known
    for world in (notebook.worlds["truth"], mended):
        found = notebook.paid(world, [case] * len(queries), queries)
        assert not any(pay for pay, _ in found)


def test_an_edit_leaves_out_one_part(notebook):
    sql = "select a,b from t where x=1 and (y=2 or z=3) group by 1 order by 2 limit 3"
    assert notebook.edits(sql) == [
        "SELECT a, b FROM t WHERE y = 2 OR z = 3 GROUP BY 1 ORDER BY 2 LIMIT 3",
        "SELECT a, b FROM t WHERE x = 1 GROUP BY 1 ORDER BY 2 LIMIT 3",
        "SELECT a, b FROM t WHERE x = 1 AND (y = 2 OR z = 3) GROUP BY 1 LIMIT 3",
        "SELECT a, b FROM t WHERE x = 1 AND (y = 2 OR z = 3) GROUP BY 1 ORDER BY 2",
        "SELECT * FROM t WHERE x = 1 AND (y = 2 OR z = 3) LIMIT 3",
    ]
    assert notebook.edits("select 1 from t where x=1")[0] == "SELECT 1 FROM t"
    for text in ("", "UPS was it.", "select ' from", "\0"):
        assert all(isinstance(edit, str) for edit in notebook.edits(text))


def test_a_search_never_lowers_the_pay(notebook):
    cases = tidewater.load_cases("practice", 3)
    start = [RIGHT, "select 1 from tickets", "no query"]
    for name in ("truth", "overlap", "short"):
        trail = notebook.climb(notebook.worlds[name], cases, start, 2)
        pays = [[one[0] for one in best] for best in trail]
        assert len(pays) == 3
        for old, new in itertools.pairwise(pays):
            assert all(a <= b for a, b in zip(old, new, strict=True))
        assert name != "truth" or trail[-1][0][2]  # what is right stays right


def test_in_the_process_that_trains_a_reply_can_spoil_the_rest(notebook, case):
    wrong = RIGHT.replace(" desc", "")
    assert notebook.in_process([RIGHT, wrong]) == ("1.0 0.0", "well")
    tampered = notebook.in_process(["delete from shipments", wrong])
    assert tampered == ("0.0 1.0", "well")
    mixed = "select null from shipments union select 1"
    pays, ended = notebook.in_process([mixed, RIGHT])
    assert pays == "nothing" and ended.startswith("TypeError")
    _, ended = notebook.in_process([notebook.answers["endless"], RIGHT], 1.5)
    assert ended == "not within 1.5 s"
    pool = [
        *("delete from shipments", wrong, mixed),
        notebook.answers["endless"],
        RIGHT,
    ]
    safe = notebook.paid(notebook.rl.Environment(), [case] * 5, pool)
    assert [pay for pay, _ in safe] == [0, 0, 0, 0, 1]


def test_the_best_of_n_is_the_mean_over_all_draws(notebook):
    tries = [
        (0.2, True),
        (0.9, False),
        (0.5, True),
        (0.5, False),
        (0.9, True),
        (0, True),
    ]
    for n in range(1, 7):
        pays, rights = [], []
        for draw in itertools.combinations(tries, n):
            best = max(pay for pay, _ in draw)
            pays.append(best)
            # Of equal pay any of all such tries is as likely, whichever were drawn.
            alike = [right for pay, right in tries if pay == best]
            rights.append(sum(alike) / len(alike))
        wanted = sum(pays) / len(pays), sum(rights) / len(rights)
        assert notebook.best_of(tries, n) == pytest.approx(wanted)


def test_a_short_training_learns_and_keeps_no_weights(notebook, config):  # noqa: F811
    examples = EXAMPLES[:16]
    config |= {"examples": examples, "validation": examples[:4], "steps": 12}
    config |= {"batch": 4, "rank": 4, "frozen": 2, "log_every": 1, "save_every": 12}
    done = notebook.practise(config)
    losses = [row["loss"] for row in done["log"] if "loss" in row]
    assert losses[-1] < losses[0] and len(done["replies"]) == 1
    left = [path.suffix for path in Path(config["folder"]).rglob("*")]
    assert ".safetensors" not in left
    assert json.loads(json.dumps(done)) == done
