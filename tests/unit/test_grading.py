import itertools
import json
import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evals.grading import Grader, rows_equal
from utils.evals.sandbox import Result, SandboxPool
from utils.tidewater import WAREHOUSES, extract_sql, load_cases, read_jsonl

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
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
cells = st.none() | numbers | text | st.binary(max_size=4)
# Few different values, so that rows meet, repeat and almost repeat.
near = st.integers(0, 8).map(lambda i: i * 0.006)
few = st.sampled_from([None, "", "a", b"a", "1", 1, 1.0, 2, math.inf, -math.inf]) | near


def tables(cell, max_rows=6):
    def of(width):
        return st.lists(st.tuples(*[cell] * width), max_size=max_rows)

    return st.integers(1, 3).flatmap(of)


@given(tables(cells | st.just(math.nan)), st.booleans())
def test_every_result_equals_itself(rows, ordered):
    assert rows_equal(rows, rows, ordered)
    assert rows_equal([list(row) for row in rows], rows, ordered)


@given(tables(few), tables(few), st.booleans())
def test_equality_is_symmetric(a, b, ordered):
    assert rows_equal(a, b, ordered) == rows_equal(b, a, ordered)


@given(tables(cells) | tables(few), st.randoms(use_true_random=False))
def test_row_order_counts_only_where_asked(rows, rng):
    shuffled = rng.sample(rows, len(rows))
    assert rows_equal(shuffled, rows, ordered=False)
    if rows_equal(shuffled, rows, ordered=True):
        assert all(
            rows_equal([a], [b], True) for a, b in zip(shuffled, rows, strict=True)
        )


@given(st.none() | numbers | st.text(max_size=4) | st.binary(max_size=4))
def test_values_survive_a_trip_through_sqlite(cell):
    row = sqlite3.connect(":memory:").execute("SELECT ?", (cell,)).fetchone()
    assert rows_equal([row], [(cell,)], ordered=True)


@given(tables(near, 5), tables(near, 5))
def test_unordered_means_that_a_perfect_matching_exists(a, b):
    brute = len(a) == len(b) and any(
        all(rows_equal([x], [y], True) for x, y in zip(a, order, strict=True))
        for order in itertools.permutations(b)
    )
    assert rows_equal(a, b, ordered=False) == brute


@given(tables(few).filter(bool), st.data())
def test_a_changed_cell_is_seen(rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    j = data.draw(st.integers(0, len(rows[i]) - 1))

    def changed(new):
        return [*rows[:i], (*rows[i][:j], new, *rows[i][j + 1 :]), *rows[i + 1 :]]

    new = data.draw(cells)
    same = rows_equal([(new,)], [(rows[i][j],)], ordered=True)
    assert rows_equal(changed(new), rows, ordered=True) == same
    # Without order a small change may find another partner; a large one finds none.
    for far in (99, -99.5, "far", b"far"):
        assert not rows_equal(changed(far), rows, ordered=False)


@given(tables(few).filter(bool), st.booleans())
def test_the_number_of_equal_rows_counts(rows, ordered):
    assert not rows_equal([*rows, rows[0]], rows, ordered)
    other = [*rows, ("nowhere", *rows[0][1:])]
    assert not rows_equal([*rows, rows[0]], other, ordered)


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        (1, 1.0, True),
        (True, 1, True),
        (0.0, -0.0, True),
        (58689.34, 58689.35, True),  # one cent, see the note on ABS_TOL
        (58689.34, 58689.36, False),
        (12.2, 12.3, False),
        (10**9, 10**9 + 1, False),
        (10**18, 10**18 + 1, True),
        (None, 0, False),
        (None, "", False),
        (None, None, True),
        ("1", 1, False),
        ("a", "A", False),
        ("a", "a ", False),
        (b"a", "a", False),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, 1e308, False),
        (1e308, -1e308, False),
        (math.nan, math.nan, True),
        (math.nan, None, False),
        (10**400, 10**400, True),
        (10**400, math.inf, False),
    ],
)
def test_cells(got, want, equal):
    for ordered in (True, False):
        assert rows_equal([(got,)], [[want]], ordered) is equal


def test_column_order_and_width_count_and_empty_results_are_equal():
    assert rows_equal([], [], ordered=False)
    assert rows_equal([()], [()], ordered=False)
    assert not rows_equal([], [(None,)], ordered=False)
    assert not rows_equal([("a", 1)], [(1, "a")], ordered=False)
    assert not rows_equal([(1, 2)], [(2, 1)], ordered=False)
    assert not rows_equal([(1, 2)], [(1,)], ordered=False)


def test_sorting_rows_would_miss_a_match_that_exists():
    got, want = [(1.0, 5.0), (1.005, 1.0)], [(1.0, 1.0), (1.005, 5.0)]
    assert rows_equal(got, want, ordered=False)
    assert not rows_equal(got, [(1.0, 1.0), (1.03, 5.0)], ordered=False)
    huge = [(1e308, 5.0), (1e308, 1.0)], [(1e308 * (1 - 1e-13), 1.0), (1e308, 5.0)]
    assert rows_equal(*huge, ordered=False)


