"""Variants of an example: question and query change alike, or not at all."""

import random
import re

import pytest

from utils import tidewater
from utils.tidewater import augment, sql_style

SWAPS, ADDS = (tidewater.load_glossary(use) for use in ("swap", "add"))
WEST = (
    "select count(*) from tickets where is_test=0 and topic<>'spam' and region='west' "
    "and opened_date between '2025-06-01' and '2025-06-30'"
)


def substitute(question, sql, seed=0):
    return augment.substitute_entities(question, sql, SWAPS, random.Random(seed))


def add_filter(question, sql, seed=0):
    draw = random.Random(seed)
    return augment.add_filter(question, sql, ADDS, tidewater.ONLY_IN, draw)


@pytest.mark.parametrize("seed", range(3))
def test_question_and_query_change_alike(seed):
    question, sql = substitute("Tickets in the West in June 2025?", WEST, seed)
    assert "June 2025" not in question
    place = re.match(r"Tickets (.+?) in ([A-Z][a-z]+ \d{4})\?", question)
    assert SWAPS["place"][place[1]] in sql and SWAPS["month"][place[2]] in sql
    assert "is_test=0 and topic<>'spam'" in sql


@pytest.mark.parametrize(
    ("question", "sql"),
    [
        ("Tickets in June 2025 against June 2025", WEST),  # said twice
        ("Tickets last quarter", WEST),  # not said
        ("Tickets in the South", WEST),  # another condition
        ("Tickets of Westerners", WEST),  # a part of a word
        ("In the West?", f"{WEST} union all {WEST}"),  # two conditions
    ],
)
def test_what_does_not_fit_stays(question, sql):
    assert substitute(question, sql) == (question, sql_style.normalise(sql))


@pytest.mark.parametrize("seed", range(4))
def test_a_filter_is_a_phrase_and_its_condition(seed):
    question, sql = add_filter("How many tickets in June 2025? Thanks.", WEST, seed)
    phrases = {p: c for kind in ADDS.values() for p, c in kind.items()}
    (added,) = [p for p in phrases if p.lower() in question.lower()]
    assert sql == sql_style.normalise(WEST + f" and {phrases[added]}")
    assert "region='west'" in sql and added not in ADDS["place"]
    assert question.endswith("Thanks.")


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) from tickets",
        "select 1 from tickets where topic='late' or is_test=0",
        # every column that a condition could be on is in use
        "select segment,region,topic from tickets where is_test=0",
    ],
)
def test_what_can_take_no_filter_stays(sql):
    assert add_filter("How many?", sql) == ("How many?", sql)
