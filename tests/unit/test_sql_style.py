"""One spelling of SQL: what it looks like, and that the rows stay the same."""

import pytest

from utils import tidewater
from utils.evals.grading import Grader
from utils.logs import redaction
from utils.tidewater.sql_style import (
    canonicalize,
    component_differences,
    normalise,
    skeleton,
)
from utils.tidewater.words import NOT_NAMES


@pytest.fixture(scope="module")
def grader(pool):
    return Grader(pool)


def correct(grader, wanted, got):
    """Say for each pair whether the rows are equal, in order where that counts."""
    cases = [
        {"id": sql, "sql": sql, "ordered": "limit" in sql.lower()} for sql in wanted
    ]
    return [grade.correct for grade in grader.grade(cases, got)]


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
def test_normalise_keeps_the_rows_of_every_query_of_the_data(grader, queries):
    assert len(queries) > 800
    spelled = [normalise(sql) for sql in queries]
    same = correct(grader, queries, spelled)
    assert [sql for sql, ok in zip(queries, same, strict=True) if not ok] == []
    assert [normalise(sql) for sql in spelled[::5]] == spelled[::5]


@pytest.mark.timeout(1200)
def test_canonicalize_keeps_most_rows_and_is_done_once(grader, queries):
    some = queries[::10]
    canonical = [canonicalize(sql) for sql in some]
    same = correct(grader, some, canonical)
    assert 0.3 < sum(same) / len(same) < 1
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


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT region r FROM customers;", "select region from customers"),
        # GROUP BY and ORDER BY by place
        (
            "SELECT region AS r, COUNT(*) AS n FROM customers GROUP BY r "
            "ORDER BY n DESC, region ASC",
            "select region,count(*) from customers group by 1 order by 2 desc,1",
        ),
        (
            "SELECT region FROM customers GROUP BY region ORDER BY SUM(is_test)",
            "select region from customers group by 1 order by sum(is_test)",
        ),
        # No NULLIF under a division, no STRFTIME for months, no list of one
        (
            "SELECT 1.0*SUM(qty)/NULLIF(SUM(cost), 0) FROM order_lines",
            "select 1.0*sum(qty)/sum(cost) from order_lines",
        ),
        (
            "SELECT STRFTIME('%Y-%m', order_date) AS month FROM order_lines "
            "GROUP BY month",
            "select substring(order_date,1,7) from order_lines group by 1",
        ),
        (
            "SELECT 1 FROM customers WHERE region IN ('west', 'midwest') AND a IN (1)",
            "select 1 from customers where a=1 and region in ('midwest','west')",
        ),
        # Conditions: test accounts, status, exclusions, filters, period
        (
            "SELECT 1 FROM order_lines WHERE order_date = '2026-03-01' AND "
            "region = 'west' AND (channel = 'web' AND category <> 'sample') AND "
            "status = 'paid' AND is_test = 0",
            "select 1 from order_lines where is_test=0 and status='paid' and "
            "category<>'sample' and channel='web' and region='west' and "
            "order_date='2026-03-01'",
        ),
        # Texts stay as they are; two signs would begin a comment
        ("SELECT 'A = B, c <> D - E'", "select 'A = B, c <> D - E'"),
        ("SELECT '', 'it''s' || ', '", "select '','it''s' || ', '"),
        ('SELECT "Unit Price" FROM t', 'select "Unit Price" from t'),
        ("SELECT a -  - b, - -3 FROM t", "select a - -b,- -3 from t"),
        ("SELECT a - 1 -- less one\nFROM t /* all */", "select a-1 from t"),
        # An outer query may use an inner one's names
        (
            "WITH s AS (SELECT region AS r, COUNT(*) AS n FROM tickets GROUP BY r) "
            "SELECT r AS region, n FROM s ORDER BY n",
            "with s as (select region as r,count(*) as n from tickets group by 1) "
            "select r as region,n from s order by 2",
        ),
    ],
)
def test_one_spelling(sql, told):
    assert normalise(sql) == normalise(told) == told


@pytest.mark.parametrize(
    ("period", "told"),
    [
        ("d >= '2026-03-01' AND d < '2026-04-01'", "'2026-03-01' and '2026-03-31'"),
        ("d > '2024-02-28' AND d < '2024-03-01'", "'2024-02-29' and '2024-02-29'"),
        ("d <= '2026-01-31' AND d > '2025-12-31'", "'2026-01-01' and '2026-01-31'"),
        (
            "d BETWEEN DATE('2026-06-30', '-29 days') AND '2026-06-30'",
            "'2026-06-01' and '2026-06-30'",
        ),
    ],
)
def test_a_range_of_days_is_written_as_between(period, told):
    got = normalise(f"SELECT 1 FROM t WHERE x = 1 AND {period}")
    assert got == f"select 1 from t where x=1 and d between {told}"


