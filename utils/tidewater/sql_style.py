"""One spelling for SQL that means the same, so that a model has one style to learn.

Logs mix styles: a frontier model's aliases and half-open dates, an analyst's BETWEEN
and ordinals. A parser (sqlglot) makes them one. Only spelling changes, never meaning;
whoever trains on the result should still run both and compare the rows.
"""

import datetime as dt
import logging
import re
from collections.abc import Iterator

import sqlglot
from sqlglot import exp

logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of what is no query

# What this house never counts, by table.
LEFT_OUT = {"order_lines": "category <> 'sample'", "tickets": "topic <> 'spam'"}
_QUOTED = re.compile(r"('(?:[^']|'')*'|\"[^\"]*\")")
_SPACED = re.compile(r" (<>|<=|>=|=|<|>|\*|\+|-|/) (?!-|$)")
# 100.0 * SUM(CASE WHEN it THEN 1 ELSE 0 END) / COUNT(*); 1.0 where it only ranks
_SHARE = re.compile(
    r"(?:100|100\.0|1\.0) \* SUM\(CASE WHEN (.+) THEN 1 ELSE 0 END\)"
    r" / COUNT\([*\w]+\)"
)
# 100.0 * (now - before) / before, of two sums with names
_GROWTH = re.compile(r"ROUND\(100(?:\.0)? \* \((\w+) - (\w+)\) / \2, 1\)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def normalise(sql: str) -> str:
    """Return a SQLite query in one spelling, lower-case, with no space to spare.

    No column aliases; GROUP BY and ORDER BY by position; a range of days as BETWEEN;
    conditions in a fixed order, period last; no NULLIF(x, 0), since SQLite divides by
    zero to NULL; months by substr. Raises ValueError for a text that is no query.
    """
    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
        if not isinstance(tree, exp.Query) or not tree.selects:
            raise ValueError(f"not a query: {sql[:60]!r}")
        for rule in (_spelling, _grouping):
            tree = tree.transform(rule)
        for where in list(tree.find_all(exp.Where)):
            where.set("this", _conditions(where.this))
        return _compact(tree.sql(dialect="sqlite", comments=False))
    except sqlglot.errors.SqlglotError as error:
        raise ValueError(f"not a query: {str(error).splitlines()[0]}") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"a query beyond all measure: {error}") from error


def _compact(sql: str) -> str:
    """Write what is outside quotes in lower case, without spaces around operators."""
    parts = _QUOTED.split(sql)
    # Not before a sign: two of them would begin a comment.
    parts[::2] = [_SPACED.sub(r"\1", p.lower()).replace(", ", ",") for p in parts[::2]]
    # An operator before a quoted text ends its part.
    parts[:-1:2] = [re.sub(r" (<>|<=|>=|=|<|>) $", r"\1", p) for p in parts[:-1:2]]
    return "".join(parts)


def house(sql: str) -> str:
    """Return a query as the analysts write it: normalised, and with house habits.

    Samples and spam are left out by name, a breakdown is in the order of its groups, a
    ranking is by the shown column, a share is an average, growth is one SELECT. These
    change the meaning on some data: take the result only where the rows stay the same.
    """
    tree = _growth(sqlglot.parse_one(normalise(sql), read="sqlite")).transform(_share)
    for select in list(tree.find_all(exp.Select)):
        source = select.find(exp.Table)
        if left_out := LEFT_OUT.get(source.name if source else ""):
            texts = [e.sql(dialect="sqlite") for e in select.find_all(exp.NEQ)]
            texts += [e.sql(dialect="sqlite") for e in select.find_all(exp.Not)]
            table = select.args.get("from_")
            plain = table is not None and isinstance(table.this, exp.Table)
            known = any(left_out.split("'")[1] in text for text in texts)
            if plain and not known:
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


def _growth(tree: exp.Expression) -> exp.Expression:
    """Write 100.0 * (a - b) / b over two sums of a subquery as one SELECT."""
    inner = next((s for s in tree.find_all(exp.Select) if s is not tree), None)
    if inner is None or len(list(tree.find_all(exp.Select))) != 2:
        return tree
    sums = {c.alias: c.this for c in inner.selects if isinstance(c, exp.Alias)}
    found = _GROWTH.fullmatch(tree.selects[0].sql(dialect="sqlite"))
    plain = not any(tree.args.get(k) for k in ("where", "group", "order", "limit"))
    if not (found and plain and found[1] in sums and found[2] in sums):
        return tree
    flat, where = inner.copy(), inner.args.get("where")
    period = where.find(exp.Between) if where else None
    texts = []
    for name in (found[1], found[2]):
        part = sums[name].copy()
        for case in part.find_all(exp.Case):
            case.set("default", None)
            for branch in case.args["ifs"]:
                branch.set("this", _conditions(_closed(branch.this, period)))
        texts.append(part.sql(dialect="sqlite"))
    flat.set("expressions", [])
    growth = f"ROUND(100.0 * {texts[0]} / {texts[1]} - 100, 1)"
    flat.select(growth, dialect="sqlite", copy=False)
    if period and all("BETWEEN" in text for text in texts):
        kept = [c for c in _anded(flat.args["where"].this) if c != period]
        flat.set("where", exp.Where(this=exp.and_(*kept)) if kept else None)
    return flat


def _closed(condition: exp.Expression, period: exp.Between | None) -> exp.Expression:
    """Give a one-sided condition on a day the other end of the query's period."""
    if period is None or not isinstance(condition, exp.GTE | exp.LT):
        return condition
    if condition.this != period.this or not _bound(condition, exp.GTE, exp.LT):
        return condition
    after = isinstance(condition, exp.GTE)
    last = period.args["high"] if after else _moved(condition.expression, -1)
    first = condition.expression if after else period.args["low"]
    return exp.Between(this=condition.this.copy(), low=first.copy(), high=last.copy())


