"""Repeats and contamination: hand-made pairs, then counts on the course's data."""

import json
from functools import partial
from pathlib import Path

import pytest

from utils.logs import overlap
from utils.logs.overlap import contamination, duplicates, near_duplicates, normalise
from utils.tidewater.words import FILLERS

DATA = Path(__file__).parents[2] / "data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).open(encoding="utf-8")]


def questions(name):
    return [row["question"] for row in rows(name)]


TRACES = rows("traces.jsonl")
ASKED = [
    trace["spans"][0]["attributes"]["gen_ai.input.messages"][-1]["content"]
    for trace in TRACES
]
near_in_tidewater = partial(near_duplicates, fillers=FILLERS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  What's  CSAT,\tFY26? ", "whats csat fy26"),
        ("ＦＹ２６ Q1", "fy26 q1"),
        ("growth %, East-coast", "growth % east coast"),
        ("??", "??"),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("units by region, FY26", "Units by region FY26 please"),
        ("is the refund rate in the West?", "our refund rate in the West"),
        ("average order value in May 2025", "avergae order value in May 2025"),
        ("FY26 Q4 sales by category", "sales by category, Q4 FY26"),
        ("Where is my parcel?", "hi, where is my parcel please"),
    ],
)
def test_repeats_are_near_in_any_product(one, other):
    assert near_duplicates([one, other])


def test_a_product_has_fillers_of_its_own():
    pair = ["Gross margin by month", "show what was gross margin by month?"]
    assert not near_duplicates(pair) and near_in_tidewater(pair)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("orders by region in FY26 Q3", "orders by region in FY26 Q4"),
        ("orders by region in FY26 Q3", "orders by region in FY25 Q3"),
        ("sales on the Coast last quarter", "sales back East last quarter"),
        ("customers with more than 2 orders", "customers with more than 3 orders"),
        ("late rate in the Northeast", "late rate in the Southeast"),
        ("three lowest regions by late rate", "three slowest regions by late rate"),
        ("sales by month, last quarter", "Riptide sales by month, last quarter"),
        ("tickets opened in June 2026", "tickets opened in July 2026"),
        ("share of orders refunded", "orders refunded"),
        ("how many billing tickets", "% billing tickets"),
        ("growth from May 2025 to June 2026", "growth from June 2025 to May 2026"),
        ("more than 2 orders in 3 months", "more than 3 orders in 2 months"),
        ("orders, Q4 over Q3", "orders, Q3 over Q4"),
    ],
)
def test_other_questions_are_not_near(one, other):
    assert near_in_tidewater([one, other], 50) == []


def test_groups_and_pairs():
    texts = ["Units, FY26?", "orders", "units FY26", "ORDERS!", "tickets", "??", "!!"]
    assert duplicates(texts) == [0, 1, 0, 1, 4, 5, 6]
    texts = ["units by region", "Units by region!", "units by region please", "tickets"]
    pairs = near_duplicates(texts)
    assert [(i, j) for i, j, _ in pairs] == [(0, 2), (1, 2)]
    assert all(60 <= score < 100 for *_, score in pairs)
    assert near_duplicates(texts, threshold=99) == near_duplicates([]) == []


def test_a_contaminated_pair_stands_in_one_list_only():
    train = ["Units by region", "units by region?", "Units by region please"]
    found = contamination(train, ["tickets", "Units by region"])
    assert (found.exact, found.normalised) == ([(0, 1)], [(1, 1)])
    assert [(i, j) for i, j, _ in found.near] == [(2, 1)]


def test_repeats_in_the_traces(monkeypatch):
    pairs = near_in_tidewater(ASKED)
    assert len(set(ASKED)) == 1336 and len(set(duplicates(ASKED))) == 1319
    assert len(pairs) == 10
    for i, j, _ in pairs:
        words = set(normalise(ASKED[i]).split()) ^ set(normalise(ASKED[j]).split())
        assert words <= {"please"}
    monkeypatch.setattr(overlap, "_BLOCK", 100)
    assert near_in_tidewater(ASKED) == pairs  # whatever the size of a block


def test_no_question_of_the_eval_is_contaminated():
    evals, practice = questions("eval.jsonl"), questions("practice.jsonl")
    for train, test in ((ASKED, evals), (practice, evals), (ASKED, practice)):
        found = contamination(train, test, fillers=FILLERS)
        assert (found.exact, found.normalised, found.near) == ([], [], [])
    planted = [f"Hi, could you please tell me {text}" for text in evals]
    near = contamination(planted, evals, fillers=FILLERS).near
    assert len(near) >= 0.95 * len(evals) and all(i == j for i, j, _ in near)


def test_no_eval_sql_in_the_traces():
    def bare(sql):
        return "".join(sql.casefold().replace(";", "").split())

    seen = {bare((trace["feedback"] or {}).get("sql", "")) for trace in TRACES}
    calls = [span["attributes"] for trace in TRACES for span in trace["spans"][1:]]
    seen |= {bare(call["gen_ai.tool.call.arguments"]["sql"]) for call in calls}
    tests = {bare(row["sql"]) for row in rows("eval.jsonl")}
    assert len(tests) == 250 and len(seen) > 500
    assert not tests & seen
