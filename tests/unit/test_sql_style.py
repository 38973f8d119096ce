"""One spelling of SQL: what it looks like, and that the rows stay the same."""

import datetime as dt
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import tidewater
from utils.evals.grading import Grader, rows_equal
from utils.tidewater import WAREHOUSES
from utils.tidewater.sql_style import (
    canonicalize,
    component_differences,
    normalise,
    skeleton,
)


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        # Aliases
        ("SELECT COUNT(*) AS n FROM customers", "select count(*) from customers"),
        ("SELECT region r FROM customers;", "select region from customers"),
        # GROUP BY and ORDER BY by place
        (
            "SELECT region AS r, COUNT(*) AS n FROM customers GROUP BY r "
            "ORDER BY n DESC, region ASC",
            "select region,count(*) from customers group by 1 order by 2 desc,1",
        ),
        (
            "SELECT region, COUNT(*) FROM customers GROUP BY region "
            "ORDER BY COUNT(*) LIMIT 3",
            "select region,count(*) from customers group by 1 order by 2 limit 3",
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
            "SELECT SUBSTR(order_date, 1, 7) FROM order_lines",
            "select substring(order_date,1,7) from order_lines",
        ),
        (
            "SELECT STRFTIME('%Y', order_date) FROM order_lines",
            "select strftime('%Y',order_date) from order_lines",
        ),
        (
            "SELECT 1 FROM customers WHERE region IN ('west', 'midwest')",
            "select 1 from customers where region in ('midwest','west')",
        ),
        (
            "SELECT 1 FROM customers WHERE region IN ('west')",
            "select 1 from customers where region='west'",
        ),
        (
            "SELECT 1 FROM customers WHERE customer_id IN (SELECT customer_id FROM t)",
            "select 1 from customers where customer_id in (select customer_id from t)",
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
        (
            "SELECT 1 FROM customers WHERE segment='cafe' AND (region='west' OR "
            "is_test=0)",
            "select 1 from customers where (region='west' or is_test=0) and "
            "segment='cafe'",
        ),
        # Texts stay as they are
        ("SELECT 'A = B, c <> D - E'", "select 'A = B, c <> D - E'"),
        (
            "SELECT 1 FROM customers WHERE customer = 'O''Brien'",
            "select 1 from customers where customer='O''Brien'",
        ),
        ("SELECT '', 'it''s' || ', '", "select '','it''s' || ', '"),
        ('SELECT "Unit Price" FROM t', 'select "Unit Price" from t'),
        ("SELECT '-- no comment'", "select '-- no comment'"),
        # Two signs would begin a comment
        ("SELECT a - -1 FROM t", "select a - -1 from t"),
        ("SELECT a -  - b, - -3 FROM t", "select a - -b,- -3 from t"),
        ("SELECT a - 1 -- less one\nFROM t /* all */", "select a-1 from t"),
        # An outer query may use an inner one's names
        (
            "SELECT AVG(n) AS mean FROM (SELECT COUNT(*) AS n FROM order_lines "
            "GROUP BY order_id) AS s WHERE n > 2",
            "select avg(n) from (select count(*) as n from order_lines "
            "group by order_id) as s where n>2",
        ),
        (
            "WITH s AS (SELECT region AS r, COUNT(*) AS n FROM tickets GROUP BY r) "
            "SELECT r AS region, n FROM s ORDER BY n",
            "with s as (select region as r,count(*) as n from tickets group by 1) "
            "select r as region,n from s order by 2",
        ),
    ],
)
def test_one_spelling(sql, told):
    assert normalise(sql) == told
    assert normalise(told) == told


