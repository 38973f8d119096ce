"""The grader: what counts as equal rows, and the counts that the data promises."""

import itertools
import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evals.grading import Grader, rows_equal
from utils.evals.sandbox import SandboxPool
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
near = st.integers(0, 8).map(lambda i: i * 0.006)
few = st.sampled_from([None, "", "a", b"a", "1", 1, 1.0, 2, math.inf, -math.inf]) | near


def tables(cell, max_rows=6):
    def of(width):
        return st.lists(st.tuples(*[cell] * width), max_size=max_rows)

    return st.integers(1, 3).flatmap(of)


@given(tables(cells) | tables(few), st.randoms(use_true_random=False))
def test_a_result_equals_itself_in_any_order(rows, rng):
    assert rows_equal([list(row) for row in rows], rows, ordered=True)
    shuffled = rng.sample(rows, len(rows))
    assert rows_equal(shuffled, rows, ordered=False)
    in_place = [rows_equal([a], [b], True) for a, b in zip(shuffled, rows, strict=True)]
    assert rows_equal(shuffled, rows, ordered=True) == all(in_place)


@given(tables(near, 5), tables(near, 5))
def test_unordered_means_that_a_perfect_matching_exists(a, b):
    brute = len(a) == len(b) and any(
        all(rows_equal([x], [y], True) for x, y in zip(a, order, strict=True))
        for order in itertools.permutations(b)
    )
    assert rows_equal(a, b, ordered=False) == brute
    assert rows_equal(b, a, ordered=False) == brute


@given(tables(few).filter(bool), st.data())
def test_a_changed_cell_and_a_repeated_row_are_seen(rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    for far in (99, -99.5, "far", b"far"):
        changed = [*rows[:i], (far, *rows[i][1:]), *rows[i + 1 :]]
        assert not rows_equal(changed, rows, ordered=False)
    assert not rows_equal([*rows, rows[i]], rows, ordered=False)
    assert not rows_equal([*rows, rows[i]], [*rows, ("far", *rows[i][1:])], False)


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        (1, 1.0, True),
        (True, 1, True),
        (58689.34, 58689.35, True),  # one cent, see the note on ABS_TOL
        (58689.34, 58689.36, False),
        (12.2, 12.3, False),
        (10**9, 10**9 + 1, False),
        (10**18, 10**18 + 1, True),
        (None, 0, False),
        (None, "", False),
        ("1", 1, False),
        ("a", "A", False),
        ("a", "a ", False),
        (b"a", "a", False),
        (math.inf, 1e308, False),
        (math.nan, None, False),
        (10**400, 10**400, True),
    ],
)
def test_cells(got, want, equal):
    for ordered in (True, False):
        assert rows_equal([(got,)], [[want]], ordered) is equal


def test_column_order_and_width_count_and_empty_results_are_equal():
    assert rows_equal([], [], ordered=False)
    assert not rows_equal([], [(None,)], ordered=False)
    assert not rows_equal([(1, 2)], [(2, 1)], ordered=False)
    assert not rows_equal([(1, 2)], [(1,)], ordered=False)
    # Sorted rows would not be close one by one, and yet they pair off.
    got, want = [(1.0, 5.0), (1.005, 1.0)], [(1.0, 1.0), (1.005, 5.0)]
    assert rows_equal(got, want, ordered=False)


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


def test_right_on_the_live_database_alone_is_not_right(small):
    lucky, right = "SELECT y FROM t WHERE x = 2", "SELECT MIN(y) FROM t"
    answers = [lucky, right, "SELECT z FROM t", None, " \n"]
    grades = Grader(small).grade([CASE] * 5, answers)
    assert [grade.correct for grade in grades] == [False, True, False, False, False]
    assert [g.correct_on_live for g in grades] == [True, True, False, False, False]
    assert grades[0].per_database == {"warehouse": True, "twin": False}
    errors = [grade.error for grade in grades]
    assert errors == [None, None, "sql_error", "no_query", "no_query"]


def test_equal_queries_are_run_once(small, monkeypatch):
    jobs, run = [], small.map

    def counted(some, progress=None):
        jobs.extend(some)
        return run(some)

    monkeypatch.setattr(small, "map", counted)
    grader = Grader(small)
    grades = grader.grade([CASE] * 9, ["SELECT 5"] * 8 + [None])
    assert [grade.correct for grade in grades] == [True] * 8 + [False]
    assert len(jobs) == 4  # two queries on two databases
    grader.grade([CASE], ["SELECT 5"])
    assert len(jobs) == 6  # the reference is remembered, answers are not


def test_expected_rows_are_used_as_they_are_and_a_reference_that_fails_is_named(small):
    case = {"id": "p1", "ordered": True, "expected": {"warehouse": [[5]], "twin": []}}
    (grade,) = Grader(small).grade([case], ["SELECT 5"])
    assert grade.per_database == {"warehouse": True, "twin": False}
    with pytest.raises(ValueError, match=r"warehouse.*sql_error.*no such.*SELECT z"):
        Grader(small).grade([CASE | {"sql": "SELECT z FROM t"}], ["SELECT 1"])


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


def test_expected_rows_of_the_practice_set_fit_the_grader(pool):
    grader = Grader(pool)
    for want in grader.expected(load_cases("practice")):
        assert list(want) == grader.databases
        assert all(want.values())


def test_three_corrected_traces_are_equal_to_their_correction(pool):
    cases, answers = [], []
    for trace in read_jsonl("traces.jsonl"):
        feedback = trace["feedback"] or {}
        if feedback.get("verdict") == "corrected":
            ordered = "ORDER BY" in feedback["sql"]
            cases.append({"sql": feedback["sql"], "ordered": ordered})
            messages = trace["spans"][0]["attributes"]["gen_ai.output.messages"]
            answers.append(extract_sql(messages[0]["content"]))
    grades = Grader(pool).grade(cases, answers)
    assert len(cases) == 538
    assert sum(grade.correct for grade in grades) == 3
