"""One spelling for SQL that means the same, so that a model has one style to learn.

Logs mix styles: a frontier model's aliases and half-open dates, an analyst's BETWEEN
and ordinals. A parser (sqlglot) makes them one. Only spelling changes, never meaning;
whoever trains on the result should still run both and compare the rows.
"""

import datetime as dt
import re
from collections.abc import Iterator

import sqlglot
from sqlglot import exp

# What this house never counts, by table.
LEFT_OUT = {"order_lines": "category <> 'sample'", "tickets": "topic <> 'spam'"}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def normalise(sql: str) -> str:
    """Return a SQLite query in the house style, on one line.

    No column aliases; GROUP BY and ORDER BY by position; a range of days as BETWEEN;
    conditions in a fixed order, period last; no NULLIF(x, 0), since SQLite divides by
    zero to NULL; months by substr. Raises ValueError for a text that is no query.
    """
    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
    except sqlglot.errors.SqlglotError as error:
        raise ValueError(f"not a query: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, exp.Query):
        raise ValueError(f"not a query: {sql[:60]!r}")
    for rule in (_spelling, _grouping):
        tree = tree.transform(rule)
    for where in list(tree.find_all(exp.Where)):
        where.set("this", _conditions(where.this))
    return tree.sql(dialect="sqlite", comments=False)


def house(sql: str) -> str:
    """Return a query as the analysts write it: normalised, and with house habits.

    Samples and spam are left out by name, a breakdown is in the order of its groups, a
    ranking is by the shown column, a share is an average. These change the meaning
    on some data: take the result only where the rows stay the same.
    """
    tree = sqlglot.parse_one(normalise(sql), read="sqlite").transform(_share)
    for select in list(tree.find_all(exp.Select)):
        source = select.find(exp.Table)
        if left_out := LEFT_OUT.get(source.name if source else ""):
            texts = [e.sql(dialect="sqlite") for e in select.find_all(exp.NEQ)]
            if left_out not in texts and isinstance(select.args["from_"].this, exp.Table):
                select.where(left_out, dialect="sqlite", copy=False)
        columns = [column.unalias() for column in select.expressions]
        if (order := select.args.get("order")) and select.args.get("group"):
            shown = [c.this.sql() if isinstance(c, exp.Round) else "" for c in columns]
            for key in order.expressions:
                if key.this.sql() in shown:
                    place = shown.index(key.this.sql()) + 1
                    key.set("this", exp.Literal.number(place))
            if not select.args.get("limit"):
                select.set("order", None)
                select.order_by("1", dialect="sqlite", copy=False)
    return normalise(tree.sql(dialect="sqlite"))


def _share(node: exp.Expression) -> exp.Expression:
    """A count of ones over a count is an average; a sum of whole fees needs no round."""
    text = node.sql(dialect="sqlite")
    one = r"(?:100|100\.0|1\.0) \* SUM\(CASE WHEN (.+) THEN 1 ELSE 0 END\) / COUNT\([*\w]+\)"
    if isinstance(node, exp.Div) and (found := re.fullmatch(one, text)):
        return sqlglot.parse_one(f"100.0 * AVG({found[1]})", read="sqlite")
    if text == "ROUND(SUM(monthly_fee), 2)":
        return node.this
    if text.startswith("100.0 * (1 - "):
        node.set("this", exp.Literal.number(100))
    return node


def skeleton(sql: str) -> str:
    """Return the query with its texts and numbers blanked: its form, not its values.

    Two questions with one skeleton differ in names, periods and sizes only.
    """
    tree = sqlglot.parse_one(normalise(sql), read="sqlite")

    def blank(node: exp.Expression) -> exp.Expression:
        ordinal = isinstance(node.parent, exp.Ordered | exp.Group)
        if isinstance(node, exp.Literal) and not ordinal:
            return exp.Placeholder()
        if isinstance(node, exp.In):
            return exp.EQ(this=node.this, expression=exp.Placeholder())
        return node

    return tree.transform(blank).sql(dialect="sqlite")


def _spelling(node: exp.Expression) -> exp.Expression:
    """Rewrite one node into the house spelling."""
    if isinstance(node, exp.Nullif) and node.expression.name == "0":
        return node.this
    if isinstance(node, exp.Func):
        node = _month(_day(node))
    if isinstance(node, exp.In) and len(node.expressions) == 1:
        return exp.EQ(this=node.this, expression=node.expressions[0])
    if isinstance(node, exp.In):
        node.set("expressions", sorted(node.expressions, key=lambda e: e.sql()))
    if isinstance(node, exp.Ordered):
        node.set("desc", node.args.get("desc") or None)
    return node


def _month(node: exp.Expression) -> exp.Expression:
    """STRFTIME('%Y-%m', day) says the same as SUBSTR(day, 1, 7)."""
    text = node.sql(dialect="sqlite")
    found = re.fullmatch(r"STRFTIME\('%Y-%m', (\w+)\)", text, re.IGNORECASE)
    return (
        sqlglot.parse_one(f"SUBSTR({found[1]}, 1, 7)", read="sqlite") if found else node
    )


def _day(node: exp.Expression) -> exp.Expression:
    """DATE('2026-06-30', '-29 days') is a day that can be written down."""
    text = node.sql(dialect="sqlite")
    found = re.fullmatch(r"DATE\('([\d-]{10})', '([+-]\d+) days?'\)", text)
    if not found:
        return node
    day = dt.date.fromisoformat(found[1]) + dt.timedelta(days=int(found[2]))
    return exp.Literal.string(str(day))


def _grouping(node: exp.Expression) -> exp.Expression:
    """Name the columns of GROUP BY and ORDER BY by their places; drop the aliases."""
    if not isinstance(node, exp.Select):
        return node
    places: dict[str, int] = {}
    for place, column in enumerate(node.expressions, start=1):
        places.setdefault(column.unalias().sql(), place)
        if column.alias:
            places[exp.column(column.alias).sql()] = place

    def by_place(key: exp.Expression) -> exp.Expression:
        place = places.get(key.sql())
        return exp.Literal.number(place) if place else key

    if group := node.args.get("group"):
        group.set("expressions", [by_place(key) for key in group.expressions])
    if order := node.args.get("order"):
        for key in order.expressions:
            key.set("this", by_place(key.this))
    inner = isinstance(node.parent, exp.Subquery | exp.CTE)
    if not inner:  # an outer query may use the names that an inner one gives
        node.set("expressions", [column.unalias() for column in node.expressions])
    return node


def _conditions(where: exp.Expression) -> exp.Expression:
    """Join half-open and closed ranges of days into BETWEEN; sort what is ANDed."""
    parts = list(_anded(where))
    starts = {p.this.sql(): p for p in parts if _bound(p, exp.GTE, exp.GT)}
    ends = {p.this.sql(): p for p in parts if _bound(p, exp.LT, exp.LTE)}
    for column in starts.keys() & ends.keys():
        low, high = starts[column], ends[column]
        first = _moved(low.expression, isinstance(low, exp.GT))
        last = _moved(high.expression, -isinstance(high, exp.LT))
        between = exp.Between(this=low.this, low=first, high=last)
        parts = [p for p in parts if p is not low and p is not high] + [between]
    parts.sort(key=_rank)
    return exp.and_(*parts, copy=False)


def _anded(part: exp.Expression) -> Iterator[exp.Expression]:
    inner = part.unnest()
    if isinstance(inner, exp.And):
        yield from _anded(inner.left)
        yield from _anded(inner.right)
    else:
        yield part if isinstance(inner, exp.Or) else inner


def _bound(part: exp.Expression, *kinds: type) -> bool:
    """Say whether a condition compares a column with one day."""
    return isinstance(part, kinds) and bool(_DAY.fullmatch(part.expression.name))


def _moved(day: exp.Expression, days: int) -> exp.Expression:
    moved = dt.date.fromisoformat(day.name) + dt.timedelta(days=days)
    return exp.Literal.string(str(moved))


def _rank(part: exp.Expression) -> tuple[int, str]:
    """Place of a condition: test accounts, status, exclusions, filters, period."""
    text = part.sql(dialect="sqlite")
    if text.startswith("is_test"):
        return 0, text
    if text.startswith("status"):
        return 1, text
    if isinstance(part, exp.NEQ):
        return 2, text
    if "NULL" in text or text.startswith("paused"):
        return 3, text
    return (5 if _DAY.search(text) else 4), text