@pytest.mark.parametrize(
    ("period", "told"),
    [
        ("d >= '2026-03-01' AND d < '2026-04-01'", "'2026-03-01' and '2026-03-31'"),
        ("d >= '2026-03-01' AND d <= '2026-03-31'", "'2026-03-01' and '2026-03-31'"),
        ("d > '2024-02-28' AND d < '2024-03-01'", "'2024-02-29' and '2024-02-29'"),
        ("d > '2025-12-31' AND d <= '2026-01-31'", "'2026-01-01' and '2026-01-31'"),
        ("d < '2026-04-01' AND d >= '2026-03-01'", "'2026-03-01' and '2026-03-31'"),
        (
            "d BETWEEN DATE('2026-06-30', '-29 days') AND '2026-06-30'",
            "'2026-06-01' and '2026-06-30'",
        ),
        (
            "d > DATE('2026-06-30', '-1 day') AND d < DATE('2026-06-30', '+2 days')",
            "'2026-06-30' and '2026-07-01'",
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
        "d<'2026-04-01'",
        "x<9 and x>=2",
        "d<='2026-06-30' and d>=date('2026-06-30','-1 month')",
    ],
)
def test_what_is_no_range_of_days_stays(where):
    assert (
        normalise(f"SELECT 1 FROM t WHERE {where}") == f"select 1 from t where {where}"
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", ";", "hello there", "select 'unclosed", "select from where"),
        *("DROP TABLE customers", "INSERT INTO t VALUES (1)", "PRAGMA user_version"),
        *("select 1; select 2", "select 1; drop table t", "VALUES (1)", "```sql"),
        "select 1 from t where d >= '2026-13-41' and d < '2026-14-01'",
    ],
)
def test_what_is_no_query_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        normalise(text)


# Each breaks a query or changes its rows.
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


@pytest.mark.parametrize("sql", BUGS.values(), ids=BUGS)
def test_normalise_keeps_the_rows_of_rarer_queries(grader, sql):
    assert right(grader, [sql], [normalise(sql)]) == [True]


@pytest.mark.parametrize("text", ["select " + "(" * 300, "select " + "not " * 300])
def test_the_babble_of_a_small_model_is_a_value_error(text):
    assert component_differences(text, "select 1") == ["no query"]


def test_canonicalize_takes_a_query_without_from():
    assert canonicalize("SELECT (SELECT COUNT(*) FROM tickets)")


@pytest.fixture(scope="module")
def grader(pool):
    return Grader(pool)


def right(grader, wanted, got):
    """Say for each pair whether the rows are equal, in order where that counts."""
    cases = [
        {"id": sql, "sql": sql, "ordered": "limit" in sql.lower()} for sql in wanted
    ]
    return [grade.correct for grade in grader.grade(cases, got)]


def stands(trace):
    """Return the query that somebody stood behind, as notebook 04 takes it."""
    if trace.verdict == "corrected":
        return trace.feedback["sql"]
    liked = trace.verdict in ("approved", "thumbs_up")
    return (trace.arguments or {}).get("sql") if liked else None


@pytest.fixture(scope="module")
def queries():
    """Every different query of the logs that somebody stood behind, and of the eval."""
    texts = [*map(stands, tidewater.load_logs())]
    texts += [case["sql"] for case in tidewater.load_cases("eval")]
    return list(dict.fromkeys(filter(None, texts)))


@pytest.fixture(scope="module")
def spelled(queries):
    return [normalise(sql) for sql in queries]


@pytest.mark.timeout(1200)
def test_normalise_keeps_the_rows_of_every_query_of_the_data(grader, queries, spelled):
    assert len(queries) > 800
    same = right(grader, queries, spelled)
    assert [sql for sql, ok in zip(queries, same, strict=True) if not ok] == []


def test_what_is_normalised_stays_as_it_is(spelled):
    some = spelled[::5]
    assert [normalise(sql) for sql in some] == some
    plain = [sql for sql in some if sql.count("select") == 1]
    assert len(plain) > 100 and not any(" as " in sql for sql in plain)


