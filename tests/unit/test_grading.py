"""The grader: what counts as equal rows, and the counts that the data promises."""

import itertools
import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evals.grading import Grader, order_columns, rows_equal
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


SAME = [  # an answer and its reference
    (1, 1.0), (True, 1), (-0.0, 0), (3, 2.9999999999), (10**400, 10**400),
    (58689.34, 58689.35), (58689.0, 58689.01), (12.35, 12.34),  # one cent: ABS_TOL
    (4.21, 4.22), (100.004, 100.0), (99.999, 99.995), (0.1 + 0.2, 0.3),
    (2**60, float(2**60)), (123456789012.01, 123456789012.02), (None, None),
]  # fmt: skip
OTHER = [
    (58689.34, 58689.36), (12.2, 12.3), (4.21, 4.2), (0.123, 0.131), (0.12, 0.13),
    (0.9812, 0.9813), (1.031, 1.039), (2e-12, 1e-12), (0.001, 0.0), (0.5, 0),
    (10**9, 10**9 + 1), (10**12, 10**12 + 1), (1e12, 1e12 + 1), (1e14, 1e14 + 1),
    (10**18, 10**18 + 1), (2**53, 2**53 + 1), (1e300, 2e300), (4.5, 4),
    (None, 0), (None, ""), ("1", 1), ("1.0", "1"), ("a", "A"), ("a", "a "), (b"a", "a"),
    (math.inf, 1e308), (math.inf, -math.inf), (math.nan, None),
]  # fmt: skip


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("width", [1, 2])
def test_cells(ordered, width):
    for cells, equal in [(SAME, True), (OTHER, False)]:
        for a, b in cells:
            got, want = [("x", a)[-width:]], [["x", b][-width:]]
            assert rows_equal(got, want, ordered) is equal, (a, b)


def test_rows():
    # Beside hundreds a small amount is money; beside fractions it is one.
    assert rows_equal([(0.12,), (250.0,)], [(0.13,), (250.0,)], ordered=True)
    assert not rows_equal([(0.12,), (0.98,)], [(0.13,), (0.98,)], ordered=True)
    # NULL in a column leaves the numbers beside it their tolerance.
    rows, slip = [("a", None, 0.5), ("b", 300.01, 0.25)], [300.0, 300.03]
    for money, equal in zip(slip, [True, False], strict=True):
        got = [("b", money, 0.25), ("a", None, 0.5)]
        assert rows_equal(got, rows, ordered=False) is equal
    # The order of columns and their number count; empty results are equal.
    for got, want in [([], [(None,)]), ([(1, 2)], [(2, 1)]), ([(1, 2)], [(1,)])]:
        assert not rows_equal(got, want, ordered=False)
    assert rows_equal([], [], ordered=False)
    # Sorted rows would not be close one by one, and yet they pair off.
    got, want = [(21.0, 5.0), (21.005, 1.0)], [(21.0, 1.0), (21.005, 5.0)]
    assert rows_equal(got, want, ordered=False)


def test_rows_that_tie_may_change_places_where_the_tie_is_known():
    want = [("a", 3), ("b", 2), ("c", 2), ("d", 1)]
    swapped, wrong = [want[i] for i in (0, 2, 1, 3)], [want[i] for i in (1, 0, 2, 3)]
    assert rows_equal(swapped, want, ordered=True, order_by=[1])
    assert not rows_equal(wrong, want, ordered=True, order_by=[1])
    assert not rows_equal(swapped, want, ordered=True, order_by=[1, 0])
    assert not rows_equal(swapped, want, ordered=True)


def test_columns_by_which_a_query_sorts():
    group = "SELECT t.a, SUM(b) AS n FROM t GROUP BY 1"
    for order in ("N DESC, 1 LIMIT 3", "2, a", "sum(b), t.a"):
        assert order_columns(f"{group} ORDER BY {order}") == (1, 0)
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


def test_ties_come_from_the_reference_or_from_the_case(small):
    case = CASE | {"ordered": True, "sql": "SELECT x, y FROM t ORDER BY y"}
    answer = "SELECT x, y FROM t ORDER BY y, x DESC"  # a tie on the first database
    (grade,) = Grader(small).grade([case], [answer])
    assert grade.correct and grade.right
    (grade,) = Grader(small).grade([case | {"order_by": [1, 0]}], [answer])
    assert grade.per_database == {"warehouse": False, "twin": True}


@pytest.mark.parametrize("where", ["SELECT y FROM t WHERE x > 9", "SELECT NULL"])
def test_references_that_are_empty_everywhere_are_named_once(small, where):
    empty = [CASE | {"sql": where, "id": f"e{i}"} for i in range(2)]
    with pytest.warns(UserWarning, match="empty.*e0, e1$") as told:
        grades = Grader(small).grade([CASE, *empty], ["SELECT 5", where, "SELECT 1"])
    assert len(told) == 1
    assert [grade.correct for grade in grades] == [True, True, False]


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
