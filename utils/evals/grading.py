"""The one grader: an answer is correct when its rows are, on every warehouse.

Eval, data filter and RL reward all call it. A wrong query can be right by luck on one
database, so rows are compared on the live warehouse and on its twins (test-suite
accuracy, Zhong et al. 2020, arXiv 2010.02840).
"""

import functools
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import sqlglot
from scipy.optimize import linear_sum_assignment
from sqlglot import exp

from utils.evals import types
from utils.evals.sandbox import Result, SandboxPool

Rows = Sequence[Sequence[Any]]

# One cent and its float noise. A money sum that ends on half a cent is rounded up or
# down by binary noise, so two right spellings of it can differ by a cent. The next
# step up, 0.1 on percentages and days, is a real difference.
ABS_TOL = 0.011
# Noise in double precision, of a ratio and of a long sum; both relative.
REL_TOL, SUM_TOL = 1e-9, 1e-13
WHOLE = 2.0**53  # from here on every float is a whole number


def tolerance(column: Iterable[Any]) -> float:
    """Return by how much a number may miss its reference; `column` holds these.

    A column that reaches 10, or exceeds 1 and shows two decimals, may hold money: it is
    compared to a cent. Whole numbers, and what stays below (ratios, ratings, days), are
    compared to the last digit.
    """
    numbers = [cell for cell in column if isinstance(cell, int | float)]
    numbers = [cell for cell in numbers if abs(cell) < WHOLE]
    top = max(map(abs, numbers), default=0)
    floats = [cell for cell in numbers if isinstance(cell, float)]
    if not floats:
        return min(REL_TOL * top, 1e-6)
    decimals = (-Decimal(repr(cell)).as_tuple().exponent for cell in floats)
    if top >= 10 or (top > 1 and max(decimals) == 2):
        return min(max(ABS_TOL, SUM_TOL * top), 0.5)
    return max(REL_TOL * top, 1e-15)


def _split(row: Sequence[Any]) -> tuple[tuple, tuple[float, ...]]:
    """Cells that must be identical, with a gap for each number, and the numbers."""
    key, numbers = [], []
    for cell in row:
        if not isinstance(cell, int | float):
            key.append((type(cell), cell))
        elif abs(cell) < WHOLE:
            numbers.append(float(cell))
            key.append(None)
        elif isinstance(cell, int) or math.isfinite(cell):
            key.append((int, int(cell)))
        else:
            key.append((float, str(cell)))  # infinity and NaN
    return tuple(key), tuple(numbers)


def _pair_off(
    got: list[tuple[float, ...]],
    want: list[tuple[float, ...]],
    tolerances: Sequence[float],
) -> bool:
    """Whether two lists, as many tuples of one length, pair off within tolerance."""

    def close(a: Sequence[float], b: Sequence[float]) -> bool:
        triples = zip(a, b, tolerances, strict=True)
        return all(abs(x - y) <= most for x, y, most in triples)

    if all(map(close, sorted(got), sorted(want))):
        return True
    # Closeness is not transitive, so sorted order decides for single columns only.
    a, b = np.sort(np.array(got), axis=0), np.sort(np.array(want), axis=0)
    if (np.abs(a - b) > tolerances).any():
        return False
    # Rare: pair each tuple with one that is close, if that can be done for all.
    far = np.zeros((len(got), len(want)), dtype=bool)
    for a, b, most in zip(np.array(got).T, np.array(want).T, tolerances, strict=True):
        far |= np.abs(np.subtract.outer(a, b)) > most
    return not far[linear_sum_assignment(far)].any()