def _share(node: exp.Expression) -> exp.Expression:
    """Write a count of ones over a count as an average; leave whole fees unrounded."""
    text = node.sql(dialect="sqlite")
    if isinstance(node, exp.Div) and (found := _SHARE.fullmatch(text)):
        return sqlglot.parse_one(f"100.0 * AVG({found[1]})", read="sqlite")
    if text == "ROUND(SUM(monthly_fee), 2)":
        return node.this
    if isinstance(node, exp.Case) and node.args.get("default") == exp.Literal.number(0):
        node.set("default", None)
    if text.startswith("100.0 * (1 - "):
        node.set("this", exp.Literal.number(100))
    return node


def form(sql: str) -> str:
    """Return the query with its texts and numbers blanked: what it asks, of whatever.

    Two queries of one form differ in names, periods and sizes only.
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


def differences(got: str, want: str) -> list[str]:
    """Name the parts in which two queries differ, such as ["period", "filter"].

    The names are: no query, table, metric, grouping, filter, period, ranking, shape.
    """
    try:
        a, b = (sqlglot.parse_one(normalise(sql), read="sqlite") for sql in (got, want))
    except ValueError:
        return ["no query"]
    parts = [(_parts(tree)) for tree in (a, b)]
    found = [name for name in parts[0] if parts[0][name] != parts[1][name]]
    return found or ([] if a == b else ["shape"])


def _parts(tree: exp.Expression) -> dict[str, set[str]]:
    """Take a query apart into sets of texts by what they decide."""

    def texts(*kinds: type) -> set[str]:
        return {node.sql(dialect="sqlite") for node in tree.find_all(*kinds)}

    conditions = {
        part.sql(dialect="sqlite")
        for where in tree.find_all(exp.Where)
        for part in _anded(where.this)
    }
    days = set(_DAY.findall(tree.sql(dialect="sqlite")))
    columns = {c.sql(dialect="sqlite") for c in tree.expressions}
    measures = {_DAY.sub("day", c) for c in columns if "(" in c}
    return {
        "table": texts(exp.Table),
        "metric": measures,
        "grouping": columns - {c for c in columns if "(" in c},
        "filter": {text for text in conditions if not _DAY.search(text)},
        "period": days | {_DAY.sub("", t) for t in conditions if _DAY.search(t)},
        "ranking": texts(exp.Order, exp.Limit),
    }


def _spelling(node: exp.Expression) -> exp.Expression:
    """Rewrite one node into the house spelling."""
    if isinstance(node, exp.Div) and isinstance(node.right.unnest(), exp.Nullif):
        divisor = node.right.unnest()
        if divisor.expression.sql() == "0":
            whole = exp.Paren if isinstance(divisor.this, exp.Binary) else None
            node.set("expression", whole(this=divisor.this) if whole else divisor.this)
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
    try:
        day = dt.date.fromisoformat(found[1]) + dt.timedelta(days=int(found[2]))
    except (OverflowError, ValueError):  # no such day
        return node
    return exp.Literal.string(str(day))


def _grouping(node: exp.Expression) -> exp.Expression:
    """Name the columns of GROUP BY and ORDER BY by their places; drop the aliases."""
    if not isinstance(node, exp.Select) or node.is_star:
        return node
    names = [column.alias.lower() for column in node.expressions]
    inside = [c.unalias().find_all(exp.Column) for c in node.expressions]
    if {c.name.lower() for columns in inside for c in columns} & {*names}:
        return node  # a name that means a column here and a result there
    places = {}
    for place, column in enumerate(node.expressions, start=1):
        if not isinstance(column.unalias(), exp.Literal):
            places.setdefault(column.unalias().sql().lower(), place)
        if column.alias:
            places[column.alias.lower()] = place

    def by_place(key: exp.Expression) -> exp.Expression:
        if isinstance(key, exp.Literal):
            return key
        bare = isinstance(key, exp.Column) and not key.table
        place = places.get(key.name.lower() if bare else key.sql().lower())
        return exp.Literal.number(place) if place else key

    if group := node.args.get("group"):
        group.set("expressions", [by_place(key) for key in group.expressions])
    if order := node.args.get("order"):
        for key in order.expressions:
            key.set("this", by_place(key.this))
    used = {column.name.lower() for column in node.find_all(exp.Column)}
    # An outer query or a union may use the names that an inner one gives.
    if node.parent is None and not used & {*names}:
        node.set("expressions", [column.unalias() for column in node.expressions])
    return node


def _conditions(where: exp.Expression) -> exp.Expression:
    """Join half-open and closed ranges of days into BETWEEN; sort what is ANDed."""
    parts = list(_anded(where))
    for column in {p.this.sql() for p in parts if _bound(p, exp.GTE, exp.GT)}:
        lows = [p for p in parts if _bound(p, exp.GTE, exp.GT, of=column)]
        highs = [p for p in parts if _bound(p, exp.LT, exp.LTE, of=column)]
        if len(lows) != 1 or len(highs) != 1:
            continue
        low, high = lows[0], highs[0]
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


def _bound(part: exp.Expression, *kinds: type, of: str | None = None) -> bool:
    """Say whether a condition compares a column (`of`, or any) with one day."""
    day = isinstance(part, kinds) and isinstance(part.expression, exp.Literal)
    here = day and (of is None or part.this.sql() == of)
    return here and bool(_DAY.fullmatch(part.expression.name))


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
