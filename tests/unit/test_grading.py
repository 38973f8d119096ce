"""The grader: what counts as equal rows, and the counts that the data promises."""

import itertools
import json
import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evals.grading import Grader, order_columns, rows_equal
from utils.evals.sandbox import Result, SandboxPool
from utils.tidewater import extract_sql, load_cases, read_jsonl

settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")

CORRECT = {  # prompt: correct on all three warehouses, on the live one (data/README)
    "launch": (91, 104),
    "terse": (86, 99),
    "caveman": (94, 106),
    "four_rules": (198, 208),
    "fewshot": (241, 244),
    "rules": (250, 250),
}

text = st.text(st.characters(exclude_categories=()), max_size=4)  # surrogates and NUL
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats()
cells = st.none() | numbers | text | st.binary(max_size=4)
# Few different values, so that rows meet, repeat and almost repeat.
near = st.integers(0, 8).map(lambda i: 20 + i * 0.006)
few = st.sampled_from([None, "", "a", b"a", "1", 1, 1.0, 2, math.inf, -math.inf]) | near


def tables(cell, max_rows=6):
    def of(width):
        return st.lists(st.tuples(*[cell] * width), max_size=max_rows)

    return st.integers(1, 3).flatmap(of)


@given(tables(cells) | tables(few), st.randoms(use_true_random=False))
def test_a_result_equals_itself_in_any_order(rows, rng):
    assert rows_equal([list(row) for row in rows], rows, ordered=True)
    assert rows_equal(rng.sample(rows, len(rows)), rows, ordered=False)


@given(tables(near, 5), tables(near, 5))
def test_unordered_means_that_a_perfect_matching_exists(a, b):
    brute = len(a) == len(b) and any(
        all(rows_equal([x], [y], True) for x, y in zip(a, order, strict=True))
        for order in itertools.permutations(b)
    )
    assert rows_equal(a, b, ordered=False) == brute


