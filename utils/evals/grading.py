"""The one grader: an answer is correct when its rows are, on every warehouse.

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
from scipy.optimize import linear_sum_assignment

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
    # Rare: pair each tuple with one that is close, if that can be done for all.
    far = np.zeros((len(got), len(want)), dtype=bool)
    with np.errstate(over="ignore"):
        for a, b in zip(np.array(got).T, np.array(want).T, strict=True):
            larger = np.maximum.outer(np.abs(a), np.abs(b))
            tolerance = np.maximum(REL_TOL * larger, ABS_TOL)
            far |= np.abs(np.subtract.outer(a, b)) > tolerance
    return not far[linear_sum_assignment(far)].any()


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

    correct: bool  # rows equal on every database
    correct_on_live: bool  # rows equal on the live one
    per_database: dict[str, bool]
    error: str | None = None  # first error that the sandbox named, or "no_query"


class Grader:
    """Grades SQL on every database of a sandbox pool; `live` names the one in use."""

    def __init__(self, pool: SandboxPool, live: str = "warehouse") -> None:
        self.pool, self.live, self.databases = pool, live, list(pool.databases)
        self._references: dict[str, dict[str, Rows]] = {}  # by the text of the SQL

    def expected(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Rows]]:
        """Return each case's rows by database: its `expected`, else those of its `sql`.

        Raises ValueError where that SQL fails.
        """
        queries = [case["sql"] for case in cases if not case.get("expected")]
        ran = self._run(sql for sql in queries if sql not in self._references)
        for sql, results in ran.items():
            for name, result in results.items():
                if result.error:
                    why = f"{result.error}: {result.message}"
                    raise ValueError(f"a case's SQL fails on {name} ({why}): {sql}")
            self._references[sql] = {name: r.rows for name, r in results.items()}
        return [case.get("expected") or self._references[case["sql"]] for case in cases]

    def grade(
        self,
        cases: Sequence[dict[str, Any]],
        answers: Sequence[str | None],
        progress: str | None = None,
    ) -> list[Grade]:
        """Grade one SQL text per case; None or blank is wrong with error "no_query".

        `progress` labels the pool's progress bar. Equal answers are run once. Raises
        ValueError where there are not as many answers as cases.
        """
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