@pytest.mark.parametrize(
    "where",
    [
        "a>='2026-03-01' and b<'2026-04-01'",  # two columns
        "d>='2026-03-01' or d<'2026-04-01'",
        "not (d>='2026-03-01' and d<'2026-04-01')",
        "x<9 and x>=2",
        "d<='2026-06-30' and d>=date('2026-06-30','-1 month')",
    ],
)
def test_what_is_no_range_of_days_stays(where):
    sql = f"select 1 from t where {where}"
    assert normalise(sql) == sql


@pytest.mark.parametrize(
    "text",
    [
        *("", ";", "hello there", "select 'unclosed", "select from where", "```sql"),
        *("DROP TABLE customers", "PRAGMA user_version", "VALUES (1)"),
        *("select 1; drop table t", "select " + "(" * 300, "select " + "not " * 300),
        "select 1 from t where d >= '2026-13-41' and d < '2026-14-01'",
    ],
)
def test_what_is_no_query_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        normalise(text)
    assert component_differences(text, "select 1") == ["no query"]


# Each broke a query or changed its rows.
BUGS = {
    "alias in HAVING": "SELECT region, COUNT(*) AS n FROM customers GROUP BY 1 "
    "HAVING n > 80",
    "alias within ORDER BY": "SELECT qty AS q FROM order_lines ORDER BY -q LIMIT 3",
    "alias of a UNION": "SELECT region AS x FROM customers UNION "
    "SELECT segment FROM customers ORDER BY x",
    "alias in an inner UNION": "SELECT x FROM (SELECT region AS x FROM customers UNION "
    "SELECT segment FROM customers)",
    "alias in capitals": "SELECT region, COUNT(*) AS Orders FROM order_lines "
    "GROUP BY 1 ORDER BY orders DESC",
    "alias in quotes": 'SELECT region, COUNT(*) AS "n" FROM order_lines '
    'GROUP BY 1 ORDER BY "n" DESC LIMIT 3',
    "place after a star": "SELECT *, qty AS q FROM order_lines "
    "ORDER BY q DESC, order_id LIMIT 1",
    "place of a number": "SELECT 2, region, COUNT(*) FROM customers GROUP BY 2",
    "alias like a column": "SELECT SUBSTR(order_date, 1, 7) AS order_date, COUNT(*) "
    "FROM order_lines GROUP BY order_date",
    "NULLIF without a division": "SELECT COUNT(NULLIF(paused, 0)) FROM subscriptions",
    "operator at a text's end": "SELECT 'A = '",
    "first day of all": "SELECT DATE('0001-01-01', '-29 days')",
}


def test_normalise_keeps_the_rows_of_rarer_queries(grader):
    spelled = [normalise(sql) for sql in BUGS.values()]
    same = correct(grader, list(BUGS.values()), spelled)
    assert [name for name, ok in zip(BUGS, same, strict=True) if not ok] == []


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        (
            "SELECT SUM(qty) FROM order_lines WHERE status='paid'",
            "select sum(qty) from order_lines where status='paid' and "
            "category<>'sample'",
        ),
        (
            "SELECT SUM(qty) FROM order_lines WHERE 'x'<>'y' AND category != 'sample'",
            "select sum(qty) from order_lines where 'x'<>'y' and category<>'sample'",
        ),
        ("SELECT COUNT(*) FROM customers", "select count(*) from customers"),
        ("SELECT (SELECT COUNT(*) FROM t)", "select (select count(*) from t)"),
        (  # the inner query has the table
            "SELECT AVG(n) FROM (SELECT COUNT(*) AS n FROM tickets) AS s",
            "select avg(n) from (select count(*) as n from tickets "
            "where topic<>'spam') as s",
        ),
        (  # a breakdown is in the order of its groups
            "SELECT plan, COUNT(*) AS n FROM subscriptions GROUP BY plan ORDER BY n",
            "select plan,count(*) from subscriptions group by 1 order by 1",
        ),
        (  # a ranking is by the column that is shown
            "SELECT region, ROUND(SUM(cost), 2) FROM shipments GROUP BY region "
            "ORDER BY SUM(cost) DESC LIMIT 3",
            "select region,round(sum(cost),2) from shipments group by 1 "
            "order by 2 desc limit 3",
        ),
        (  # a share is an average
            "SELECT ROUND(100.0 * SUM(CASE WHEN paused = 1 THEN 1 ELSE 0 END) / "
            "NULLIF(COUNT(*), 0), 1) FROM subscriptions",
            "select round(100.0*avg(paused=1),1) from subscriptions",
        ),
        (
            "SELECT ROUND(SUM(monthly_fee), 2) FROM subscriptions",
            "select sum(monthly_fee) from subscriptions",
        ),
    ],
)
def test_habits(sql, told):
    assert canonicalize(sql) == canonicalize(told) == told