def rows_equal(
    got: Rows, want: Rows, ordered: bool, order_by: Sequence[int] | None = None
) -> bool:
    """Whether a result equals the reference `want`; row order counts if `ordered`.

    Column order counts, column names do not. Numbers are equal within the `tolerance`
    of the reference's column; all else equals only itself. Without order the rows must
    pair off one to one. `order_by` holds the columns, from 0, by which an ordered
    reference is sorted: rows that tie in all of these may change places.
    """
    if len(got) != len(want):
        return False
    tolerances = [tolerance(column) for column in zip(*want, strict=True)]
    places = list(range(len(want))) if ordered else [0] * len(want)
    if ordered and order_by is not None:
        sorted_by = [[row[column] for column in order_by] for row in want]
        for i in range(1, len(want)):
            tied = sorted_by[i] == sorted_by[i - 1]
            places[i] = places[i - 1] + (not tied)
    groups: dict[tuple, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((got, want)):
        for place, (key, numbers) in zip(places, map(_split, rows), strict=True):
            groups[key, place][side].append(numbers)
    for (key, _), (a, b) in groups.items():
        if len(a) != len(b):
            return False
        columns = [i for i, cell in enumerate(key) if cell is None]
        if not _pair_off(a, b, [tolerances[i] for i in columns]):
            return False
    return True


@functools.lru_cache(10_000)
def order_columns(sql: str) -> tuple[int, ...] | None:
    """Return the columns by which a query sorts its rows, for `rows_equal`.

    None where that cannot be told: no ORDER BY, or one by what is not in the output.
    """
    try:
        query = sqlglot.parse_one(sql, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return None
    order = query.args.get("order") if isinstance(query, exp.Query) else None
    if order is None or any(output.is_star for output in query.selects):
        return None
    names = [output.alias_or_name.lower() for output in query.selects]
    values = [output.unalias() for output in query.selects]
    columns = []
    for term in (ordered.this for ordered in order.expressions):
        plain = isinstance(term, exp.Column) and not term.table
        if term.is_int:  # ORDER BY 2
            columns.append(int(term.name) - 1)
        elif plain and term.name.lower() in names:
            columns.append(names.index(term.name.lower()))
        elif term in values:
            columns.append(values.index(term))
        else:
            return None
    return tuple(columns)


@dataclass(frozen=True)
class Grade(types.Grade):
    """The verdict on one answer: `correct` means rows equal on every database.

    `error` is the first that the sandbox named, or "no_query".
    """

    correct_on_live: bool = False  # rows equal on the live database
    per_database: dict[str, bool] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """An earlier name of `correct`."""
        return self.correct


class Grader:
    """Grades SQL on every database of a sandbox pool; `live` names the one in use.

    A case holds "ordered", and "sql" or "expected" (rows by database). It may hold
    "order_by", see `rows_equal`; without it the ORDER BY of its "sql" tells.
    """

    def __init__(self, pool: SandboxPool, live: str = "warehouse") -> None:
        self.pool, self.live, self.databases = pool, live, list(pool.databases)
        self._references: dict[str, dict[str, Rows]] = {}  # by the text of the SQL
        # By the text of a case, then of an answer: most models say much the same.
        self._graded: dict[str, dict[str | None, Grade]] = defaultdict(dict)

    def expected(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Rows]]:
        """Return each case's rows by database: its `expected`, else those of its `sql`.

        Raises ValueError where that SQL fails; warns where all these rows are empty.
        """
        queries = [case["sql"] for case in cases if not case.get("expected")]
        ran = self._run(sql for sql in queries if sql not in self._references)
        for sql, results in ran.items():
            for name, result in results.items():
                if result.error:
                    why = f"{result.error}: {result.message}"
                    raise ValueError(f"a case's SQL fails on {name} ({why}): {sql}")
            self._references[sql] = {name: r.rows for name, r in results.items()}
        wanted = [c.get("expected") or self._references[c["sql"]] for c in cases]
        both = zip(cases, wanted, strict=True)
        empty = [str(case.get("id", "?")) for case, rows in both if _empty(rows)]
        if empty:
            warnings.warn(
                "reference rows are empty on every database, so any query without rows "
                f"is graded right. Cases: {', '.join(dict.fromkeys(empty))}",
                stacklevel=2,
            )
        return wanted

    def grade(
        self,
        cases: Sequence[dict[str, Any]],
        answers: Sequence[str | None],
        progress: str | None = None,
    ) -> list[Grade]:
        """Grade one SQL text per case; None or blank is wrong with error "no_query".

        `progress` labels the pool's bar. Equal answers to equal cases are graded once.
        """
        cases = list(cases)  # a data set makes its rows anew each time
        wanted = self.expected(cases)
        alike = {id(case): case for case in cases}  # each may come many times
        graded = {
            key: self._graded[json.dumps(dict(case), sort_keys=True, default=repr)]
            for key, case in alike.items()
        }
        new = {}
        for case, sql, want in zip(cases, answers, wanted, strict=True):
            if sql not in graded[id(case)]:
                new[id(case), sql] = case, want
        ran = self._run((sql for _, sql in new if sql and sql.strip()), progress)
        for (key, sql), (case, want) in new.items():
            graded[key][sql] = self._verdict(ran.get(sql), want, case)
        found = [graded[id(c)][sql] for c, sql in zip(cases, answers, strict=True)]
        for key, sql in new:  # a busy machine's fault; it may run in time tomorrow
            if graded[key][sql].error in ("timeout", "crashed", "memory"):
                del graded[key][sql]
        return found

    def _run(
        self, queries: Iterable[str], progress: str | None = None
    ) -> dict[str, dict[str, Result]]:
        """Run each different query once on every database."""
        queries = list(dict.fromkeys(queries))
        jobs = [(name, sql) for sql in queries for name in self.databases]
        results = iter(self.pool.map(jobs, progress=progress) if jobs else ())
        return {sql: {d: next(results) for d in self.databases} for sql in queries}

    def _verdict(
        self, got: dict[str, Result] | None, want: dict[str, Rows], case: dict[str, Any]
    ) -> Grade:
        if got is None:
            nowhere = dict.fromkeys(self.databases, False)
            return Grade(False, "no_query", False, nowhere)
        ordered, order_by = case["ordered"], case.get("order_by")
        if ordered and order_by is None and "sql" in case:
            order_by = order_columns(case["sql"])
        equal = {
            name: result.rows is not None
            and rows_equal(result.rows, want[name], ordered, order_by)
            for name, result in got.items()
        }
        error = next((result.error for result in got.values() if result.error), None)
        return Grade(all(equal.values()), error, equal[self.live], equal)


def _empty(wanted: dict[str, Rows]) -> bool:
    """Whether no database has a row with anything but NULL."""
    rows = [row for rows in wanted.values() for row in rows]
    return all(cell is None for row in rows for cell in row)