@pytest.mark.timeout(1200)
def test_canonicalize_keeps_most_rows_and_is_done_once(grader, queries):
    some = queries[::10]
    canonical = [canonicalize(sql) for sql in some]
    same = right(grader, some, canonical)
    assert 0.3 < sum(same) / len(same) < 1
    assert [canonicalize(sql) for sql in canonical[:40]] == canonical[:40]


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
        (
            "SELECT COUNT(*) FROM tickets",
            "select count(*) from tickets where topic<>'spam'",
        ),
        ("SELECT COUNT(*) FROM customers", "select count(*) from customers"),
        ("SELECT 1", "select 1"),
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
    assert canonicalize(sql) == told
    assert canonicalize(told) == told


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
        GROWN,
    ],
)
def test_growth_is_one_select(grader, sql):
    assert canonicalize(sql) == GROWN
    without_spam = sql.replace("is_test = 0", "is_test = 0 AND topic <> 'spam'")
    assert right(grader, [without_spam], [GROWN]) == [True]


@pytest.mark.parametrize(
    "sql",
    [
        # three queries, a condition outside, a column that is not there
        "with s as (select count(*) as a,count(*) as b from customers),"
        "t as (select 1 as c) select round(100.0*(a-b)/b,1) from s",
        "with s as (select count(*) as a,count(*) as b from customers) "
        "select round(100.0*(a-b)/b,1) from s where b>10",
        "with s as (select count(*) as a,count(*) as b from customers) "
        "select round(100.0*(a-c)/c,1) from s",
    ],
)
def test_what_is_no_plain_growth_stays(sql):
    assert canonicalize(sql) == normalise(sql)


def test_queries_of_one_skeleton_differ_in_names_periods_and_sizes_only():
    template = (
        "SELECT region, COUNT(*) FROM tickets WHERE topic {topic} AND opened_date "
        "BETWEEN '{first}' AND '{last}' GROUP BY 1 ORDER BY {key} DESC LIMIT {n}"
    )
    march = {"first": "2026-03-01", "last": "2026-03-31", "n": 3, "key": 2}
    april = {"first": "2026-04-01", "last": "2026-04-30", "n": 5, "key": 2}
    late = skeleton(template.format(topic="= 'late'", **march))
    assert skeleton(template.format(topic="IN ('taste', 'late')", **april)) == late
    assert "late" not in late
    assert "2026" not in late
    assert skeleton(template.format(topic="= 'late'", **march | {"key": 1})) != late
    assert skeleton(template.format(topic="<> 'late'", **march)) != late
    half_open = "SELECT 1 FROM t WHERE d >= '2026-03-01' AND d < '2026-04-01'"
    assert skeleton(half_open) == skeleton(
        "select 1 from t where d between 'a' and 'b'"
    )


WANT = (
    "select region,sum(qty) from order_lines where is_test=0 and channel='web' "
    "and order_date between '2026-03-01' and '2026-03-31' group by 1 "
    "order by 2 desc limit 3"
)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("order_lines", "shipments", ["table"]),
        ("sum(qty)", "sum(price)", ["metric"]),
        ("region,", "segment,", ["grouping"]),
        ("is_test=0 and ", "", ["filter"]),
        ("'web'", "'rep'", ["filter"]),
        ("'2026-03-31'", "'2026-04-30'", ["period"]),
        ("2 desc limit 3", "2 desc limit 5", ["ranking"]),
        ("2 desc limit 3", "2 limit 3", ["ranking"]),
        (" group by 1", "", ["shape"]),
        ("select ", "select distinct ", ["shape"]),
        ("sum(qty) from order_lines", "max(qty) from tickets", ["table", "metric"]),
        ("between '2026-03-01' and '2026-03-31'", ">='2026-03-01'", ["period"]),
        (WANT, "I cannot say.", ["no query"]),
        (WANT, "", ["no query"]),
        (WANT, "drop table order_lines", ["no query"]),
    ],
)
def test_differences_name_the_parts(old, new, parts):
    assert old in WANT
    assert component_differences(WANT.replace(old, new), WANT) == parts


