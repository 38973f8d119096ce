"""Test the grader: change one part of a right query, and see which database notices.

A mutant that no database notices is a wrong answer that the eval grades as right. It
asks for a database in which that part matters, or it means the same as the original.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import sqlglot
from sqlglot import exp

from utils.evals.grading import Grader


def mutants(sql: str) -> list[tuple[str, str]]:
    """Return (what was changed, changed query) pairs, with one change in each.

    Each condition of a WHERE, HAVING, ON, CASE or FILTER is dropped once, each DISTINCT
    and LIMIT too; > and < take their bound in, and each ORDER BY term is turned round.
    Raises ValueError where sqlglot cannot parse the query.
    """
    try:
        query = sqlglot.parse_one(sql, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError) as e:
        raise ValueError(f"sqlglot cannot parse {sql!r}: {e}") from e
    found = []
    for node in list(query.walk()):
        parent, key, index = node.parent, node.arg_key, node.index
        for name, other in _changes(node):
            parent.set(key, other, index)
            found.append((name, query.sql("sqlite")))
            parent.set(key, node, index)
    return found


def _changes(node: exp.Expression) -> Iterator[tuple[str, exp.Expression | None]]:
    """Yield what may stand in the place of a node; None: nothing."""
    text = re.sub(r"^NOT (.+) IS NULL$", r"\1 IS NOT NULL", node.sql("sqlite"))
    place = type(node.parent), node.arg_key
    bare = {(exp.Where, "this"), (exp.Having, "this"), (exp.Join, "on")}
    bare |= {(exp.And, "this"), (exp.And, "expression"), (exp.If, "this")}
    case = node.parent.parent if place == (exp.If, "this") else None
    compared = isinstance(case, exp.Case) and case.this  # CASE x WHEN 1: no condition
    if place in bare and not compared and not isinstance(node.unnest(), exp.And):
        yield f"no {text}", exp.true()
    if isinstance(node, exp.GT | exp.LT):
        wider = exp.GTE if isinstance(node, exp.GT) else exp.LTE
        other = wider(this=node.this.copy(), expression=node.expression.copy())
        yield f"{text} or equal", other
    if isinstance(node, exp.Distinct):
        counted = node.expressions  # of COUNT(DISTINCT x)
        yield "no DISTINCT", counted[0].copy() if len(counted) == 1 else None
    if isinstance(node, exp.Limit):
        yield "no LIMIT", None
    if isinstance(node, exp.Ordered):
        down = not node.args.get("desc")
        other = exp.Ordered(this=node.this.copy(), desc=down, nulls_first=not down)
        yield f"ORDER BY {text} turned round", other


def survivors(cases: Sequence[dict[str, Any]], grader: Grader) -> list[dict[str, Any]]:
    """Return a row for each mutant of each case's "sql".

    A row has "id" of the case, "change", "kind" (the change without its values, to
    group by), "sql", and "noticed": the databases on which its rows differ. A mutant
    with none survives. Cases that cannot be parsed are warned of and left out.
    """
    rows, mutated = [], []
    for case in cases:
        try:
            changes = mutants(case["sql"])
        except ValueError as e:
            warnings.warn(f"case {case.get('id', '?')} left out: {e}", stacklevel=2)
            continue
        for change, sql in changes:
            if change.startswith("ORDER BY") and not case["ordered"]:
                continue
            kind = re.sub(r"'[^']*'(, '[^']*')*", "…", change)
            rows.append({"id": case["id"], "change": change, "kind": kind, "sql": sql})
            mutated.append(case)
    grades = grader.grade(mutated, [row["sql"] for row in rows], "mutants")
    for row, grade in zip(rows, grades, strict=True):
        row["noticed"] = [name for name, same in grade.per_database.items() if not same]
    return rows