class FakePool:
    """SQLite in this process behind the sandbox pool's interface; counts the jobs."""

    def __init__(self, databases):
        self.databases, self.jobs = databases, []

    def map(self, jobs, progress=None):
        jobs = list(jobs)
        self.jobs += jobs
        return [self._one(self.databases[name], sql) for name, sql in jobs]

    def _one(self, scripts, sql):
        db = sqlite3.connect(":memory:")
        db.executescript(scripts)
        try:
            return Result(db.execute(sql).fetchall(), None)
        except sqlite3.Error as error:
            return Result(None, "sql_error", str(error))


TABLE = "CREATE TABLE t(x, y); INSERT INTO t VALUES "
CASE = {"id": "q1", "sql": "SELECT y FROM t WHERE x = 1", "ordered": False}


@pytest.fixture
def pool():
    return FakePool(
        {"warehouse": TABLE + "(1, 5), (2, 5)", "twin": TABLE + "(1, 5), (2, 6)"}
    )


def test_right_on_the_live_database_alone_is_not_right(pool):
    lucky = "SELECT y FROM t WHERE x = 2"
    lucky, right, broken, none, blank = Grader(pool).grade(
        [CASE] * 5, [lucky, "SELECT MIN(y) FROM t", "SELECT z FROM t", None, " \n"]
    )
    assert (lucky.correct, lucky.correct_on_live, lucky.error) == (False, True, None)
    assert lucky.per_database == {"warehouse": True, "twin": False}
    assert right.correct and right.correct_on_live and all(right.per_database.values())
    assert (broken.correct, broken.correct_on_live, broken.error) == (
        False,
        False,
        "sql_error",
    )
    assert none == blank
    assert (none.correct, none.correct_on_live, none.error) == (
        False,
        False,
        "no_query",
    )
    assert none.per_database == {"warehouse": False, "twin": False}


def test_equal_queries_are_run_once(pool):
    grader = Grader(pool)
    grades = grader.grade([CASE] * 9, ["SELECT 5"] * 8 + [None])
    assert [grade.correct for grade in grades] == [True] * 8 + [False]
    assert len(pool.jobs) == 4  # two queries on two databases
    grader.grade([CASE], ["SELECT 5"])
    assert len(pool.jobs) == 6  # the reference is remembered, answers are not


def test_expected_rows_are_used_as_they_are(pool):
    case = {"id": "p1", "ordered": True, "expected": {"warehouse": [[5]], "twin": []}}
    grader = Grader(pool)
    assert grader.expected([case, CASE]) == [
        case["expected"],
        {"warehouse": [(5,)], "twin": [(5,)]},
    ]
    grade = grader.grade([case], ["SELECT 5"])[0]
    assert grade.per_database == {"warehouse": True, "twin": False}


def test_a_case_that_cannot_be_graded_is_named(pool):
    grader = Grader(pool)
    broken = "SELECT z FROM t"
    with pytest.raises(ValueError, match=r"warehouse.*sql_error.*no such.*SELECT z"):
        grader.grade([CASE | {"sql": broken}], ["SELECT 1"])
    with pytest.raises(ValueError, match="shorter"):
        grader.grade([CASE] * 2, ["SELECT 1"])
    assert grader.grade([], []) == []


def test_a_reference_that_failed_is_tried_again(pool):
    grader, scripts = Grader(pool), dict(pool.databases)
    pool.databases["twin"] = "CREATE TABLE other(x)"
    with pytest.raises(ValueError, match="twin"):
        grader.expected([CASE])
    pool.databases.update(scripts)
    assert grader.expected([CASE]) == [{"warehouse": [(5,)], "twin": [(5,)]}]


@pytest.fixture(scope="module")
def warehouses():
    with SandboxPool(WAREHOUSES) as pool:
        yield Grader(pool)


def test_the_recorded_replies_grade_as_the_data_says(warehouses):
    cases, measured = load_cases(), {}
    for prompt in CORRECT:
        rows = read_jsonl(f"recorded/{prompt}.jsonl")
        assert [row["id"] for row in rows] == [case["id"] for case in cases]
        answers = [extract_sql(row["reply"]) for row in rows]
        assert None not in answers
        grades = warehouses.grade(cases, answers)
        assert all(grade.error is None for grade in grades)
        measured[prompt] = (
            sum(g.correct for g in grades),
            sum(g.correct_on_live for g in grades),
        )
    assert measured == CORRECT


def test_expected_rows_of_the_practice_set_fit_the_grader(warehouses):
    cases = load_cases("practice")
    for case, want in zip(cases, warehouses.expected(cases), strict=True):
        assert list(want) == warehouses.databases
        assert all(rows_equal(rows, rows, case["ordered"]) for rows in want.values())
        assert all(rows and json.dumps(rows) for rows in want.values())


def test_three_corrected_traces_are_equal_to_their_correction(warehouses):
    cases, answers = [], []
    for trace in read_jsonl("traces.jsonl"):
        feedback = trace["feedback"] or {}
        if feedback.get("verdict") == "corrected":
            ordered = "ORDER BY" in feedback["sql"]
            cases.append({"sql": feedback["sql"], "ordered": ordered})
            messages = trace["spans"][0]["attributes"]["gen_ai.output.messages"]
            answers.append(extract_sql(messages[0]["content"]))
    grades = warehouses.grade(cases, answers)
    assert len(cases) == 538
    assert sum(grade.correct for grade in grades) == 3