def test_another_spelling_is_no_difference():
    other = (
        "SELECT region AS r, SUM(qty) AS units FROM order_lines WHERE "
        "order_date >= '2026-03-01' AND order_date < '2026-04-01' AND "
        "channel IN ('web') AND is_test = 0 GROUP BY r ORDER BY units DESC LIMIT 3"
    )
    assert component_differences(other, WANT) == component_differences(WANT, WANT) == []


def test_a_period_in_a_measure_is_a_period():
    growth = "select sum(case when opened_date>='{}' then 1 end) from tickets"
    march, april = growth.format("2026-03-01"), growth.format("2026-04-01")
    assert component_differences(march, april) == ["period"]


texts = st.text(st.sampled_from("aZ'=<>-, %\"é"), max_size=6).filter(
    lambda t: not any(f"{o} " in f"{t} " for o in "=<>")  # see BUGS
)
quoted = texts.map(lambda t: "'" + t.replace("'", "''") + "'")
days = st.dates(dt.date(2024, 1, 1), dt.date(2026, 12, 31)).map(lambda d: f"'{d}'")
columns = st.sampled_from(["region", "topic", "customer", "opened_date"])
comparisons = st.sampled_from(["=", "<>", "!=", "<", ">=", " > ", " <= "])
numbers = st.integers(-3, 3).map(str)
sums = st.tuples(numbers, st.sampled_from([" - ", "-\n", "+", "*"]), numbers)
tests = st.one_of(
    st.tuples(columns, comparisons, quoted).map("".join),
    st.tuples(st.just("opened_date"), comparisons, days).map("".join),
    st.tuples(columns, st.lists(quoted, min_size=1, max_size=3)).map(
        lambda t: f"{t[0]} IN ({', '.join(t[1])})"
    ),
    st.tuples(st.just("rating"), comparisons, sums.map(" ".join)).map(" ".join),
    st.sampled_from(["is_test = 0", "closed_date IS NULL", "rating IS NOT NULL"]),
)
conditions = st.recursive(
    tests,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "AND", "OR"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda t: f"NOT ({t})"),
    ),
    max_leaves=4,
)
groups = st.sampled_from(
    ["region", "topic", "region || ', ' || topic", "STRFTIME('%Y-%m', opened_date)"]
)
measures = st.sampled_from(["COUNT(*)", "SUM(rating) - -1", "ROUND(AVG(rating), 1)"])


@st.composite
def simple_queries(draw):
    where = " AND ".join(draw(st.lists(conditions, max_size=3)))
    where = f" WHERE {where}" * bool(where)
    measure = draw(measures)
    if not draw(st.booleans()):
        return f"SELECT {measure} AS m FROM tickets{where}"
    group = draw(groups)
    key = draw(st.sampled_from(["g", group, "1"]))
    order = draw(st.sampled_from(["m DESC, g", f"{measure}, 1", "g ASC"]))
    return (
        f"SELECT {group} AS g, {measure} AS m FROM tickets{where} "
        f"GROUP BY {key} ORDER BY {order}"
    )


@pytest.fixture(scope="module")
def tickets():
    """Some tickets with awkward texts; for queries from here, so without walls."""
    database = sqlite3.connect(":memory:")
    database.execute("ATTACH ? AS live", (f"{WAREHOUSES['warehouse']}",))
    database.execute("CREATE TABLE tickets AS SELECT * FROM live.tickets LIMIT 150")
    awkward = ["", "a", "Z", "a'Z", "a=Z", "- -", "é"]
    for number, text in enumerate(awkward):
        change = "UPDATE tickets SET region = ?, topic = ? WHERE rowid % 20 = ?"
        database.execute(change, (text, text, number))
    return database


@settings(max_examples=80)
@given(simple_queries())
def test_normalise_keeps_the_rows_of_simple_queries(tickets, sql):
    told = normalise(sql)
    assert normalise(told) == told
    want, got = (tickets.execute(s).fetchall() for s in (sql, told))
    assert rows_equal(got, want, ordered="ORDER BY" in sql), told
