"""One spelling of SQL: what it looks like, and that the rows stay the same."""

import pytest

from utils import tidewater
from utils.evals.grading import Grader
from utils.logs import redaction
from utils.tidewater.sql_style import (
    canonicalize,
    normalise,
    skeleton,
)
from utils.tidewater.words import NOT_NAMES


def other_rows(pool, wanted, got):
    """Return the queries that got other rows, or another order where that counts."""
    cases = []
    for sql in wanted:
        cases.append({"id": sql, "sql": sql, "ordered": "limit" in sql.lower()})
    grades = Grader(pool).grade(cases, got)
    return [sql for sql, one in zip(wanted, grades, strict=True) if not one.correct]


def stood_behind(trace):
    """Return the query that somebody stood behind, as notebook 04 takes it."""
    if trace.verdict == "corrected":
        return trace.feedback["sql"]
    liked = trace.verdict in ("approved", "thumbs_up")
    return (trace.arguments or {}).get("sql") if liked else None


@pytest.fixture(scope="module")
def queries():
    """Every different query of the logs that somebody stood behind, and of the eval."""
    texts = [*map(stood_behind, tidewater.load_logs())]
    texts += [case["sql"] for case in tidewater.load_cases("eval")]
    return list(dict.fromkeys(filter(None, texts)))


# All the data


@pytest.mark.timeout(1200)
def test_normalise_keeps_the_rows_of_every_query_of_the_data(pool, queries):
    assert len(queries) > 800
    spelled = [normalise(sql) for sql in queries]
    assert other_rows(pool, queries, spelled) == []
    assert [normalise(sql) for sql in spelled[::5]] == spelled[::5]


@pytest.mark.timeout(1200)
def test_canonicalize_keeps_most_rows_and_is_done_once(pool, queries):
    some = queries[::10]
    canonical = [canonicalize(sql) for sql in some]
    other = other_rows(pool, some, canonical)
    assert 0 < len(other) < 0.7 * len(some)
    assert [canonicalize(sql) for sql in canonical[:40]] == canonical[:40]


def test_the_shipped_models_learned_this_spelling():
    learned = {}
    for row in tidewater.read_jsonl("runs/04_train.examples.jsonl"):
        learned[row["prompt"][0]["content"]] = row["completion"][0]["content"]
    same = []
    for trace in tidewater.load_logs()[::3]:
        question, sql = redaction.redact(trace.question, NOT_NAMES), stood_behind(trace)
        if sql and question in learned:
            same.append(learned[question] in (canonicalize(sql), normalise(sql)))
    assert len(same) > 150
    assert sum(same) >= len(same) - 2  # of a question that was asked twice one is kept


# Single rules

JUNE = "between '2026-06-01' and '2026-06-30'"
MAY = "between '2026-05-01' and '2026-05-31'"


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        (  # aliases, GROUP BY and ORDER BY by place
            "SELECT region AS r, COUNT(*) AS n FROM customers GROUP BY r "
            "ORDER BY n DESC, region ASC;",
            "select region,count(*) from customers group by 1 order by 2 desc,1",
        ),
        (
            "SELECT 1.0*SUM(qty)/NULLIF(SUM(cost), 0) FROM order_lines",
            "select 1.0*sum(qty)/sum(cost) from order_lines",
        ),
        (  # conditions: test accounts, status, exclusions, filters, period
            "SELECT 1 FROM t WHERE d = '2026-03-01' AND region IN ('b', 'a') AND "
            "(c IN ('web') AND category <> 'x') AND status = 'paid' AND is_test = 0",
            "select 1 from t where is_test=0 and status='paid' and category<>'x' and "
            "c='web' and region in ('a','b') and d='2026-03-01'",
        ),
        # Ranges of days are written as BETWEEN
        (
            "SELECT 1 FROM t WHERE d > '2024-02-28' AND d < '2024-03-01'",
            "select 1 from t where d between '2024-02-29' and '2024-02-29'",
        ),
        (
            "SELECT 1 FROM t WHERE d BETWEEN DATE('2026-06-30', '-29 days') "
            "AND '2026-06-30'",
            f"select 1 from t where d {JUNE}",
        ),
    ],
)
def test_one_spelling(sql, told):
    assert normalise(sql) == normalise(told) == told


# A model may say anything.


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        (
            "SELECT SUM(qty) FROM order_lines WHERE status='paid'",
            "select sum(qty) from order_lines where status='paid' and "
            "category<>'sample'",
        ),
        (  # a share is an average
            "SELECT ROUND(100.0 * SUM(CASE WHEN paused = 1 THEN 1 ELSE 0 END) / "
            "NULLIF(COUNT(*), 0), 1) FROM subscriptions",
            "select round(100.0*avg(paused=1),1) from subscriptions",
        ),
        (  # growth over two halves of the period is one SELECT
            "SELECT ROUND(100.0 * (b - a) / a, 1) FROM (SELECT SUM(CASE WHEN d < "
            "'2026-06-01' THEN 1 ELSE 0 END) AS a, SUM(CASE WHEN d >= '2026-06-01' "
            "THEN 1 ELSE 0 END) AS b FROM shipments WHERE d >= '2026-05-01' AND "
            "d < '2026-07-01')",
            f"select round(100.0*sum(case when d {JUNE} then 1 end)/sum(case when d "
            f"{MAY} then 1 end)-100,1) from shipments",
        ),
    ],
)
def test_habits(sql, told):
    assert canonicalize(sql) == canonicalize(told) == told


WANT = (
    "select region,sum(qty) from order_lines where is_test=0 and channel='web' "
    "and order_date between '2026-03-01' and '2026-03-31' group by 1 "
    "order by 2 desc limit 3"
)


@pytest.mark.parametrize(
    ("old", "new", "same_skeleton"),
    [
        ("sum(qty)", "sum(price)", False),
        ("is_test=0 and ", "", False),
        ("'2026-03-31'", "'2026-04-30'", True),
        ("channel='web'", "channel in ('mail','web')", True),
    ],
)
def test_skeletons(old, new, same_skeleton):
    assert old in WANT
    other = WANT.replace(old, new)
    assert (skeleton(other) == skeleton(WANT)) == same_skeleton
