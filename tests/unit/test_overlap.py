"""Repeats and contamination: hand-made pairs, then counts on the course's data."""

from functools import partial

import pytest

from utils.logs import overlap
from utils.logs.overlap import contamination, duplicates, near_duplicates, normalise
from utils.tidewater import read_jsonl
from utils.tidewater.words import FILLERS

ASKED = [
    trace["spans"][0]["attributes"]["gen_ai.input.messages"][-1]["content"]
    for trace in read_jsonl("traces.jsonl")
]
near_in_tidewater = partial(near_duplicates, fillers=FILLERS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("units by region, FY26", "Units by region FY26 please"),
        ("is the refund rate in the West?", "our refund rate in the West"),
        ("average order value in May 2025", "avergae order value in May 2025"),
        ("FY26 Q4 sales by category", "sales by category, Q4 FY26"),
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
        ("sales on the Coast last quarter", "sales back East last quarter"),
        ("customers with more than 2 orders", "customers with more than 3 orders"),
        ("late rate in the Northeast", "late rate in the Southeast"),
        ("three lowest regions by late rate", "three slowest regions by late rate"),
        ("sales by month, last quarter", "Riptide sales by month, last quarter"),
        ("tickets opened in June 2026", "tickets opened in July 2026"),
        ("how many billing tickets", "% billing tickets"),
        ("growth from May 2025 to June 2026", "growth from June 2025 to May 2026"),
        ("more than 2 orders in 3 months", "more than 3 orders in 2 months"),
    ],
)
def test_other_questions_are_not_near(one, other):
    assert near_in_tidewater([one, other], 50) == []


def test_a_repeat_stands_in_one_list_only():
    assert normalise("  ＦＹ２６ What's %,\tEast-coast? ") == "fy26 whats % east coast"
    texts = ["Units, FY26?", "orders", "units FY26", "ORDERS!", "tickets", "??", "!!"]
    assert duplicates(texts) == [0, 1, 0, 1, 4, 5, 6]
    train = ["Units by region", "units by region?", "Units by region please"]
    assert [(i, j) for i, j, _ in near_duplicates(train)] == [(0, 2), (1, 2)]
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
    evals = [case["question"] for case in read_jsonl("eval.jsonl")]
    practice = [case["question"] for case in read_jsonl("practice.jsonl")]
    for train, test in ((ASKED, evals), (practice, evals), (ASKED, practice)):
        found = contamination(train, test, fillers=FILLERS)
        assert (found.exact, found.normalised, found.near) == ([], [], [])
    planted = [f"Hi, could you please tell me {text}" for text in evals]
    near = contamination(planted, evals, fillers=FILLERS).near
    assert len(near) >= 0.95 * len(evals) and all(i == j for i, j, _ in near)
