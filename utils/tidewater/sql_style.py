"""One spelling for SQL that means the same, so that a model has one style to learn.

Logs mix styles: a frontier model's aliases and half-open dates, an analyst's BETWEEN
and ordinals. A parser (sqlglot) makes them one. `normalise` changes only the spelling,
`canonicalize` also habits; whoever trains on the result should still run both queries
and compare the rows.
"""

import datetime as dt
import functools
import logging
import re
from collections.abc import Iterator

import sqlglot
from sqlglot import exp

logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of what is no query

# What Tidewater never counts, by table.
LEFT_OUT = {"order_lines": "category <> 'sample'", "tickets": "topic <> 'spam'"}
_QUOTED = re.compile(r"('(?:[^']|'')*'|\"[^\"]*\")")
# A space on both sides goes; not before a sign, as two of them begin a comment.
_SPACED = re.compile(r" (<>|<=|>=|=|<|>|\*|\+|-|/) (?!-|$)")
# 100.0 * SUM(CASE WHEN it THEN 1 ELSE 0 END) / COUNT(*); 1.0 where it only ranks
_SHARE = re.compile(
    r"(?:100|100\.0|1\.0) \* SUM\(CASE WHEN (.+) THEN 1 ELSE 0 END\)"
    r" / COUNT\([*\w]+\)"
)
# 100.0 * (now - before) / before, of two sums with names
_GROWTH = re.compile(r"ROUND\(100(?:\.0)? \* \((\w+) - (\w+)\) / \2, 1\)")
_MONTH = re.compile(r"STRFTIME\('%Y-%m', (\w+)\)", re.IGNORECASE)
_MOVED_DAY = re.compile(r"DATE\('([\d-]{10})', '([+-]\d+) days?'\)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_BOUNDS = (exp.GTE, exp.GT, exp.LT, exp.LTE)


def _parse(sql: str) -> exp.Expression:
    return sqlglot.parse_one(sql, read="sqlite")


def _text(node: exp.Expression) -> str:
    return node.sql(dialect="sqlite", copy=False)  # a copy would double the time


@functools.cache  # parsing takes milliseconds
def normalise(sql: str) -> str:
    """Return a SQLite query in one spelling, lower-case, with no space to spare.

    No column aliases; GROUP BY and ORDER BY by position; a range of days as BETWEEN;
    conditions in a fixed order, period last; no NULLIF(x, 0), since SQLite divides by
    zero to NULL; months by substr. Raises ValueError for a text that is no query.
    """
    try:
        tree = _parse(sql)
        if not isinstance(tree, exp.Query) or not tree.selects:
            raise ValueError(f"not a query: {sql[:60]!r}")
        for habit in (_spelling, _by_position):
            tree = tree.transform(habit, copy=False)
        for where in list(tree.find_all(exp.Where)):
            where.set("this", _conditions(where.this))
        text = tree.sql(dialect="sqlite", comments=False, copy=False)
        return _compact(text)
    except sqlglot.errors.SqlglotError as error:
        raise ValueError(f"not a query: {str(error).splitlines()[0]}") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"a query beyond all measure: {error}") from error


@functools.cache
def canonicalize(sql: str) -> str:
    """Return a query as the analysts write it: normalised, and with their habits.

    Samples and spam are left out by name, a breakdown is in the order of its groups, a
    ranking is by the shown column, a share is an average, growth is one SELECT. These
    change the meaning on some data: take the result only where the rows stay the same.
    """
    plain = normalise(sql)
    tree = _growth(_parse(plain)).transform(_share, copy=False)
    for select in list(tree.find_all(exp.Select)):
        _leave_out(select)
        order = select.args.get("order")
        if not order or not select.args.get("group"):
            continue
        if not select.args.get("limit"):
            select.set("order", None)
            select.order_by("1", dialect="sqlite", copy=False)
            continue
        # A ranking by SUM(x) becomes one by the place of ROUND(SUM(x), 2).
        columns = [column.unalias() for column in select.expressions]
        shown = [c.this.sql() if isinstance(c, exp.Round) else "" for c in columns]
        for key in order.expressions:
            if key.this.sql() in shown:
                place = shown.index(key.this.sql()) + 1
                key.set("this", exp.Literal.number(place))
    text = _text(tree)
    return plain if _compact(text) == plain else normalise(text)