JUNE = "between '2026-06-01' and '2026-06-30'"
MAY = "between '2026-05-01' and '2026-05-31'"
GROWN = (
    f"select round(100.0*sum(case when opened_date {JUNE} then 1 end)/sum(case when "
    f"opened_date {MAY} then 1 end)-100,1) from tickets where is_test=0 "
    "and topic<>'spam'"
)


@pytest.mark.parametrize(
    "sql",
    [
        # two whole ranges in a CTE
        "WITH s AS (SELECT SUM(CASE WHEN opened_date >= '2026-06-01' AND opened_date < "
        "'2026-07-01' THEN 1 ELSE 0 END) AS now, SUM(CASE WHEN opened_date BETWEEN "
        "'2026-05-01' AND '2026-05-31' THEN 1 END) AS before FROM tickets WHERE "
        "is_test = 0) SELECT ROUND(100.0 * (now - before) / before, 1) FROM s",
        # two halves of the query's period, in a subquery
        "SELECT ROUND(100.0 * (b - a) / a, 1) FROM (SELECT SUM(CASE WHEN opened_date < "
        "'2026-06-01' THEN 1 ELSE 0 END) AS a, SUM(CASE WHEN opened_date >= "
        "'2026-06-01' THEN 1 ELSE 0 END) AS b FROM tickets WHERE is_test = 0 AND "
        "opened_date >= '2026-05-01' AND opened_date < '2026-07-01')",
    ],
)
def test_growth_is_one_select(grader, sql):
    assert canonicalize(sql) == canonicalize(GROWN) == GROWN
    without_spam = sql.replace("is_test = 0", "is_test = 0 AND topic <> 'spam'")
    assert correct(grader, [without_spam], [GROWN]) == [True]
    outside = normalise(sql + " WHERE 1 > 0")  # a condition on the sums: no plain one
    assert canonicalize(outside).count("select") == 2


def test_a_skeleton_is_without_names_periods_and_sizes():
    template = (
        "SELECT region, COUNT(*) FROM tickets WHERE topic {topic} AND opened_date "
        "BETWEEN '{first}' AND '{last}' GROUP BY 1 ORDER BY {key} DESC LIMIT {n}"
    )
    march = {"first": "2026-03-01", "last": "2026-03-31", "n": 3, "key": 2}
    april = {"first": "2026-04-01", "last": "2026-04-30", "n": 5, "key": 2}
    late = skeleton(template.format(topic="= 'late'", **march))
    assert skeleton(template.format(topic="IN ('taste', 'late')", **april)) == late
    assert "late" not in late and "2026" not in late
    assert skeleton(template.format(topic="= 'late'", **march | {"key": 1})) != late
    assert skeleton(template.format(topic="<> 'late'", **march)) != late


WANT = (
    "select region,sum(qty) from order_lines where is_test=0 and channel='web' "
    "and order_date between '2026-03-01' and '2026-03-31' group by 1 "
    "order by 2 desc limit 3"
)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("sum(qty)", "sum(price)", ["metric"]),
        ("region,", "segment,", ["grouping"]),
        ("is_test=0 and ", "", ["filter"]),
        ("'2026-03-31'", "'2026-04-30'", ["period"]),
        ("2 desc limit 3", "2 limit 3", ["ranking"]),
        (" group by 1", "", ["shape"]),
        ("select ", "select distinct ", ["shape"]),
        ("sum(qty) from order_lines", "max(qty) from tickets", ["table", "metric"]),
        ("between '2026-03-01' and '2026-03-31'", ">='2026-03-01'", ["period"]),
        ("channel='web'", "channel IN ('web')", []),
    ],
)
def test_differences_name_the_components(old, new, parts):
    assert old in WANT
    assert component_differences(WANT.replace(old, new), WANT) == parts
