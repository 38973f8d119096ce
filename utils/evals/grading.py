"""The one grader: an answer is right when its rows are right on every warehouse.

Eval, data filter and RL reward all call it. A wrong query can be right by luck on one
database, so rows are compared on the live warehouse and on its twins (test-suite
accuracy, Zhong et al. 2020, arXiv 2010.02840).
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree

from utils.evals.sandbox import Result, SandboxPool

Rows = Sequence[Sequence[Any]]

# One cent and its float noise. A money sum that ends on half a cent is rounded up or
# down by binary noise, so two right spellings of it can differ by a cent. The next
# step up, 0.1 on percentages and days, is a real difference.
ABS_TOL = 0.011
# Noise of a long sum in double precision; larger than a cent only above 1e10.
REL_TOL = 1e-12


def _split(row: Sequence[Any]) -> tuple[tuple, tuple[float, ...]]:
    """Cells that must be identical, with a gap for each number, and the numbers."""
    key, numbers = [], []
    for cell in row:
        number = isinstance(cell, int | float)
        # The bound also sets apart NaN, infinity and integers too large for a float.
        if number and abs(cell) <= sys.float_info.max:
            numbers.append(float(cell))
            key.append(None)
        else:
            key.append((type(cell), str(cell) if number else cell))
    return tuple(key), tuple(numbers)


def _close(got: Sequence[float], want: Sequence[float]) -> bool:
    return all(
        math.isclose(a, b, rel_tol=REL_TOL, abs_tol=ABS_TOL)
        for a, b in zip(got, want, strict=True)
    )


def _pair_off(got: list[tuple[float, ...]], want: list[tuple[float, ...]]) -> bool:
    """Whether two lists, as many tuples of one length, pair off within tolerance."""
    if all(map(_close, sorted(got), sorted(want))):
        return True
    # Closeness is not transitive, so sorted order decides for single columns only.
    columns = zip(zip(*got, strict=True), zip(*want, strict=True), strict=True)
    if not all(_close(sorted(a), sorted(b)) for a, b in columns):
        return False
    # Equal tuples are one node with a count, or many repeats would make a dense graph.
    left, supply = np.unique(np.array(got), axis=0, return_counts=True)
    right, demand = np.unique(np.array(want), axis=0, return_counts=True)
    radius = max(ABS_TOL, REL_TOL * max(np.abs(left).max(), np.abs(right).max()))
    near = KDTree(right).query_ball_point(left, radius * (1 + 1e-9), p=math.inf)
    # They pair off if all of `got` can flow to `want`: source, left, right, sink.
    sink = 1 + len(left) + len(right)
    edges = [(0, 1 + i, n) for i, n in enumerate(supply)]
    edges += [(1 + len(left) + j, sink, n) for j, n in enumerate(demand)]
    for i, places in enumerate(near):
        close = [j for j in places if _close(left[i], right[j])]
        edges += [(1 + i, 1 + len(left) + j, supply[i]) for j in close]
    start, end, capacity = np.array(edges, dtype=np.int32).T
    graph = csr_array((capacity, (start, end)), shape=(sink + 1, sink + 1))
    return maximum_flow(graph, 0, sink).flow_value == len(got)


def rows_equal(got: Rows, want: Rows, ordered: bool) -> bool:
    """Whether two results are equal; row order counts only when `ordered`.

    Column order counts, column names do not. Numbers are equal within ABS_TOL or
    REL_TOL, whichever is wider, integer or not; text, blobs, NULL, infinity and NaN
    equal only themselves, and text never equals a number. Without order the rows must
    pair off one to one, so a row that occurs twice must do so in both.
    """
    groups: dict[tuple, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((got, want)):
        for place, (key, numbers) in enumerate(map(_split, rows)):
            groups[key, place if ordered else None][side].append(numbers)
    return all(len(a) == len(b) and _pair_off(a, b) for a, b in groups.values())


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer."""

    right: bool  # rows equal on every database
    live: bool  # rows equal on the live one
    per_database: dict[str, bool]
    error: str | None = None  # first error that the sandbox named, or "no_query"


class Grader:
    """Grades SQL on every database of a sandbox pool; `live` names the one in use."""

    def __init__(self, pool: SandboxPool, live: str = "warehouse") -> None:
        self.pool, self.live, self.databases = pool, live, list(pool.databases)
        if live not in self.databases:
            raise ValueError(f"live database {live!r} is not among {self.databases}")
        self._references: dict[str, dict[str, Result]] = {}

    def expected(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Rows]]:
        """Right rows of each case by database: its `expected`, else those of its `sql`.

        Raises ValueError for a case that has neither, or whose SQL fails.
        """
        queries = [c["sql"] for c in cases if "sql" in c and not c.get("expected")]
        known = self._references
        known |= self._run(sql for sql in queries if sql not in known)
        return [self._right_rows(case) for case in cases]

    def grade(
        self,
        cases: Sequence[dict[str, Any]],
        answers: Sequence[str | None],
        progress: str | None = None,
    ) -> list[Grade]:
        """Grade one SQL text per case; None or blank is wrong with error "no_query".

        `progress` labels the pool's progress bar. Equal answers are run once.
        """
        if len(cases) != len(answers):
            raise ValueError(f"{len(answers)} answers for {len(cases)} cases")
        wanted = self.expected(cases)
        ran = self._run((sql for sql in answers if sql and sql.strip()), progress)
        return [
            self._verdict(ran.get(sql), want, case["ordered"])
            for case, sql, want in zip(cases, answers, wanted, strict=True)
        ]

    def _run(
        self, queries: Iterable[str], progress: str | None = None
    ) -> dict[str, dict[str, Result]]:
        """Run each different query once on every database."""
        queries = list(dict.fromkeys(queries))
        jobs = [(name, sql) for sql in queries for name in self.databases]
        results = iter(self.pool.map(jobs, progress=progress) if jobs else ())
        return {sql: {d: next(results) for d in self.databases} for sql in queries}

    def _right_rows(self, case: dict[str, Any]) -> dict[str, Rows]:
        ran = self._references.get(case.get("sql"), {})
        rows = case.get("expected") or {d: result.rows for d, result in ran.items()}
        for name in self.databases:
            if rows.get(name) is None:
                # Forgotten, so that a passing failure does not stick.
                self._references.pop(case.get("sql"), None)
                failed = ran.get(name)
                why = f"{failed.error}: {failed.message}" if failed else "no SQL to run"
                raise ValueError(f"case {case.get('id')}: no rows on {name} ({why})")
        return rows

    def _verdict(
        self, got: dict[str, Result] | None, want: dict[str, Rows], ordered: bool
    ) -> Grade:
        if got is None:
            nowhere = dict.fromkeys(self.databases, False)
            return Grade(False, False, nowhere, "no_query")
        equal = {
            name: result.rows is not None
            and rows_equal(result.rows, want[name], ordered)
            for name, result in got.items()
        }
        error = next((result.error for result in got.values() if result.error), None)
        return Grade(all(equal.values()), equal[self.live], equal, error)