@functools.cache
def skeleton(sql: str) -> str:
    """Return the query with its texts and numbers blanked: what it asks, of whatever.

    Two queries of one skeleton differ in names, periods and sizes only.
    """

    def blank(node: exp.Expression) -> exp.Expression:
        position = isinstance(node.parent, exp.Ordered | exp.Group)
        if isinstance(node, exp.Literal) and not position:
            return exp.Placeholder()
        if isinstance(node, exp.In):
            return exp.EQ(this=node.this, expression=exp.Placeholder())
        return node

    return _text(_parse(normalise(sql)).transform(blank, copy=False))


def _compact(sql: str) -> str:
    """Write what is outside quotes in lower case, without spaces around operators."""
    parts = _QUOTED.split(sql)  # outside and inside in turn
    parts[::2] = [_SPACED.sub(r"\1", p.lower()).replace(", ", ",") for p in parts[::2]]
    # An operator before a quoted text ends its part.
    parts[:-1:2] = [re.sub(r" (<>|<=|>=|=|<|>) $", r"\1", p) for p in parts[:-1:2]]
    return "".join(parts)


def _spelling(node: exp.Expression) -> exp.Expression:
    """Rewrite one node: divisions, months, days, lists of values, ASC."""
    if isinstance(node, exp.Div) and isinstance(node.right.unnest(), exp.Nullif):
        divisor = node.right.unnest()
        if divisor.expression.sql() == "0":
            plain = divisor.this
            several = isinstance(plain, exp.Binary)
            node.set("expression", exp.Paren(this=plain) if several else plain)
    if isinstance(node, exp.TimeToStr | exp.Date | exp.Anonymous):
        # STRFTIME('%Y-%m', day) says the same as SUBSTR(day, 1, 7), and
        # DATE('2026-06-30', '-29 days') is a day that can be written down.
        if found := _MONTH.fullmatch(_text(node)):
            return _parse(f"SUBSTR({found[1]}, 1, 7)")
        if found := _MOVED_DAY.fullmatch(_text(node)):
            try:
                return _moved(found[1], int(found[2]))
            except (OverflowError, ValueError):  # no such day
                return node
    if isinstance(node, exp.In):
        if len(node.expressions) == 1:
            return exp.EQ(this=node.this, expression=node.expressions[0])
        node.set("expressions", sorted(node.expressions, key=lambda e: e.sql()))
    if isinstance(node, exp.Ordered):
        node.set("desc", node.args.get("desc") or None)
    return node


def _by_position(node: exp.Expression) -> exp.Expression:
    """Name the columns of GROUP BY and ORDER BY by their places; drop the aliases."""
    if not isinstance(node, exp.Select) or node.is_star:
        return node
    aliases = {column.alias.lower() for column in node.expressions}
    for column in node.expressions:
        inside = {c.name.lower() for c in column.unalias().find_all(exp.Column)}
        if inside & aliases:
            return node  # a name that means a column here and a result there
    places = {}
    for place, column in enumerate(node.expressions, start=1):
        if not isinstance(column.unalias(), exp.Literal):
            places.setdefault(column.unalias().sql().lower(), place)
        if column.alias:
            places[column.alias.lower()] = place

    def position(key: exp.Expression) -> exp.Expression:
        if isinstance(key, exp.Literal):
            return key
        bare = isinstance(key, exp.Column) and not key.table
        place = places.get(key.name.lower() if bare else key.sql().lower())
        return exp.Literal.number(place) if place else key

    if group := node.args.get("group"):
        group.set("expressions", [position(key) for key in group.expressions])
    if order := node.args.get("order"):
        for key in order.expressions:
            key.set("this", position(key.this))
    used = {column.name.lower() for column in node.find_all(exp.Column)}
    # An outer query or a union may use the names that an inner one gives.
    if node.parent is None and not used & aliases:
        node.set("expressions", [column.unalias() for column in node.expressions])
    return node


def _conditions(where: exp.Expression) -> exp.Expression:
    """Join half-open and closed ranges of days into BETWEEN; sort what is ANDed."""
    parts = list(_anded(where))
    for column in {p.this.sql() for p in parts if _is_bound(p, exp.GTE, exp.GT)}:
        bounds = [p for p in parts if _is_bound(p, *_BOUNDS) and p.this.sql() == column]
        lows = [p for p in bounds if isinstance(p, exp.GTE | exp.GT)]
        highs = [p for p in bounds if isinstance(p, exp.LT | exp.LTE)]
        if len(lows) != 1 or len(highs) != 1:
            continue
        low, high = lows[0], highs[0]
        first = _moved(low.expression.name, isinstance(low, exp.GT))
        last = _moved(high.expression.name, -isinstance(high, exp.LT))
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