@given(tables(few).filter(bool), st.data())
def test_a_changed_cell_and_a_repeated_row_are_seen(rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    for far in (99, -99.5, "far", b"far"):
        changed = [*rows[:i], (far, *rows[i][1:]), *rows[i + 1 :]]
        assert not rows_equal(changed, rows, ordered=False)
    assert not rows_equal([*rows, rows[i]], rows, ordered=False)
    assert not rows_equal([*rows, rows[i]], [*rows, ("far", *rows[i][1:])], False)


# Two cells or two results, and whether the grader takes them for equal.
CASES = Path(__file__).with_name("grading_rows.jsonl").read_text(encoding="utf-8")
CASES = [json.loads(line) for line in CASES.splitlines()]
CELLS = [one for one in CASES if "cells" in one]
CELLS += [{"cells": [b"a", "a"], "equal": False}]  # JSON has no bytes
ROWS = [one for one in CASES if "got" in one]


@pytest.mark.parametrize("one", CELLS)
@pytest.mark.parametrize("ordered", [True, False])
def test_cells(one, ordered):
    a, b = one["cells"]
    assert rows_equal([(a,)], [[b]], ordered) is one["equal"]
    assert rows_equal([("x", a)], [["x", b]], ordered) is one["equal"]


@pytest.mark.parametrize("one", ROWS, ids=[one["why"] for one in ROWS])
def test_rows(one):
    equal = rows_equal(one["got"], one["want"], one["ordered"], one.get("order_by"))
    assert equal is one["equal"]


def test_columns_by_which_a_query_sorts():
    group = "SELECT t.a, SUM(b) AS n FROM t GROUP BY 1"
    for order in ("N DESC, 1 LIMIT 3", "2, a", "sum(b), t.a"):
        assert order_columns(f"{group} ORDER BY {order}") == (1, 0)
    assert order_columns("SELECT SUM(b), a FROM t ORDER BY SUM(b), a") == (0, 1)
    assert order_columns("SELECT a FROM t UNION SELECT b FROM t ORDER BY a") == (0,)
    for order in ("c", "2, c", "a COLLATE NOCASE", "random()", "("):
        assert order_columns(f"{group} ORDER BY {order}") is None
    assert order_columns("SELECT *, 1 FROM t ORDER BY a") is None
    assert order_columns("SELECT a FROM (SELECT a FROM t ORDER BY a)") is None


TABLES = {"warehouse": "(1, 5), (2, 5)", "twin": "(1, 5), (2, 6)"}
CASE = {"id": "q1", "sql": "SELECT y FROM t WHERE x = 1", "ordered": False}


@pytest.fixture
def small(tmp_path):
    """A pool over two databases that differ in one cell."""
    paths = {name: tmp_path / name for name in TABLES}
    for name, path in paths.items():
        db = sqlite3.connect(path)
        db.executescript(f"CREATE TABLE t(x, y); INSERT INTO t VALUES {TABLES[name]}")
        db.close()
    with SandboxPool(paths, 1) as pool:
        yield pool


LUCKY, RIGHT, BROKEN = "SELECT y FROM t WHERE x = 2", "SELECT 5", "SELECT z FROM t"
TIE = CASE | {"ordered": True, "sql": "SELECT x, y FROM t ORDER BY y"}
TIED = "SELECT x, y FROM t ORDER BY y, x DESC"  # a tie on the first database
GIVEN = {"ordered": True, "expected": {"warehouse": [[5]], "twin": []}}


@pytest.mark.parametrize(
    ("case", "answer", "error", "on_live", "on_twin"),
    [
        (CASE, LUCKY, None, True, False),
        (CASE, RIGHT, None, True, True),
        (CASE, BROKEN, "sql_error", False, False),
        (CASE, None, "no_query", False, False),
        (CASE, " \n", "no_query", False, False),
        (GIVEN, RIGHT, None, True, False),
        (TIE, TIED, None, True, True),
        (TIE | {"order_by": [1, 0]}, TIED, None, False, True),
    ],
)
def test_an_answer_is_right_when_it_is_on_every_database(
    small, case, answer, error, on_live, on_twin
):
    (grade,) = Grader(small).grade([case], [answer])
    assert (grade.error, grade.correct_on_live) == (error, on_live)
    assert grade.per_database == {"warehouse": on_live, "twin": on_twin}
    assert grade.correct == (on_live and on_twin)


def test_equal_queries_are_run_once(small, monkeypatch):
    jobs, run = [], small.map

    def counted(some, progress=None):
        jobs.extend(some)
        return run(some)

    monkeypatch.setattr(small, "map", counted)
    grader = Grader(small)
    grades = grader.grade([CASE] * 9, [RIGHT] * 8 + [None])
    assert [grade.correct for grade in grades] == [True] * 8 + [False]
    assert len(jobs) == 4  # two queries on two databases
    assert grader.grade([dict(CASE)] * 2, [None, RIGHT]) == grades[:-3:-1]
    assert len(jobs) == 4  # what was graded once is known
    assert not grader.grade([CASE | GIVEN], [RIGHT])[0].correct


def test_a_busy_machine_is_no_verdict_to_remember(small, monkeypatch):
    late = [Result(None, "timeout")] * 2
    grader, run = Grader(small), small.map
    grader.expected([CASE])
    monkeypatch.setattr(small, "map", lambda jobs, progress=None: late)
    assert grader.grade([CASE], [RIGHT])[0].error == "timeout"
    monkeypatch.setattr(small, "map", run)
    assert grader.grade([CASE], [RIGHT])[0].correct


@pytest.mark.parametrize("where", ["SELECT y FROM t WHERE x > 9", "SELECT NULL"])
def test_references_that_fail_or_are_empty_everywhere_are_named(small, where):
    empty = [CASE | {"sql": where, "id": f"e{i}"} for i in range(2)]
    with pytest.warns(UserWarning, match="empty.*e0, e1$") as told:
        grades = Grader(small).grade([CASE, *empty], [RIGHT, where, "SELECT 1"])
    assert len(told) == 1
    assert [grade.correct for grade in grades] == [True, True, False]
    with pytest.raises(ValueError, match=r"warehouse.*sql_error.*no such.*SELECT z"):
        Grader(small).grade([CASE | {"sql": BROKEN}], [RIGHT])


def test_the_recorded_replies_grade_as_the_data_says(pool):
    cases, grader, measured = load_cases(), Grader(pool), {}
    for prompt in CORRECT:
        answers = [
            extract_sql(r["reply"]) for r in read_jsonl(f"recorded/{prompt}.jsonl")
        ]
        grades = grader.grade(cases, answers)
        assert all(grade.error is None for grade in grades)
        on_live = sum(grade.correct_on_live for grade in grades)
        measured[prompt] = sum(grade.correct for grade in grades), on_live
    assert measured == CORRECT
