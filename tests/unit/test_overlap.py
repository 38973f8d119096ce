"""Repeats and leaks: small hand-made pairs, then counts on the course's data."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.logs.overlap import duplicates, leaks, near_duplicates, normalise

DATA = Path(__file__).parents[2] / "data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).open(encoding="utf-8")]


def prompts(name):
    return [row["question"] for row in rows(name)]


TRACES = rows("traces.jsonl")
ASKED = [
    trace["spans"][0]["attributes"]["gen_ai.input.messages"][-1]["content"]
    for trace in TRACES
]


def near(one, other):
    return bool(near_duplicates([one, other]))


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


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_normalise_never_fails_and_keeps_some_of_every_text(text):
    plain = normalise(text)
    assert bool(plain) == bool(text.split())
    assert "  " not in plain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("units by region, FY26", "Units by region FY26 please"),
        (
            "What is the refund rate in the West?",
            "what was our refund rate in the West",
        ),
        ("average order value in May 2025", "avergae order value in May 2025"),
        ("FY26 Q4 sales by category", "sales by category, Q4 FY26"),
        (
            "Gross margin by month, FY26",
            "could you give me gross margin by month, FY26?",
        ),
    ],
)
def test_repeats_are_near(one, other):
    assert near(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("orders by region in FY26 Q3", "orders by region in FY26 Q4"),
        ("orders by region in FY26 Q3", "orders by region in FY25 Q3"),
        ("sales on the Coast last quarter", "sales back East last quarter"),
        ("customers with more than 2 orders", "customers with more than 3 orders"),
        (
            "late rate in the Northeast, all time",
            "late rate in the Southeast, all time",
        ),
        ("three lowest regions by late rate", "three slowest regions by late rate"),
        ("sales by month, last quarter", "Riptide sales by month, last quarter"),
        ("tickets opened in June 2026", "tickets opened in July 2026"),
        ("share of orders refunded", "orders refunded"),
        ("how many billing tickets", "% billing tickets"),
    ],
)
def test_other_questions_are_not_near(one, other):
    assert not near(one, other)


def test_groups_point_to_the_first_of_equals():
    texts = ["Units, FY26?", "orders", "units FY26", "ORDERS!", "tickets", "??", "!!"]
    assert duplicates(texts) == [0, 1, 0, 1, 4, 5, 6]
    assert duplicates([]) == []


def test_near_pairs_are_ordered_scored_and_not_equal():
    texts = ["units by region", "Units by region!", "units by region please", "tickets"]
    pairs = near_duplicates(texts)
    assert [(i, j) for i, j, _ in pairs] == [(0, 2), (1, 2)]
    assert all(60 <= score < 100 for *_, score in pairs)
    assert near_duplicates(texts, threshold=99) == []
    assert near_duplicates([]) == []


def test_a_leak_stands_in_one_list_only():
    train = ["Units by region", "units by region?", "Units by region please"]
    found = leaks(train, ["tickets", "Units by region"])
    assert found.exact == [(0, 1)]
    assert found.normalised == [(1, 1)]
    assert [(i, j) for i, j, _ in found.near] == [(2, 1)]


@pytest.mark.parametrize("threshold", [0, -1, 101, float("nan")])
def test_a_threshold_outside_the_scale_is_refused(threshold):
    with pytest.raises(ValueError, match="above 0 and up to 100"):
        near_duplicates(["a", "b"], threshold)


def test_one_text_instead_of_a_list_is_refused():
    with pytest.raises(TypeError, match="Give a list of texts"):
        duplicates("units")


def test_blocks_give_what_one_table_gives(monkeypatch):
    whole = near_duplicates(ASKED)
    monkeypatch.setattr("utils.overlap._BLOCK", 100)
    assert near_duplicates(ASKED) == whole


@pytest.mark.timeout(30)
def test_repeats_in_the_traces():
    assert len(set(ASKED)) == 1336
    assert 60 <= len(ASKED) - len(set(duplicates(ASKED))) <= 75
    # Processor time, so that a busy machine does not fail the test.
    start = time.process_time()
    pairs = near_duplicates(ASKED)
    assert time.process_time() - start < 2
    assert 8 <= len(pairs) <= 12
    for i, j, _ in pairs:
        words = set(normalise(ASKED[i]).split()) ^ set(normalise(ASKED[j]).split())
        assert words <= {"please"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (ASKED, prompts("eval.jsonl")),
        (prompts("practice.jsonl"), prompts("eval.jsonl")),
        (ASKED, prompts("practice.jsonl")),
    ],
    ids=["traces-eval", "practice-eval", "traces-practice"],
)
def test_no_question_leaks(train, test):
    found = leaks(train, test)
    assert (found.exact, found.normalised, found.near) == ([], [], [])


def test_a_planted_leak_is_found():
    test = prompts("eval.jsonl")
    polite = leaks([f"Hi, could you please tell me {text}" for text in test], test)
    found = {j for i, j, _ in polite.near if i == j}
    assert len(found) / len(test) >= 0.95
    assert len(polite.near) == len(found)


def test_no_eval_sql_in_the_traces():
    def bare(sql):
        return "".join(sql.casefold().replace(";", "").split())

    tests = {bare(row["sql"]) for row in rows("eval.jsonl")}
    seen = {
        bare(trace["feedback"]["sql"])
        for trace in TRACES
        if trace["feedback"] and "sql" in trace["feedback"]
    }
    calls = [span["attributes"] for trace in TRACES for span in trace["spans"][1:]]
    seen |= {bare(call["gen_ai.tool.call.arguments"]["sql"]) for call in calls}
    assert len(tests) == 250
    assert len(seen) > 500
    assert not tests & seen


def test_swapped_numbers_and_months_make_another_question():
    texts = [
        "growth in sales from May 2025 to June 2026",
        "growth in sales from June 2025 to May 2026",
        "more than 2 orders in 3 months",
        "more than 3 orders in 2 months",
        "orders, Q4 over Q3",
        "orders, Q3 over Q4",
    ]
    assert near_duplicates(texts, 50) == []