def _is_bound(part: exp.Expression, *kinds: type) -> bool:
    """Say whether a condition compares something with one day."""
    day = isinstance(part, kinds) and isinstance(part.expression, exp.Literal)
    return day and bool(_DAY.fullmatch(part.expression.name))


def _moved(day: str, days: int) -> exp.Expression:
    return exp.Literal.string(str(dt.date.fromisoformat(day) + dt.timedelta(days)))


def _rank(part: exp.Expression) -> tuple[int, str]:
    """Place of a condition: test accounts, status, exclusions, filters, period."""
    text = _text(part)
    if text.startswith("is_test"):
        return 0, text
    if text.startswith("status"):
        return 1, text
    if isinstance(part, exp.NEQ):
        return 2, text
    if "NULL" in text or text.startswith("paused"):
        return 3, text
    return (5 if _DAY.search(text) else 4), text


def _leave_out(select: exp.Select) -> None:
    """Leave out samples or spam by name, where the query does not speak of them."""
    table, source = select.find(exp.Table), select.args.get("from_")
    left_out = LEFT_OUT.get(table.name if table else "")
    if not left_out or source is None or not isinstance(source.this, exp.Table):
        return
    word = left_out.split("'")[1]
    if not any(word in _text(e) for e in select.find_all(exp.NEQ, exp.Not)):
        select.where(left_out, dialect="sqlite", copy=False)


def _share(node: exp.Expression) -> exp.Expression:
    """Write a count of ones over a count as an average; leave whole fees unrounded."""
    ours = isinstance(node, exp.Div | exp.Mul | exp.Round | exp.Case)
    text = _text(node) if ours else ""  # writing each node takes long
    if isinstance(node, exp.Div) and (found := _SHARE.fullmatch(text)):
        return _parse(f"100.0 * AVG({found[1]})")
    if text == "ROUND(SUM(monthly_fee), 2)":
        return node.this
    if isinstance(node, exp.Case) and node.args.get("default") == exp.Literal.number(0):
        node.set("default", None)
    if text.startswith("100.0 * (1 - "):
        node.set("this", exp.Literal.number(100))
    return node


def _growth(tree: exp.Expression) -> exp.Expression:
    """Write 100.0 * (a - b) / b over two sums of a subquery as one SELECT."""
    selects = list(tree.find_all(exp.Select))
    found = _GROWTH.fullmatch(_text(tree.selects[0]))
    clauses = [tree.args.get(k) for k in ("where", "group", "order", "limit")]
    if not found or len(selects) != 2 or selects[0] is not tree or any(clauses):
        return tree
    inner = selects[1]
    sums = {c.alias: c.this for c in inner.selects if isinstance(c, exp.Alias)}
    if found[1] not in sums or found[2] not in sums:
        return tree
    where = inner.args.get("where")
    period = where.find(exp.Between) if where else None
    texts = []
    for name in found.groups():
        part = sums[name].copy()
        for case in part.find_all(exp.Case):
            case.set("default", None)
            for branch in case.args["ifs"]:
                branch.set("this", _conditions(_closed(branch.this, period)))
        texts.append(_text(part))
    flat = inner.copy()
    flat.set("expressions", [])
    growth = f"ROUND(100.0 * {texts[0]} / {texts[1]} - 100, 1)"
    flat.select(growth, dialect="sqlite", copy=False)
    if period and all("BETWEEN" in text for text in texts):
        kept = [c for c in _anded(flat.args["where"].this) if c != period]
        flat.set("where", exp.Where(this=exp.and_(*kept)) if kept else None)
    return flat


def _closed(condition: exp.Expression, period: exp.Between | None) -> exp.Expression:
    """Give a one-sided condition on a day the other end of the query's period."""
    if period is None or not _is_bound(condition, exp.GTE, exp.LT):
        return condition
    if condition.this != period.this:
        return condition
    day, low, high = condition.expression, period.args["low"], period.args["high"]
    if isinstance(condition, exp.GTE):
        low = day
    else:
        high = _moved(day.name, -1)
    return exp.Between(this=condition.this.copy(), low=low.copy(), high=high.copy())
